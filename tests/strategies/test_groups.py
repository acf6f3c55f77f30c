"""Group mode and the gate, over the in-process grid and by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from gradtf_fl.config import DropPoint, FederationPlan
from gradtf_fl.errors import ConfigError, RoundRejected
from gradtf_fl.flower import combine_groups, gate, groups_needed, read_records
from gradtf_fl.secagg import Identity, ReplayRandomness, Roster, SecureSum
from gradtf_fl.secagg.graph import group_members
from gradtf_fl.secagg.quantization import Quantizer
from strategies import run_server
from tests.strategies.federation_kit import Kit

MakeKit = Callable[..., Kit]


def plain_means(kit: Kit, sums: tuple[tuple[str, ...], ...]) -> list[NDArray[np.float64]]:
    """Mean of the plain updates of each group in ``sums`` (hex keys)."""
    kept = {
        Identity.load(folder / "identity.key").public.hex(): folder / "rounds" / "1" / "own_update.safetensors"
        for folder in kit.folders
    }
    return [np.mean([load_file(kept[key])["update"].astype(np.float64) for key in keys], axis=0) for keys in sums]


def test_groups_are_summed_apart_and_a_lost_one_is_left_out(make_kit: MakeKit) -> None:
    identities = [Identity.generate(ReplayRandomness(bytes([n]))) for n in range(15)]  # the kit's
    roster = Roster(tuple(identity.public for identity in identities))
    lost = {roster.keys[member].hex() for member in group_members(roster, 3, 1)[:2]}  # threshold 4 of 5
    gone = [n for n, identity in enumerate(identities) if identity.public.hex() in lost]
    kit = make_kit(
        organizations=15,
        groups=3,
        combine="median",
        rounds=1,
        drop={n: (DropPoint(stage="mask"),) for n in gone},
    )
    (record,) = run_server(kit.grid(), kit.plan, None, kit.generator).rounds
    assert (record.state, record.masked, len(record.included)) == ("completed", 13, 10)
    expected = [{roster.keys[m].hex() for m in group_members(roster, 3, group)} for group in (0, 2)]
    assert [set(keys) for keys in record.sums] == expected
    decoded = load_file(kit.plan.out / "rounds" / "1" / "global_update.safetensors")["mean"]
    median = np.median(plain_means(kit, record.sums), axis=0)
    assert np.abs(decoded.reshape(-1) - median).max() < 2**-18 * kit.plan.update_clip
    assert read_records(kit.plan.out) == [record]


def test_residues_that_no_honest_client_sends_reject_the_whole_round(
    make_kit: MakeKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit, honest = make_kit(rounds=1), Quantizer.encode
    calls: list[int] = []

    def encode(self: Quantizer, vector: NDArray[np.float32], weight: float, key: bytes) -> Iterator[NDArray[np.uint32]]:
        calls.append(1)
        for words in honest(self, vector, weight, key):
            if len(calls) == 1:
                words[:16] += np.uint32(1 << 22)  # half the clip each, in the mean of three
            yield words

    monkeypatch.setattr(Quantizer, "encode", encode)
    with pytest.raises(RoundRejected, match=r"the mean of 3 clients has norm 1[\d.]+, at most 8\.008") as rejected:
        run_server(kit.grid(), kit.plan, None, kit.generator)
    assert rejected.value.exit_code == 4
    (record,) = read_records(kit.plan.out)
    assert (record.state, record.aborted_at, record.included) == ("aborted", "gate", ())
    assert not (kit.plan.out / "rounds" / "1").exists()


def test_a_mean_longer_than_the_limit_is_rejected(make_kit: MakeKit) -> None:
    kit = make_kit(rounds=1, max_norm=1e-3)
    with pytest.raises(RoundRejected, match=r"has norm 0\.\d+, at most 0\.001001 is accepted"):
        run_server(kit.grid(), kit.plan, None, kit.generator)


def group(mean: list[float], weight: float = 5.0) -> SecureSum:
    return SecureSum(np.array(mean), weight, 5)


def test_combinations_by_hand() -> None:
    sums = [group([1.0, 5.0]), group([2.0, 4.0]), group([3.0, 900.0]), group([4.0, -900.0]), group([100.0, 6.0])]
    np.testing.assert_array_equal(combine_groups(sums, "median"), [3.0, 5.0])
    np.testing.assert_array_equal(combine_groups(sums, "trimmed-mean"), [3.0, 5.0])
    np.testing.assert_array_equal(combine_groups(sums[:3], "trimmed-mean"), [2.0, 5.0])
    np.testing.assert_array_equal(combine_groups(sums, "mean"), [22.0, 3.0])
    uneven = [group([0.0], weight=1.0), group([4.0], weight=3.0)]
    np.testing.assert_array_equal(combine_groups(uneven, "mean"), [3.0])
    np.testing.assert_array_equal(combine_groups(uneven, "trimmed-mean"), [2.0])  # nothing can be cut from two
    np.testing.assert_array_equal(combine_groups([group([7.0])], "median"), [7.0])
    assert [groups_needed(n) for n in (1, 3, 4, 5)] == [1, 2, 3, 3]


def test_a_minority_of_groups_cannot_move_the_median_far() -> None:
    rng = np.random.default_rng(0)
    honest = [group(list(rng.normal(size=50))) for _ in range(5)]
    low, high = np.min([h.mean for h in honest], axis=0), np.max([h.mean for h in honest], axis=0)
    bad = [group([1e6] * 50), group([-1e6] * 50)]
    for how in ("median", "trimmed-mean"):
        moved = combine_groups([*honest, *(bad if how == "median" else bad[:1])], how)  # type: ignore[arg-type]
        assert (moved >= low).all()
        assert (moved <= high).all()
    assert np.abs(combine_groups([*honest, bad[0]], "mean")).min() > 1e5


def test_the_gate(make_kit: MakeKit) -> None:
    from strategies import Provider, SecureFederation
    from strategies.server_app import pinned_roster

    kit = make_kit(rounds=1)
    federation = SecureFederation(kit.plan, Provider(kit.plan, kit.generator), pinned_roster(kit.plan))
    federation._resume()
    (config,) = federation.sums.next_attempt(1, federation._start())
    good = group([config.clip, 0.0])
    gate([good], config)
    with pytest.raises(RoundRejected):
        gate([good, replace(good, mean=good.mean * 1.01)], config)
    gate([replace(good, mean=good.mean * 1.01, noise_norm=1.0)], config)
    with pytest.raises(RoundRejected):
        gate([replace(good, mean=np.array([np.nan, 0.0]))], config)
    with pytest.raises(RoundRejected):
        gate([replace(good, beyond=1)], config)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"organizations": 14, "groups": 3}, "smaller than 5"),
        ({"organizations": 10, "groups": 2}, "at least 3"),
        ({"organizations": 15, "groups": 3, "threshold": 9}, "threshold cannot be set"),
        ({"noise_multiplier": 1.0, "weight_rule": "examples"}, "needs weight_rule 'uniform'"),
    ],
)
def test_plans_that_cannot_be(values: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, ValueError), match=words):
        FederationPlan.model_validate({"out": tmp_path, **values})
