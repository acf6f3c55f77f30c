"""A server that plays for the difference of two sums: attempts, silent organizations, starts that do not follow."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import numpy as np
import pytest

from clients import check_organization
from clients.organization import load_organization
from gradtf_fl.config import DropPoint, PolicySection
from gradtf_fl.errors import RoundAborted, RoundRejected
from gradtf_fl.flower import Refused, read_records
from gradtf_fl.round_messages import Refusal
from strategies import run_server
from tests.strategies.federation_kit import Kit

MakeKit = Callable[..., Kit]


def silent(kit: Kit, number: int, round_number: int | None = None) -> None:
    """The server leaves this organization out; for the others that is the same as its silence."""
    simulation = kit.config(number).simulation
    assert simulation is not None
    drop = (DropPoint(stage="advertise", round=round_number),)
    kit.change(number, simulation=simulation.model_copy(update={"drop": drop}))


def last_words(kit: Kit, number: int) -> str:
    return (kit.folders[number] / "client.log").read_text()


def test_a_sum_that_was_opened_is_not_opened_again_without_one(make_kit: MakeKit) -> None:
    """The server takes the first sum, says that it rejects it, and wants a second one with one organization fewer."""
    kit = make_kit(organizations=4, rounds=1, steps=1, budget=40.0, max_norm=1e-3)
    with pytest.raises(RoundRejected):
        run_server(kit.grid(), kit.plan, None, kit.generator)
    (rejected,) = read_records(kit.plan.out)
    assert [len(keys) for keys in rejected.opened] == [4]
    silent(kit, 3)
    with pytest.raises(RoundAborted) as aborted:
        run_server(kit.grid(), kit.plan, None, kit.generator)
    assert aborted.value.stage == "consistency"
    assert read_records(kit.plan.out)[-1].refused == {"policy": 3}
    assert "earlier sums from one model this sum would be about fewer than 3 organizations" in last_words(kit, 0)
    assert [len(load_organization(folder, simulated=True).store().sums()) for folder in kit.folders] == [1] * 4


@pytest.mark.parametrize("minimum", [1, 2])
def test_a_silent_organization_costs_the_round_where_the_policy_says_so(make_kit: MakeKit, minimum: int) -> None:
    kit = make_kit(organizations=4, rounds=2, steps=1)
    for number in range(4):
        kit.change(number, policy=PolicySection(min_difference=minimum))
    silent(kit, 3, round_number=2)
    if minimum == 1:
        records = run_server(kit.grid(), kit.plan, None, kit.generator).rounds
        assert [len(record.included) for record in records] == [4, 3]
        always, once = (check_organization(kit.folders[number], offline=True) for number in (0, 3))
        for findings, said in ((always, "2 signed for; 0.33"), (once, "1 signed for; 0.25")):
            (found,) = [finding for finding in findings if finding.what == "sums"]
            assert (found.level, found.found) == ("ok", f"{said} of its update follows from them")
        return
    with pytest.raises(RoundAborted) as aborted:
        run_server(kit.grid(), kit.plan, None, kit.generator)
    assert (aborted.value.stage, aborted.value.counts["consistency"]) == ("consistency", 0)
    assert "at least 2 are needed ([policy] min_difference)" in last_words(kit, 0)


def test_a_round_starts_where_the_signed_one_before_it_ended(make_kit: MakeKit) -> None:
    store = load_organization(make_kit().folders[0], simulated=True).store()
    zero, one, two = (np.full(3, value, "<f4").tobytes() for value in (0, 1, 2))
    store.check_start("run", 1, zero)
    store.check_start("run", 7, two)  # who came late has nothing to compare with
    with pytest.raises(Refused, match="not zero") as refused:
        store.check_start("run", 1, one)
    assert refused.value.code is Refusal.MODEL_HASH
    store.deliver("run", 1, sha256(one).digest())
    store.deliver("run", 1, sha256(one).digest())  # repeated
    store.check_start("run", 2, one)
    store.check_start("run", 3, two)  # round 2 was missed
    store.check_start("another", 1, zero)
    with pytest.raises(Refused, match="does not start where round 1") as refused:
        store.check_start("run", 2, two)
    assert refused.value.code is Refusal.MODEL_HASH
    with pytest.raises(Refused, match="another global update") as refused:
        store.deliver("run", 1, sha256(two).digest())
    assert refused.value.code is Refusal.MODEL_HASH
    store.deliver("run", 2, sha256(two).digest())
    store.deliver("run", 1, sha256(one).digest())  # an old one sent again changes nothing
    with pytest.raises(Refused, match="round 1 is over") as refused:
        store.check_start("run", 1, zero)
    assert refused.value.code is Refusal.STALE
