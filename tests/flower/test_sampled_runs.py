"""Whole runs over samples of the organizations: who is in them, what they sum to, and how they go on."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg

from gradtf_fl.config import SumSettings
from gradtf_fl.errors import ConfigError, CorruptFile, RoundAborted
from gradtf_fl.file_names import BEACON
from gradtf_fl.flower import RoundStart, SecureAverage, SecureSums
from gradtf_fl.flower.app_member import load_member
from gradtf_fl.secagg import Roster, sampled
from tests.flower.average_kit import CLIP, Kit, first_model, initial, make_kit, trained


def average(kit: Kit, **settings: Any) -> SecureAverage:
    return SecureAverage(FedAvg(), roster=kit.keys, clip=CLIP, deadline_s=60.0, join_s=1.0, **settings)


def included(run: SecureAverage) -> list[set[str]]:
    """The organizations in each finished round's sum."""
    return [set(record.included) for record in run.sums.state.records if record.state == "completed"]


def drawn_for(run: SecureAverage, number: int, size: int) -> set[str]:
    assert run.sums.beacon is not None
    roster = run.sums.roster
    return {roster.keys[member].hex() for member in sampled(roster, run.sums.beacon.value, number, size)}


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return make_kit(tmp_path, members=7)


def test_each_round_averages_the_sample_that_the_beacon_draws(kit: Kit) -> None:
    run = average(kit, sample=4)
    result = run.start(kit.grid(), initial(), num_rounds=3)
    rounds = included(run)
    assert rounds == [drawn_for(run, number, 4) for number in (1, 2, 3)]
    assert len({frozenset(keys) for keys in rounds}) > 1
    assert sum(kit.calls.values()) == 3 * 4  # nobody else has trained, and nobody in round 0
    model = first_model()
    for keys in rounds:
        after = [trained(model, kit.keys.index(key), {}) for key in keys]
        model = model | {name: np.mean([one[name] for one in after], axis=0) for name in ("weight", "bias", "scale")}
        model["weight"] = model["weight"].astype(np.float32)
    for name in ("weight", "bias", "scale"):
        np.testing.assert_allclose(result.arrays[name].numpy(), model[name], atol=1e-3)


def test_groups_lie_inside_the_sample(tmp_path: Path) -> None:
    kit = make_kit(tmp_path, members=17, groups=3)
    run = average(kit, sample=15, groups=3, combine="mean")
    run.start(kit.grid(), initial(), num_rounds=1)
    (record,) = run.sums.state.records
    assert [len(keys) for keys in record.sums] == [5, 5, 5]
    assert included(run) == [drawn_for(run, 1, 15)]


def test_a_silent_organization_delays_no_beacon_and_stays_among_the_asked(kit: Kit) -> None:
    """It never advertises, so the server does not know its node, and asks it in every round."""
    kit.silent = {(2, "advertise")}
    run = average(kit, sample=5)
    run.start(kit.grid(), initial(), num_rounds=2)
    assert run.sums.beacon is not None
    assert sorted(run.sums.beacon.organizations.values()) == sorted(kit.keys[:2] + kit.keys[3:])
    nodes = sorted(run.sums.beacon.organizations)
    configs = run.sums.next_attempt(3, RoundStart(bytes(32), 1, "{}"))
    asked = run.sums.beacon.asked([0, *nodes], configs, run.sums.roster)
    known = {run.sums.beacon.organizations[node] for node in asked if node}
    assert known == drawn_for(run, 3, 5) - {kit.keys[2]}
    assert 0 in asked
    assert [run.sums.proof_for(node) for node in nodes].count(b"") >= 4  # whoever was in a sample has the beacon


def test_another_process_goes_on_with_the_beacon_of_the_run(kit: Kit, tmp_path: Path) -> None:
    first = average(kit, sample=4, state=tmp_path / "run")
    first.start(kit.grid(), initial(), num_rounds=1)
    proof = (tmp_path / "run" / BEACON).read_bytes()
    second = average(kit, sample=4, state=tmp_path / "run")
    second.start(kit.grid(), initial(), num_rounds=3)
    assert (tmp_path / "run" / BEACON).read_bytes() == proof
    assert included(second) == [drawn_for(first, number, 4) for number in (1, 2, 3)]
    stores = [load_member(folder / "policy.toml").store for folder in kit.folders]
    assert [store.drawn() for store in stores] == [1] * 7
    with pytest.raises(ConfigError, match="draws samples of 4 in 1 groups"):
        average(kit, sample=5, state=tmp_path / "run").start(kit.grid(), initial(), num_rounds=4)
    (tmp_path / "run" / BEACON).write_bytes(proof[:-1])
    with pytest.raises(CorruptFile, match="proves no beacon"):
        average(kit, sample=4, state=tmp_path / "run").start(kit.grid(), initial(), num_rounds=4)
    (tmp_path / "run" / BEACON).unlink()
    with pytest.raises(ConfigError, match="its beacon is lost"):
        average(kit, sample=4, state=tmp_path / "run").start(kit.grid(), initial(), num_rounds=4)


def test_an_organization_that_rests_refuses_the_next_sample(kit: Kit) -> None:
    for number in range(7):
        kit.change(number, rest_rounds=1)
    run = average(kit, sample=4, attempts=1)
    with suppress(RoundAborted):  # where more than one of the next sample rest
        run.start(kit.grid(), initial(), num_rounds=2)
    resting = {key for number, key in enumerate(kit.keys) if "rest_rounds is 1" in kit.log(number)}
    assert resting == drawn_for(run, 1, 4) & drawn_for(run, 2, 4) != set()


@pytest.mark.parametrize(("fraction", "sample"), [(0.5, 4), (0.4, 3), (4 / 7, 4), (1.0, 0)])
def test_a_fraction_is_a_sample_rounded_up(kit: Kit, fraction: float, sample: int) -> None:
    assert average(kit, fraction=fraction).sums.settings.sample == sample


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sample": 4, "fraction": 0.5}, "sample and fraction say the same"),
        ({"fraction": 1.5}, "fraction is a share"),
        ({"sample": 2}, "sample must be 0"),
        ({"sample": 7}, "sample must be 0"),
        ({"sample": 6, "groups": 3}, "groups"),
    ],
)
def test_samples_that_hide_nobody_are_refused(kit: Kit, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        average(kit, **settings)


def test_a_sample_that_may_hold_too_many_colluders_is_no_plan() -> None:
    """A tenth of 1,000 may collude: among any 12 it may be all 12, by the bound for all that a server can try."""
    roster = Roster(tuple(number.to_bytes(32, "big") for number in range(1000)))
    with pytest.raises(ConfigError, match=r"with 12 of 12 members colluding no threshold helps"):
        SecureSums(SumSettings(organizations=1000, clip=1.0, sample=12), roster)
    SecureSums(SumSettings(organizations=1000, clip=1.0, sample=50), roster)
