"""No file can grow any more: RLIMIT_FSIZE, set on running processes, so that writing fails wherever the tests run.

A write then fails with EFBIG where a full disk gives ENOSPC: OSError in Python, SQLITE_FULL or SQLITE_IOERR in SQLite.
"""

from __future__ import annotations

import resource
import time

import pytest

from tests.deployment.deployed_kit import DEADLINE_S
from tests.deployment.fault_watch import Invariants
from tests.deployment.members import Member, until

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(900)]


def limit_files(member: Member, limit: int = resource.RLIM_INFINITY) -> None:
    """No process of ``member`` can write a file past ``limit`` bytes."""
    for pid in member.pids():
        try:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        except ProcessLookupError:
            continue


def test_organization_disk_full(faults: Invariants) -> None:
    """The round it falls into is refused, or lost, for it alone; it takes part as soon as there is room."""
    deployment = faults.deployment
    member = deployment.organizations[2]
    with faults.fault("disk full at an organization (RLIMIT_FSIZE)") as fault:
        number = deployment.beginning()
        deployment.finished(number)
        fault.hits(member)
        limit_files(member, 0)
        try:
            record = deployment.finished(number + 1)
        finally:
            limit_files(member)
        assert deployment.key(member) not in record.included
        fault.ends()
        fault.note(f"round {number + 1}: {deployment.share(record)}, refused {dict(record.refused)}")
        later, _ = deployment.included(member, number + 1)
        fault.recovered()
        fault.note(f"back in round {later.round}")


def test_server_disk_full(faults: Invariants) -> None:
    """Nothing is written in half; the run goes on when there is room, by itself or with --resume."""
    deployment = faults.deployment
    server = deployment.server
    with faults.fault("disk full at the server (RLIMIT_FSIZE)") as fault:
        number, attempt = deployment.reach("mask", after=deployment.beginning() - 1)
        fault.away |= {member.name for member in deployment.organizations}
        limit_files(server, 0)
        try:
            end = time.monotonic() + 2 * DEADLINE_S
            while time.monotonic() < end and server.running:
                time.sleep(1.0)
        finally:
            limit_files(server)
        fault.ends()
        if server.ended is not None:
            assert "run `gradtf server run --resume`" in server.said()
            fault.note(f"server run ended with {server.ended}")
            server.start("--resume")
        record = deployment.finished(number)
        deployment.everyone(number - 1)
        fault.recovered()
        fault.note(f"round {number} completed in attempt {record.attempt}, after {attempt}")
    until(lambda: server.running, 1.0, "the server runs")
