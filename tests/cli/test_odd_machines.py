"""Machines that are not like ours: odd names, disks that take nothing, closed streams, narrow terminals, proxies."""

from __future__ import annotations

import errno
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from gradtf_fl.cli.main import report_error
from gradtf_fl.cli.options import console
from gradtf_fl.deployment.processes import direct_to, environment, going_direct
from gradtf_fl.errors import ConfigError
from gradtf_fl.reports import read_for_report, report_all, to_table
from tests.cli.conftest import gradtf
from tests.privacy.test_hostile_ledgers import USUAL, foreign

ROWS = '{"prompt": "a", "answer": "b"}\n'


def run(*arguments: object, closed: bool = False) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "gradtf_fl.cli.main", *(os.fsencode(str(argument)) for argument in arguments)]
    close = (lambda: os.close(0)) if closed else None
    return subprocess.run(command, capture_output=True, timeout=120, preexec_fn=close)  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_a_name_that_is_not_utf8_leaves_nothing_half_made(tmp_path: Path) -> None:
    data = tmp_path / os.fsdecode(b"rows-\xff.jsonl")
    data.write_text(ROWS)
    options = ("--data", data, "--budget", 8)
    done = run("org", "init", tmp_path / "org", *options)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert rb"rows-\udcff.jsonl" in done.stderr
    assert not (tmp_path / "org").exists()
    data.rename(tmp_path / "rows.jsonl")
    odd = tmp_path / os.fsdecode(b"org-\xff")
    done = run("org", "init", odd, "--name", "odd", "--data", tmp_path / "rows.jsonl", "--budget", 8)
    assert done.returncode == 0, done.stderr  # the second try, and a folder that has such a name itself
    assert rb"org-\udcff" in done.stdout


def test_an_existing_folder_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clients.node import setup

    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "org").mkdir()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(setup, "replace_file", full)
    result = gradtf("org", "init", tmp_path / "org", "--data", tmp_path / "rows.jsonl", "--budget", 8)
    assert result.exit_code == 1
    assert "free disk space" in result.output
    assert list((tmp_path / "org").iterdir()) == []


def test_a_place_that_takes_nothing_is_a_wrong_option(capsys: pytest.CaptureFixture[str]) -> None:
    read_only = sqlite3.connect(":memory:")
    read_only.execute("PRAGMA query_only = ON")
    with pytest.raises(sqlite3.OperationalError) as refused:
        read_only.execute("CREATE TABLE t (x)")
    for error in (OSError(errno.EROFS, "Read-only file system", "/mnt/out"), refused.value):
        assert report_error(error, debug=False) == 2
        assert "name a place that can be written" in capsys.readouterr().err


def test_a_closed_standard_input_is_nobody_to_ask(tmp_path: Path) -> None:
    from clients.node.setup import make_organization
    from gradtf_fl.deployment import canonical
    from tests.deployment.test_enrolment import serve

    folders = []
    for number in (1, 2, 3):
        (tmp_path / "rows.jsonl").write_text(ROWS)
        folders.append(tmp_path / f"org-{number}")
        make_organization(
            folders[-1], f"org-{number}", tmp_path / "rows.jsonl", None, 8.0, 1e-5, "embedded:tiny", "embedded:llm"
        )
    invitation = tmp_path / "invitation.json"
    invitation.write_text(canonical(serve(tmp_path, folders)))
    done = run("org", "join", folders[0], invitation, closed=True)
    assert done.returncode == 2
    assert b"--fingerprint: missing" in done.stderr


def test_no_figure_is_hidden_on_a_narrow_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = report_all([read_for_report(foreign(tmp_path / "ledger", USUAL, "organization-with-a-name"))])
    monkeypatch.setenv("COLUMNS", "40")
    assert Console().width == 40
    terminal = console()
    with terminal.capture() as captured:
        terminal.print(to_table(reports))
    figures = captured.get().splitlines()
    assert any("5.267" in line and "5.257" in line and "7.781" in line and "2.733" in line for line in figures)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What comes to a proxy that every proxy variable names, and that answers nothing."""
    listener, seen = socket.create_server(("127.0.0.1", 0)), list[bytes]()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                seen.append(connection.recv(1000))

    threading.Thread(target=serve, daemon=True).start()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{listener.getsockname()[1]}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return seen


def ask(url: str) -> None:
    with pytest.raises(httpx.HTTPError), httpx.Client(timeout=2) as client:
        client.get(url)


def test_loopback_and_the_server_are_never_asked_through_a_proxy(
    proxy: list[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    closed = "http://127.0.0.1:9"
    ask(closed)
    assert len(proxy) == 1  # httpx goes there by itself
    with going_direct("192.0.2.1"):
        ask(closed)
    assert "NO_PROXY" not in os.environ
    assert len(proxy) == 1
    own = environment(tmp_path, ["fl.example"])
    assert own["no_proxy"] == own["NO_PROXY"] == "127.0.0.1,localhost,::1,fl.example"
    assert own["HTTPS_PROXY"] == os.environ["HTTPS_PROXY"]  # a tracker may need it
    code = "import httpx\ntry: httpx.get('http://127.0.0.1:9')\nexcept httpx.ConnectError: print('direct')"
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, timeout=60)
    assert done.stdout == "direct\n"
    assert len(proxy) == 1
    monkeypatch.setenv("no_proxy", "intranet")
    assert direct_to(os.environ)["no_proxy"] == "intranet,127.0.0.1,localhost,::1"


def test_an_error_of_several_problems_survives_another_process() -> None:
    import pickle

    assert pickle.loads(pickle.dumps(ConfigError(["one", "two"]))).problems == ("one", "two")
