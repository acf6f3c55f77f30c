"""``gradtf dashboard`` as a person starts and ends it."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.cli.conftest import gradtf

COMMAND = (sys.executable, "-m", "gradtf_fl.cli.main", "dashboard")


def test_nothing_to_show_is_a_usage_error() -> None:
    result = gradtf("dashboard")
    assert result.exit_code == 2
    assert "--server DIR" in result.stderr


def test_all_that_is_not_what_it_was_named_for_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    options = ("--server", "--organization", "--run")
    for name in ("nowhere", "empty"):
        folder = tmp_path / name
        result = gradtf("dashboard", *(part for option in options for part in (option, folder)), "--ledger", folder)
        assert result.exit_code == 2
        lines = result.stderr.splitlines()
        assert len(lines) == 4
        assert all(str(folder) in line for line in lines), lines
    assert "no server's folder" in result.stderr
    assert "no organization's folder" in result.stderr
    assert "no simulation's folder" in result.stderr
    assert "no such ledger" in result.stderr


def test_a_port_in_use_is_said_before_anything_is_served(ledger: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = gradtf("dashboard", "--ledger", ledger, "--port", port)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"gradtf: --port {port}: can't be used (Address already in use)")
    assert result.stdout == ""


@pytest.mark.parametrize("as_json", [False, True])
def test_it_serves_until_ctrl_c_with_an_open_page_too(ledger: Path, as_json: bool) -> None:
    command = [*COMMAND, "--ledger", str(ledger), *(["--json"] if as_json else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        text = "".join(iter(process.stdout.readline, "}\n")) + "}" if as_json else process.stdout.readline()
        url = json.loads(text)["url"] if as_json else text.removeprefix("dashboard: ").strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+/open\?token=[\w-]{43}", url)
        with httpx.Client(base_url=url.partition("/open")[0]) as client:
            assert client.get(url).status_code == 303
            with client.stream("GET", "/events/budgets") as answer:
                lines = answer.iter_lines()  # kept: the stream would be closed with it
                assert next(lines) == "event: part"
                process.send_signal(signal.SIGINT)
                assert process.wait(20) == 0
        assert process.stderr is not None
        errors = process.stderr.read()
        assert errors.splitlines()[-1] == "dashboard: ended"
        assert "Traceback" not in errors
        assert "Error" not in errors
    finally:
        process.kill()
        process.communicate()


def test_its_start_imports_no_torch(ledger: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom gradtf_fl.dashboard import DashboardServer, Sources\n"
        f"DashboardServer(Sources(ledgers=(Path({str(ledger)!r}),)))\n"
        "print(sorted({'torch', 'transformers', 'flwr', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
