"""The server's processes die: SuperLink, SuperExec, ServerApp, and `gradtf server run` at several moments."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deployment.fault_watch import Fault, Invariants

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(900)]


@pytest.mark.parametrize("stage", ["mask", "between rounds"])
def test_superlink_killed(faults: Invariants, stage: str) -> None:
    deployment = faults.deployment
    with faults.fault(f"SuperLink kill -9 in {stage}".replace("in between", "between")) as fault:
        number = deployment.beginning()
        if stage == "mask":
            deployment.reach(stage, after=number - 1)
        else:
            deployment.finished(number)
            number += 1
        everyone_may_lose(faults, fault)
        deployment.server.kill("superlink")
        fault.ends()
        record = deployment.finished(number)
        fault.note(f"round {number}.{record.attempt}: {deployment.share(record)}")
        deployment.everyone(number)
        fault.recovered()
        assert "the SuperLink died and is started again" in deployment.server.said()


@pytest.mark.parametrize("role", ["serverapp", "superexec"])
def test_serverapp_or_superexec_killed(faults: Invariants, role: str) -> None:
    deployment = faults.deployment
    with faults.fault(f"{role} kill -9 in share") as fault:
        number, attempt = deployment.reach("share", after=deployment.beginning() - 1)
        everyone_may_lose(faults, fault)
        deployment.server.kill(role)
        fault.ends()
        record = deployment.finished(number)
        fault.note(f"round {number} completed in attempt {record.attempt}, after {attempt}")
        deployment.everyone(number - 1)
        fault.recovered()
        assert record.attempt > attempt or role == "superexec"


@pytest.mark.parametrize("stage", ["advertise", "mask", "unmask"])
def test_server_run_killed(faults: Invariants, stage: str) -> None:
    """Only ``server run`` gets the signal; what it started must not get into the way of --resume."""
    deployment = faults.deployment
    with faults.fault(f"server run kill -9 in {stage}, then --resume") as fault:
        number, attempt = deployment.reach(stage, after=deployment.beginning() - 1)
        everyone_may_lose(faults, fault)
        deployment.server.kill("run")
        fault.ends()
        deployment.server.start("--resume")
        record = deployment.finished(number)
        fault.note(f"round {number} completed in attempt {record.attempt}, after {attempt}")
        assert record.attempt > attempt
        deployment.everyone(number - 1)
        fault.recovered()


def test_server_loses_power_between_checkpoint_and_delivery(faults: Invariants) -> None:
    deployment = faults.deployment
    with faults.fault("all of the server kill -9 between checkpoint and delivery, then --resume") as fault:
        number = deployment.beginning()
        folder = deployment.server.folder / "rounds" / str(number)
        deployment.wait(folder.exists, 240.0, "the checkpoint")
        deployment.server.kill()
        assert deployment.run_state()["delivered"] < number
        everyone_may_lose(faults, fault)
        fault.ends()
        kept = (folder / "round.json").read_bytes()
        deployment.server.start("--resume")
        deployment.delivered(number)
        fault.recovered()
        assert (folder / "round.json").read_bytes() == kept
        fault.note(f"round {number} was delivered after the restart, and not made again")
        deployment.everyone(number)
        place = Path("rounds") / str(number) / "llm_adapter"
        assert any((member.folder / place).exists() for member in deployment.organizations)
    assert [record.round for record in deployment.completed()].count(number) == 1


def everyone_may_lose(faults: Invariants, fault: Fault) -> None:
    """A server that dies takes the attempt in hand with it."""
    for member in faults.deployment.organizations:
        fault.away.add(member.name)
