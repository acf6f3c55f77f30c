"""SuperNodes and workers that die or stall in every stage; an organization whose power is cut."""

from __future__ import annotations

import signal
import sqlite3
import time

import pytest

from gradtf_fl.privacy import read_ledger
from gradtf_fl.privacy.accounting.accountants import epsilon_prv
from tests.deployment.deployed_kit import DEADLINE_S
from tests.deployment.fault_watch import Invariants
from tests.deployment.members import Member, until

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(900)]

COLD = 2  # charges that a fault may cost a node which starts cold: on a busy machine it is late in its first round


@pytest.mark.parametrize(
    "stages", [("advertise", "consistency"), ("share", "unmask"), ("mask", "generate")], ids="-".join
)
def test_supernode_killed(faults: Invariants, stages: tuple[str, str]) -> None:
    """Two of six are lost at most; both come back by themselves."""
    deployment = faults.deployment
    with faults.fault(f"SuperNode kill -9 in {stages[0]}, another's in {stages[1]}") as fault:
        number = deployment.beginning()
        for stage, member in zip(stages, deployment.organizations, strict=False):
            if stage == "generate":
                deployment.finished(number)  # which is too short to be met otherwise
            else:
                deployment.reach(stage, after=number - 1)
            fault.hits(member)
            member.kill("supernode")
        fault.ends()
        record = deployment.finished(number)
        fault.note(f"round {number}: {deployment.share(record)} in the sum")
        later = [deployment.included(member, number)[0].round for member in deployment.organizations[:2]]
        fault.recovered()
        fault.note(f"back in rounds {later[0]} and {later[1]}")
        assert max(later) <= number + 3


def test_worker_killed(faults: Invariants) -> None:
    """In training and in a later stage: the request is asked again; what was used up on disk is refused as stale."""
    deployment = faults.deployment
    trainer, masker = deployment.organizations[2:4]
    with faults.fault("worker kill -9 in training, another's in mask") as fault:
        number = deployment.beginning()
        fault.hits(trainer, masker)
        until(lambda: charging(trainer), 60.0, "a reservation", pause=0.0)
        trainer.kill("worker")
        deployment.reach("mask", after=number - 1)
        masker.kill("worker")
        fault.ends()
        record = deployment.finished(number)
        fault.note(f"round {number}: {deployment.share(record)} in the sum, refused {dict(record.refused)}")
        assert set(record.refused) <= {"stale"}
        deployment.everyone(number)
        fault.recovered()


def test_organization_killed(faults: Invariants) -> None:
    """`org run` itself: what it started ends with it, and the next one goes on."""
    deployment = faults.deployment
    member = deployment.organizations[0]
    with faults.fault("org run kill -9") as fault:
        number = deployment.beginning()
        fault.hits(member, charges=COLD)
        deployment.reach("share", after=number - 1)
        member.kill("run")
        until(lambda: not member.pids(), 20.0, "SuperNode and worker end with it")
        member.start()
        fault.ends()
        deployment.finished(number)
        later, _ = deployment.included(member, number)
        fault.recovered()
        fault.note(f"round {number} went on, back in round {later.round}")


def test_power_cut_between_reserve_and_settle(faults: Invariants) -> None:
    deployment = faults.deployment
    member = deployment.organizations[1]
    with faults.fault("power cut of an organization between reserve and settle") as fault:
        fault.hits(member, charges=COLD)
        number = cut_while_charging(faults, member)
        deployment.finished(number)
        member.start()
        fault.ends()
        later, _ = deployment.included(member, number)
        fault.recovered()
        charges = read_ledger(member.folder / "ledger.sqlite").content.charges
        cut = next(charge for charge in charges if charge.round == number)
        assert cut.state == "reserved"
        fault.note(f"round {number} went on; its reservation stays counted; back in round {later.round}")
    reserve = epsilon_prv([cut.event], 1e-5)
    assert 0 < fault.record.epsilon_error <= COLD * reserve


def test_node_slower_than_the_deadline(faults: Invariants) -> None:
    """Its masked update comes too late: it is in no sum, and paid for."""
    deployment = faults.deployment
    member = deployment.organizations[3]
    with faults.fault("worker stopped past the deadline in mask, then continued") as fault:
        number = deployment.beginning()
        fault.hits(member)
        deployment.reach("mask", after=number - 1)
        member.send(signal.SIGSTOP, "worker")
        attempt = deployment.status().attempt
        deployment.reach("consistency", after=number - 1)
        member.send(signal.SIGCONT, "worker")
        fault.ends()
        record = deployment.finished(number)
        assert deployment.key(member) not in record.included
        late = (deployment.run_state()["run_id"], number, attempt)
        until(lambda: late in faults.watch.masked[member.name], DEADLINE_S, "the late update is masked")
        fault.note(f"round {number}: {deployment.share(record)}; the late vector was not used")
        deployment.included(member, number)
        fault.recovered()


def cut_while_charging(faults: Invariants, member: Member) -> int:
    """SIGKILL to all of ``member`` while a reservation is open; the round it was for."""
    deployment = faults.deployment
    while True:
        number = deployment.beginning()
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end and not charging(member):
            pass
        member.send(signal.SIGSTOP, "worker")
        if charging(member):
            member.kill()
            left = read_ledger(member.folder / "ledger.sqlite")  # as an auditor finds it
            assert (left.problems, left.content.charges[-1].state) == ((), "reserved")
            return number
        member.send(signal.SIGCONT, "worker")


def charging(member: Member) -> bool:
    """Whether the ledger's last row is an open reservation."""
    try:
        database = sqlite3.connect(f"file:{member.folder / 'ledger.sqlite'}?mode=ro", uri=True)
        try:
            row = database.execute("SELECT kind FROM entries ORDER BY number DESC LIMIT 1").fetchone()
        finally:
            database.close()
    except sqlite3.Error:
        return False
    return row is not None and row[0] == "reserve"
