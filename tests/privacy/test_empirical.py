"""Bounds from guesses: the papers' formulas by hand, by linear programming and by simulation of known mechanisms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import beta

from gradtf_fl.privacy import DpEvent, noise_multiplier
from gradtf_fl.privacy.empirical import (
    Guesses,
    PrivacyCurve,
    attainable_bound,
    binomial_masses,
    curve_p_value,
    dp_sgd_curve,
    epsilon_lower_bound,
    least_refuted_noise,
    least_total,
    lower_bound,
    p_value,
    score_guesses,
)

DELTA = 1e-5


def pure_curve(epsilon: float, delta: float = 0.0) -> PrivacyCurve:
    """The curve of a mechanism of which one pair is known."""
    return PrivacyCurve(np.array([epsilon]), np.array([delta]))


def normal_cdf(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


@pytest.mark.parametrize(("canaries", "epsilon"), [(100, 2.78), (500, 4.40), (1000, 5.09)])
def test_attainable_when_half_of_the_canaries_are_guessed_and_all_are_right(canaries: int, epsilon: float) -> None:
    """At 95 % and delta 1e-5; guessing about all of them attains more."""
    assert attainable_bound(canaries, canaries // 2, DELTA, 0.95) == pytest.approx(epsilon, abs=0.005)
    assert attainable_bound(canaries, canaries, DELTA, 0.95) > epsilon + 0.65


def test_binomial_masses_by_hand() -> None:
    assert binomial_masses(3, 0.25) == pytest.approx(np.array([27, 27, 9, 1]) / 64)
    assert binomial_masses(0, 0.5) == pytest.approx([1])


def test_p_value_by_hand() -> None:
    """Two guesses, both right, three canaries, e^eps = 3: masses 1/16, 6/16, 9/16 for 0, 1, 2 right."""
    both, one = Guesses(3, 2, 2), Guesses(3, 2, 1)
    assert p_value(both, math.log(3), 0.0) == pytest.approx(9 / 16)
    # largest of (6/16) / 1 and (6/16 + 1/16) / 2, times 2 m delta
    assert p_value(both, math.log(3), 0.01) == pytest.approx(9 / 16 + 6 * 0.01 * 6 / 16)
    assert p_value(one, math.log(3), 0.01) == pytest.approx(15 / 16 + 6 * 0.01 * 1 / 16)
    assert p_value(Guesses(3, 2, 0), 1.0, 0.01) == pytest.approx(1.0)
    assert p_value(both, 1.0, 0.5) == 1.0


def test_steepest_slope_need_not_be_the_first() -> None:
    """r = 1000, q = .994: the mass just below 1000 rises before it falls."""
    guesses, epsilon = Guesses(1000, 500, 500), 5.09
    masses = binomial_masses(500, 1 / (1 + math.exp(-epsilon)))
    first = masses[500] + 2 * 1000 * DELTA * masses[499]
    assert p_value(guesses, epsilon, DELTA) > first + 5e-4


def test_the_bound_is_where_the_p_value_crosses() -> None:
    guesses = Guesses(400, 200, 170)
    bound = epsilon_lower_bound(guesses, DELTA, 0.95)
    assert p_value(guesses, bound, DELTA) <= 0.05 < p_value(guesses, bound + 1e-6, DELTA)
    # without delta it is Clopper and Pearson's limit for the share of right guesses
    share = beta.ppf(0.05, 170, 31)
    assert epsilon_lower_bound(guesses, 0.0, 0.95) == pytest.approx(math.log(share / (1 - share)), abs=1e-6)
    assert 0 < epsilon_lower_bound(guesses, 0.0, 0.95) - bound < 0.01


def test_guesses_by_chance_prove_nothing() -> None:
    event = DpEvent(1.0, 0.1, 20)
    bound = lower_bound(Guesses(1000, 500, 255), event, DELTA, 0.95)
    assert (bound.epsilon, bound.noise, bound.refutes) == (0.0, None, False)
    assert bound.curve_p == 1.0


def test_guesses_are_taken_from_both_ends_and_ties_by_position() -> None:
    scores = np.array([0.5, 3.0, -1.0, 0.5, 2.0, -2.0])
    included = np.array([True, True, True, False, False, False])
    assert score_guesses(scores, included, 2, 0) == Guesses(6, 2, 1)
    assert score_guesses(scores, included, 0, 2) == Guesses(6, 2, 1)
    assert score_guesses(scores, included, 2, 2) == Guesses(6, 4, 2)
    # the third highest is one of the two 0.5: the later one, which is out
    assert score_guesses(scores, included, 3, 0) == Guesses(6, 3, 1)
    assert score_guesses(scores, included, 3, 3) == Guesses(6, 6, 2)
    assert score_guesses(scores, included, 0, 0) == Guesses(6, 0, 0)


def test_impossible_games_are_refused() -> None:
    coins = np.array([True, False])
    with pytest.raises(ValueError, match="guesses about 2"):
        score_guesses(np.zeros(2), coins, 2, 1)
    with pytest.raises(ValueError, match="not a number"):
        score_guesses(np.array([0.0, np.nan]), coins, 1, 0)
    for wrong in ((2, 3, 1), (3, 2, 3), (0, 0, 0)):
        with pytest.raises(ValueError, match="right of"):
            Guesses(*wrong)


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("made", [10, 250])
def test_curve_and_binomial_agree_on_pure_epsilon_when_all_guesses_are_right(epsilon: float, made: int) -> None:
    guesses = Guesses(1000, made, made)
    expected = (1 / (1 + math.exp(-epsilon))) ** made
    assert curve_p_value(guesses, pure_curve(epsilon)) == pytest.approx(max(expected, 1e-15), rel=1e-4)
    assert p_value(guesses, epsilon, 0.0) == pytest.approx(expected)


@given(
    made=st.integers(1, 12),
    spare=st.integers(0, 8),
    share=st.floats(0, 1),
    epsilon=st.floats(0.1, 3),
    deltas=st.tuples(st.floats(0, 0.05), st.floats(0, 0.2)),
)
@settings(max_examples=60, deadline=None)
def test_no_distribution_beats_the_greedy_one(
    made: int, spare: int, share: float, epsilon: float, deltas: tuple[float, float]
) -> None:
    """The greatest tail by linear programming over all distributions that meet every constraint of the curve."""
    guesses = Guesses(made + spare, made, round(share * made))
    curve = PrivacyCurve(np.array([epsilon, epsilon / 3]), np.array([deltas[0], deltas[0] + deltas[1]]))
    count = np.arange(made + 1)
    bounds, limits = [], []
    for j in range(1, made + 1):
        right = np.where(count >= j, count, 0) / guesses.canaries
        wrong = np.where(count >= j - 1, made - count, 0) / guesses.canaries
        for slope, delta in zip(curve.epsilons, curve.deltas, strict=True):
            bounds += [right - math.exp(slope) * wrong, math.exp(slope) * right - wrong]
            limits += [delta, math.exp(slope) - 1 + delta]
    solved = linprog(np.where(count >= guesses.correct, -1.0, 0.0), bounds, limits, [np.ones(made + 1)], [1.0])
    assert curve_p_value(guesses, curve) == pytest.approx(-solved.fun, abs=1e-5)


def test_curve_of_one_gaussian_release_is_its_closed_form() -> None:
    """Balle and Wang 2018, theorem 8: delta(eps) of a Gaussian with sensitivity 1."""
    sigma = 1.3
    curve = dp_sgd_curve(DpEvent(sigma, 1.0, 1))
    for epsilon, delta in list(zip(curve.epsilons, curve.deltas, strict=True))[:120:20]:
        exact = normal_cdf(1 / (2 * sigma) - epsilon * sigma) - math.exp(epsilon) * normal_cdf(
            -1 / (2 * sigma) - epsilon * sigma
        )
        assert exact - 1e-9 <= delta <= exact + 1e-3


def test_least_other_is_the_gaussian_trade_off_curve() -> None:
    """An event of probability p has at least Phi(Phi^-1(p) - 1/sigma) with a neighbour."""
    curve = dp_sgd_curve(DpEvent(1.0, 1.0, 1))
    for z in (-1.0, 0.0, 1.0, 2.0):
        assert curve.least_other(normal_cdf(z)) == pytest.approx(normal_cdf(z - 1), abs=2e-3)
        assert curve.least_other(normal_cdf(z)) <= normal_cdf(z - 1) + 1e-9
    assert curve.least_other(0.0) == 0.0
    assert curve.least_other(1.0) == pytest.approx(1.0, abs=2e-3)


def test_steps_without_noise_have_no_curve() -> None:
    with pytest.raises(ValueError, match="without noise"):
        dp_sgd_curve(DpEvent(0.0, 0.1, 5))


def games(noise: float, count: int, canaries: int = 200, seed: int = 0) -> list[Guesses]:
    """The best attack on one Gaussian release: each canary moves its own coordinate, a third guessed each way."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        coins = rng.random(canaries) < 0.5
        made.append(score_guesses(coins + noise * rng.normal(size=canaries), coins, canaries // 3, canaries // 3))
    return made


@pytest.mark.parametrize("sigma", [0.6, 1.0, 2.0])
def test_true_claims_are_seldom_refuted_and_false_ones_always(sigma: float) -> None:
    event = DpEvent(sigma, 1.0, 1)
    curve, confidence = dp_sgd_curve(event), 0.95
    claimed = [least_total(game, curve, 1 - confidence) > 1 for game in games(sigma, 400)]
    assert sum(claimed) <= 20  # 5 %
    lying = [least_total(game, curve, 1 - confidence) > 1 for game in games(sigma / 4, 50)]
    assert all(lying)


def test_pure_claims_are_seldom_refuted_though_the_attack_is_the_best() -> None:
    """Randomised response of 200 coins attains the binomial exactly: refuted in up to, and near, 5 %."""
    epsilon, rng = 1.0, np.random.default_rng(1)
    right = rng.binomial(200, 1 / (1 + math.exp(-epsilon)), 4000)
    refuted = np.mean([p_value(Guesses(200, 200, int(v)), epsilon, 0.0) <= 0.05 for v in right])
    assert 0.03 < refuted <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 4000)


@pytest.mark.parametrize("correct", [300, 380, 460, 500])
def test_noise_bound_and_p_value_tell_the_same(correct: int) -> None:
    event = DpEvent(noise_multiplier(4.0, DELTA, 0.1, 20), 0.1, 20)
    guesses = Guesses(1000, 500, correct)
    noise = least_refuted_noise(guesses, event, 0.95)
    p = curve_p_value(guesses, dp_sgd_curve(event))
    assert (noise is not None and noise <= event.sigma) == (p <= 0.05)
    if noise is not None and noise > event.sigma / 4:
        below = replace(event, sigma=noise * 2 ** (-1 / 8))
        assert curve_p_value(guesses, dp_sgd_curve(replace(event, sigma=noise))) <= 0.05
        assert curve_p_value(guesses, dp_sgd_curve(below)) > 0.05


def test_the_curve_convicts_where_the_pair_cannot() -> None:
    """500 right guesses attain epsilon 4.7 by the pair; against a claim of 8, the curve of DP-SGD refutes."""
    event = DpEvent(noise_multiplier(8.0, DELTA, 0.1, 20), 0.1, 20)
    bound = lower_bound(Guesses(1000, 500, 500), event, DELTA, 0.99)
    assert bound.pair < 5 < 7.9 < bound.curve
    assert bound.refutes
    assert bound.pair_p > 0.1 > 0.01 > bound.curve_p
