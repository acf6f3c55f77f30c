"""Ways to spend one epsilon: the present one is what organizations run, and every other charges what it releases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from dp_accounting import dp_event
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

from experiments.embedded import draw
from experiments.paper.accuracy_per_epsilon import Scores, Sets, Work, federations, measured, summary, tuned
from experiments.paper.private_ways import PRESENT, Moved, Way, calibrated, split_sigma, train, trained_mask
from gradtf_fl.adapters import AdapterSpec
from gradtf_fl.privacy import epsilon_pld
from gradtf_fl.tasks import house_rules as hr
from gradtf_fl.training import DpRecipe, StackedAdapters, dp_fine_tune_stacked

ROWS = 32


@pytest.fixture(scope="module")
def stack() -> StackedAdapters:
    torch.set_num_threads(1)
    return StackedAdapters.load("embedded:tiny", AdapterSpec())


def test_present_way_is_what_organizations_run(stack: StackedAdapters) -> None:
    rows, groups = draw([hr.rule_named("agl")], ROWS, "public", 0, 3), [0, 0, 1]
    way = Way(steps=4, batch=8)
    recipe = DpRecipe(rounds=2, steps=way.steps, batch=way.batch, clip=way.clip, rate=way.rate)
    theirs = dp_fine_tune_stacked(stack, rows, groups, [0.7] * 3, recipe, [5, 6])[-1]
    ours = train(stack, rows, groups, 0.7, way, [5, 6], rounds=2)
    torch.testing.assert_close(ours, torch.stack([theirs[:2].mean(0), theirs[2]]), atol=2e-5, rtol=1e-3)


def test_adaptive_clip_composes_to_the_stated_sigma() -> None:
    sigma = 1.3
    gradients, count = split_sigma(Way(clipping="adaptive"), sigma)
    accountant = PLDAccountant()
    both = [dp_event.GaussianDpEvent(gradients), dp_event.GaussianDpEvent(count / 0.5)]  # a count's sensitivity is 1/2
    accountant.compose(dp_event.ComposedDpEvent(both), 7)
    one = PLDAccountant()
    one.compose(dp_event.GaussianDpEvent(sigma), 7)
    assert accountant.get_epsilon(1e-5) == pytest.approx(one.get_epsilon(1e-5), rel=1e-3)
    assert gradients > sigma
    assert split_sigma(PRESENT, sigma) == (sigma, 0.0)


@pytest.mark.parametrize(
    "way", [PRESENT, Way(bands=4), Way(steps=12, batch=256), Way(clipping="adaptive")], ids=lambda way: str(way)[:60]
)
def test_every_way_costs_the_epsilon(way: Way) -> None:
    sigma = calibrated(way, 2.0, 1e-5, 1024, 3)
    assert epsilon_pld([way.event(sigma, 1024, 3)], 1e-5) == pytest.approx(2.0, abs=0.03)


def test_bands_pay_for_rounds_one_by_one() -> None:
    event = Way(bands=4).event(1.0, 1024, 3)
    assert (event.q, event.steps) == (0.25, 39)  # 13 a round: a row may be in a group of 13 steps in each


def test_only_b_moves_no_a(stack: StackedAdapters) -> None:
    rows = draw([hr.rule_named("agl")], ROWS, "public", 0)
    update = train(stack, rows, [0], 1.0, Way(steps=2, batch=8, only_b=True), [1], rounds=1)[0]
    mask = trained_mask(stack, Way(only_b=True))
    assert not update[mask == 0].any()
    assert update[mask == 1].all()
    assert 0 < mask.sum() < stack.mask.sum()


@pytest.mark.parametrize("way", [Way(decay=True), Way(average=0.5), Way(rule="momentum", bands=2)], ids=str)
def test_other_ways_move_the_adapter(stack: StackedAdapters, way: Way) -> None:
    rows = draw([hr.rule_named("agl")], ROWS, "public", 0)
    short = Way(**{**vars(way), "steps": 4, "batch": 8})
    update = train(stack, rows, [0], 1.0, short, [1], rounds=1)
    assert torch.isfinite(update).all()
    assert update.abs().max() > 0


def test_mean_of_last_steps_is_the_mean(stack: StackedAdapters) -> None:
    rows = draw([hr.rule_named("agl")], ROWS, "public", 0)
    ends = [train(stack, rows, [0], 1.0, Way(steps=steps, batch=8), [1], rounds=1) for steps in (3, 4)]
    update = train(stack, rows, [0], 1.0, Way(steps=4, batch=8, average=0.5), [1], rounds=1)
    torch.testing.assert_close(update, (ends[0] + ends[1]) / 2)


def test_corrected_adam_takes_the_noise_off_its_second_moment() -> None:
    way, generator = Way(rule="adam-corrected", floor=0.01), torch.Generator().manual_seed(0)
    moved = Moved(way, sigma=2.0, expected=4.0)
    for step in range(1000):
        move = moved.by(1.0 + 0.5 * torch.randn(1000, generator=generator), step)
    assert float(move.mean()) / way.rate == pytest.approx(1.0, rel=0.02)  # 1 / sqrt(1.25 - 0.25)


def test_corrected_adam_knows_the_variance_of_correlated_noise() -> None:
    independent, banded = (Moved(Way(rule="adam-corrected", bands=bands), 1.0, 1.0) for bands in (1, 4))
    assert independent._variances == pytest.approx(1.0)
    assert banded._variances.max() > 1.0


class Known:
    """A pair whose scores are known: only what the rate is counts."""

    name, rows, steps, federated, less_is_better = "known", 1024, 50, True, False

    def __init__(self, best: float = 0.02) -> None:
        self.best, self.trained = best, list[tuple[float, int]]()

    def sets(self, seed: int, public: bool, alone: bool) -> Sets:
        return Sets(rows=None, groups=federations(1), tests=public)  # type: ignore[arg-type]

    def train(self, sets: Sets, sigma: float, way: Way, seed: int) -> Any:
        self.trained.append((way.rate, seed))
        return way.rate

    def scores(self, updates: Any, sets: Sets) -> Scores:
        return {"one": -abs(updates - self.best), "five": 0.0}


def test_rate_is_tuned_on_public_rows_and_work_is_kept(tmp_path: Any) -> None:
    pair, path = Known(), tmp_path / "work.jsonl"
    assert tuned(pair, Work(path), "4 bands").rate == 0.02
    assert [rate for rate, _ in pair.trained] == [0.01, 0.02, 0.04]
    assert all(line["public"] for line in Work(path).done)
    again = Known()
    assert tuned(again, Work(path), "4 bands").rate == 0.02
    assert not again.trained


@pytest.mark.parametrize(("best", "federated"), [(0.02, 2 * 12), (0.01, 12)], ids=["wins", "does-not"])
def test_federations_train_in_ways_that_win(tmp_path: Any, best: float, federated: int) -> None:
    work = Work(tmp_path / "work.jsonl")
    measured(Known(best), work, ["4 bands"], seeds=4)
    private = [line for line in work.done if not line["public"]]
    assert len([line for line in private if line["alone"]]) == 5 * 12
    assert len([line for line in private if not line["alone"]]) == federated


def lines(way: str, ones: Sequence[float]) -> list[dict[str, Any]]:
    kind = {"way": way, "epsilon": 1.0, "rate": 0.01, "sigma": 1.0, "public": False, "alone": True}
    return [{**kind, "seed": seed, "one": one} for seed, one in enumerate(ones)]


def test_gains_are_paired_by_seed() -> None:
    runs = lines("present", [0.1, 0.5, 0.3, 0.2]) + lines("better", [0.2, 0.6, 0.4, 0.3])
    runs += lines("other", [0.3, 0.4, 0.3, 0.2])
    runs += lines("screened", [0.9, 0.9])
    present, better, other, screened = summary(runs, less_is_better=False)
    assert "one_gain" not in present
    assert better["one_gain"] == [0.1, 0.0]
    assert better["one_wins"]
    assert other["one_gain"][0] == pytest.approx(0.025, abs=1e-4)
    assert not other["one_wins"]
    assert not screened["one_wins"]  # two seeds decide nothing
    assert summary(runs, less_is_better=True)[1]["one_gain"] == [-0.1, 0.0]


def test_federations_take_turns() -> None:
    assert federations(2, alone=True) == [0, 1]
    assert federations(2) == [0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 3]


def test_noise_falls_with_epsilon() -> None:
    assert calibrated(PRESENT, 0.5, 1e-5, 1024, 3) > calibrated(PRESENT, 8.0, 1e-5, 1024, 3)
    assert math.isfinite(calibrated(PRESENT, 0.5, 1e-5, 1024, 3))
