"""The estimated divergence: hand-computed pieces, synthetic sides with a known KL, and folds that do not leak."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import Row
from gradtf_fl.theory import divergence as dv
from gradtf_fl.theory import estimate
from gradtf_fl.theory.features import Features, bag, unit_rows


def gaussians(shift: float, rows: int, seed: int) -> tuple[Features, Features]:
    """Normal((shift, 0), I) and Normal(0, I): KL is shift^2 / 2, and AUC Phi(shift / sqrt 2)."""
    rng = np.random.default_rng([seed, 1])
    private = rng.normal(size=(rows, 2)).astype(np.float32)
    private[:, 0] += shift
    return private, rng.normal(size=(rows, 2)).astype(np.float32)


def test_pieces_by_hand() -> None:
    private, public = np.array([1.0, 3.0]), np.array([0.0, math.log(3)])
    assert dv.donsker_varadhan(private, public) == pytest.approx(2 - math.log(2))
    assert dv.area(private, public) == 0.75  # of the pairs only (1, log 3) is in the wrong order
    assert dv.area(np.array([1.0]), np.array([1.0])) == 0.5
    even = np.array([0.0])
    assert dv.jensen_shannon(even, even) == pytest.approx(0)
    assert dv.jensen_shannon(np.array([50.0]), np.array([-50.0])) == pytest.approx(math.log(2))


def test_known_gaussians() -> None:
    found = estimate(*gaussians(1.0, 2000, 0))
    assert found.kl.value == pytest.approx(0.5, abs=0.06)
    assert found.kl.low < 0.5
    assert found.auc.value == pytest.approx(0.7602, abs=0.02)
    x = np.linspace(-12, 13, 10_001)
    first, second = (np.exp(-((x - mean) ** 2) / 2) / math.sqrt(2 * math.pi) for mean in (0, 1))
    middle = (first + second) / 2
    js = float(np.trapezoid(first * np.log(first / middle) + second * np.log(second / middle), x)) / 2
    assert found.js.value == pytest.approx(js, abs=0.015)
    assert found.js.low < js
    assert not found.saturated


def test_on_average_the_estimate_is_not_above_the_truth() -> None:
    kl = [estimate(*gaussians(1.0, 400, seed), seed=seed).kl.value for seed in range(12)]
    assert np.mean(kl) < 0.5 + 2 * np.std(kl) / math.sqrt(len(kl))
    assert np.mean(kl) > 0.4


def test_one_distribution_on_both_sides() -> None:
    found = estimate(*gaussians(0.0, 1000, 0))
    assert found.auc.low < 0.5 < found.auc.high
    assert found.kl.low == 0
    assert found.js.low == 0


def test_text_with_a_known_divergence() -> None:
    """One word a row, drawn with probabilities (.7, .2, .1) here and (.2, .3, .5) there: KL is .634."""
    rng = np.random.default_rng(0)
    here, there = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5])
    words = np.array(["red", "green", "blue"])
    sides = [
        unit_rows([bag(Row(str(word), "x")) for word in rng.choice(words, 1500, p=p)], dimension=64)
        for p in (here, there)
    ]
    found = estimate(sides[0], sides[1])
    assert found.kl.value == pytest.approx(float((here * np.log(here / there)).sum()), abs=0.08)


def test_far_apart_the_figure_says_so() -> None:
    """KL is 50 nats, which no 300 rows can show."""
    found = estimate(*gaussians(10.0, 300, 0))
    assert found.saturated
    assert found.auc.value > 0.999
    assert found.kl.value < 2 * dv.MOST_LOG_ODDS


def test_rows_of_one_source_do_not_give_each_other_away() -> None:
    """Both sides draw passages from one distribution; each passage has four rows."""
    rng = np.random.default_rng(0)
    passages = rng.normal(size=(200, 150)).astype(np.float32)
    rows = np.repeat(passages, 4, axis=0) + 0.1 * rng.normal(size=(800, 150)).astype(np.float32)
    numbers = np.repeat(np.arange(200), 4)
    together = estimate(rows[:400], rows[400:], (numbers[:400], numbers[400:]))
    leaking = estimate(rows[:400], rows[400:])
    assert together.auc.value < 0.6 < 0.9 < leaking.auc.value


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=120, max_size=200), st.integers(0, 99))
def test_folds_keep_sources_together(rows: list[tuple[int, bool]], seed: int) -> None:
    origin = np.array([number for number, _ in rows])
    is_private = np.array([private for _, private in rows])
    if is_private.all() or not is_private.any():
        return
    fold = dv.deal(origin, is_private, np.random.default_rng(seed))
    for number in np.unique(origin):
        assert len(np.unique(fold[origin == number])) == 1


def test_every_fold_has_its_share_of_both_sides() -> None:
    is_private = np.arange(250) < 50
    fold = dv.deal(np.arange(250), is_private, np.random.default_rng(0))
    assert np.bincount(fold[is_private]).tolist() == [10] * 5
    assert np.bincount(fold[~is_private]).tolist() == [40] * 5


def test_the_same_seed_gives_the_same_figures() -> None:
    sides = gaussians(0.5, 200, 0)
    assert estimate(*sides, seed=3) == estimate(*sides, seed=3)
    assert estimate(*sides, seed=3) != estimate(*sides, seed=4)


def test_unusable_features_are_refused() -> None:
    private, public = gaussians(1.0, 60, 0)
    with pytest.raises(ConfigError) as caught:
        estimate(private[:49], public[:10, :1])
    assert [problem.split()[0] for problem in caught.value.problems] == ["private:", "public:", "features"]
    private[0, 0] = math.nan
    with pytest.raises(ConfigError, match="NaN"):
        estimate(private, public)
