"""A server that was taken over, and strangers on the network who would like to be the server's operator."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from gradtf_fl.deployment.processes import environment
from gradtf_fl.flower_versions import REQUIREMENT, TARGET
from gradtf_fl.round_messages import Refusal
from strategies.engines.flower_processes import flwr
from strategies.server.superlink_gate import permitted
from tests.deployment.deployed_kit import ROUND_S
from tests.deployment.fault_watch import Invariants

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(900)]
APP = Path(__file__).with_name("hostile_app")
PROJECT = """[project]
name = "hostile"
version = "1.0.0"
license = {{ file = "LICENSE" }}
dependencies = ["{REQUIREMENT}"]
[tool.flwr.app]
publisher = "gradtf"
fab-format-version = 1
flwr-version-target = "{TARGET}"
[tool.flwr.app.components]
serverapp = "hostile_server:app"
clientapp = "hostile_client:app"
[tool.flwr.app.config]
answers = {answers}
"""


def test_run_with_other_code_and_malformed_messages(faults: Invariants, tmp_path: Path) -> None:
    """No organization loads the bundle; all they say is a code; the federation goes on beside it."""
    deployment = faults.deployment
    with faults.fault("a run with other code, and malformed and huge messages") as fault:
        app, answers, trace = tmp_path / "app", tmp_path / "answers.json", tmp_path / "planted"
        shutil.copytree(APP, app)
        (app / "LICENSE").write_text("none\n")
        client = app / "hostile_client.py"
        client.write_text(client.read_text().replace('"PLANTED"', repr(str(trace))))
        (app / "pyproject.toml").write_text(
            PROJECT.format(REQUIREMENT=REQUIREMENT, TARGET=TARGET, answers=json.dumps(str(answers)))
        )
        number = deployment.beginning()
        fault.hits(*deployment.organizations)
        flwr(["run", str(app), "gradtf"], environment(deployment.server.folder / "flower"), 120.0)
        deployment.wait(answers.exists, 2 * ROUND_S, "the hostile server's answers")
        fault.ends()
        told = json.loads(answers.read_text())
        assert not list(tmp_path.glob("planted-*")), "an organization ran the server's code"
        said = set()
        for case, replies in told.items():
            for reply in replies:
                assert isinstance(reply, dict), (case, reply)
                assert list(reply) == ["record"], (case, reply)
                assert list(reply["record"]) == ["gradtf"], (case, reply)
                assert list(reply["record"]["gradtf"]) == ["refusal"], (case, reply)
                said.add(reply["record"]["gradtf"]["refusal"])
        assert said <= set(map(str, Refusal))
        assert all(len(replies) >= 1 for replies in told.values()), told
        assert {case for case, replies in told.items() if len(replies) >= 3} >= {"huge", "forged adapter", "a query"}
        deployment.everyone(number)
        fault.recovered()
        fault.note(f"{len(told)} kinds of message, all refused: {', '.join(sorted(said))}; no bundle was loaded")


def test_control_is_closed_to_others(faults: Invariants) -> None:
    """From another address than loopback only the Fleet API answers."""
    deployment = faults.deployment
    with faults.fault("Control and Runtime API from another address") as fault:
        address = other_address()
        if address is None:
            assert not permitted("/v1/control/start-run", ("192.0.2.7", 5000))
            fault.note("no other address here: the gate itself was asked")
            return
        for path in ("/v1/control/start-run", "/v1/runtime/acquire-task", "/v1/control/list-runs", "/", "/health"):
            assert ask(f"https://{address}:{deployment.port}{path}") == 403, path
        assert ask(f"https://{address}:{deployment.port}/v1/fleet/../control/list-runs") in (403, 404)
        assert ask(f"https://{address}:{deployment.port}/v1/fleet/%2e%2e/control/list-runs") in (403, 404)
        assert ask(f"https://127.0.0.1:{deployment.port}/v1/control/list-runs") != 403
        fault.note("403 for everything but the Fleet API")


def other_address() -> str | None:
    """An address of this machine that is not loopback."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
            found = str(probe.getsockname()[0])
    except OSError:
        return None
    return None if found.startswith("127.") else found


def ask(url: str) -> int:
    """HTTP status of a POST, whoever's certificate it is."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(urllib.request.Request(url, b"{}"), timeout=20.0, context=context) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
