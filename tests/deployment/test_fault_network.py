"""A wire between an organization and the server that is cut, for a stage and for several rounds.

The wire is a TCP relay in the test's process (`tests.deployment.proxy`): while it is cut no byte passes and no
connection is refused, as with a firewall that drops; when it is mended, old connections are reset.
"""

from __future__ import annotations

import pytest

from tests.deployment.fault_watch import Invariants

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(900)]


def test_partition_for_a_stage(faults: Invariants) -> None:
    deployment = faults.deployment
    member, proxy = deployment.organizations[4], deployment.proxies[4]
    with faults.fault("network partition of a node for a stage (relay drops)") as fault:
        number = deployment.beginning()
        fault.hits(member)
        deployment.reach("share", after=number - 1)
        proxy.cut()
        deployment.reach("mask", after=number - 1)
        proxy.mend()
        fault.ends()
        record = deployment.finished(number)
        later, _ = deployment.included(member, number)
        fault.recovered()
        fault.note(f"round {number}: {deployment.share(record)}; back in round {later.round}")


def test_partition_for_three_rounds(faults: Invariants) -> None:
    deployment = faults.deployment
    member, proxy = deployment.organizations[4], deployment.proxies[4]
    with faults.fault("network partition of a node for three rounds") as fault:
        number = deployment.beginning()
        fault.hits(member)
        proxy.cut()
        for missed in range(number, number + 3):
            deployment.finished(missed)
        proxy.mend()
        fault.ends()
        later, _ = deployment.included(member, number + 2)
        fault.recovered()
        fault.note(f"rounds {number} to {number + 2} went on without it; back in round {later.round}")
