"""Upper bounds of the mutual information, against mechanisms whose mutual information is known or integrated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradtf_fl.errors import ConfigError
from gradtf_fl.privacy.accounting.events import DpEvent
from gradtf_fl.theory import (
    approximate_dp,
    dp_sgd,
    gaussian_channel,
    least,
    noisy_iterations,
    pure_dp,
    renyi_dp,
    row_entropy,
    storage,
    without_noise,
    zcdp,
)
from gradtf_fl.theory import mutual_information as mi

Masses = list[tuple[float, list[tuple[float, float]]]]
"""For each data set: its probability, and the (probability, mean) of the Gaussians that its release is a mixture of."""


def integrated(released: Masses, sigma: float) -> float:
    """I(D; W) in nats of a release W that is a mixture of Normal(mean, sigma^2), by integration over W."""
    means = [mean for _, parts in released for _, mean in parts]
    x = np.linspace(min(means) - 12 * sigma, max(means) + 12 * sigma, 20_001)

    def entropy(parts: list[tuple[float, float]]) -> float:
        density = sum(p * np.exp(-0.5 * ((x - mean) / sigma) ** 2) for p, mean in parts) / (
            sigma * math.sqrt(2 * math.pi)
        )
        return float(np.trapezoid(-density * np.log(np.maximum(density, 1e-300)), x))

    together = [(chance * p, mean) for chance, parts in released for p, mean in parts]
    return entropy(together) - sum(chance * entropy(parts) for chance, parts in released)


def coins(rows: int, q: float = 1.0) -> Masses:
    """Each row is +1 or -1, and enters the released sum with probability q."""
    found = []
    for signs in itertools.product((1, -1), repeat=rows):
        parts = [
            (
                math.prod(q if taken else 1 - q for taken in drawn),
                float(sum(s for s, t in zip(signs, drawn, strict=True) if t)),
            )
            for drawn in itertools.product((True, False), repeat=rows)
        ]
        found.append((0.5**rows, [part for part in parts if part[0] > 0]))
    return found


@given(rows=st.integers(1, 1000), spread=st.floats(0.1, 10), noise=st.floats(0.1, 10), dimension=st.integers(1, 50))
def test_noisy_mean_of_gaussian_rows_meets_the_channel_bound(
    rows: int, spread: float, noise: float, dimension: int
) -> None:
    """The mean of n rows Normal(0, spread^2 I_d), plus noise: I = d/2 log(1 + spread^2 / (n noise^2)), exactly."""
    known = dimension / 2 * math.log(1 + spread**2 / (rows * noise**2))
    bound = gaussian_channel(power=dimension * spread**2 / rows, noise=noise, dimension=dimension)
    assert bound.nats == pytest.approx(known)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 4), sigma=st.floats(0.3, 5), q=st.floats(0.05, 1))
def test_bounds_of_one_dp_step_lie_above_the_truth(rows: int, sigma: float, q: float) -> None:
    truth = integrated(coins(rows, q), sigma)
    event = DpEvent(sigma, q, 1)
    assert truth <= mi.dp_sgd_rows([event], rows).nats + 1e-9
    assert truth <= mi.dp_sgd_channel([event], rows, 1).nats + 1e-9
    if q == 1:
        assert truth <= zcdp(1 / (2 * sigma**2), rows).nats + 1e-9


def test_the_row_bound_is_tight_where_noise_is_strong() -> None:
    """Whole batches, much noise: I = n / (2 sigma^2) but for terms of higher order, and so are all three bounds."""
    truth = integrated(coins(4), 20.0)
    assert truth == pytest.approx(4 / 800, rel=0.02)
    event = DpEvent(20.0, 1.0, 1)
    assert mi.dp_sgd_rows([event], 4).nats == pytest.approx(4 / 800)
    assert mi.dp_sgd_rows([event], 4).nats == pytest.approx(zcdp(1 / 800, 4).nats)


def test_copies_of_one_row_break_the_bound_for_independent_rows() -> None:
    """30 copies of one coin: n rho is below the truth, n^2 rho and the channel's capacity are above it."""
    rows, sigma = 30, 10.0
    truth = integrated([(0.5, [(1.0, float(rows))]), (0.5, [(1.0, float(-rows))])], sigma)
    rho = 1 / (2 * sigma**2)
    assert zcdp(rho, rows).nats < truth < zcdp(rho, rows, independent=False).nats
    assert truth < mi.dp_sgd_channel([DpEvent(sigma, 1.0, 1)], rows, 1).nats


@given(epsilon=st.floats(0, 20), rows=st.integers(1, 1000))
def test_randomized_response_stays_below_the_pure_dp_bound(epsilon: float, rows: int) -> None:
    true = 1 / (1 + math.exp(-epsilon))
    entropy = -sum(p * math.log(p) for p in (true, 1 - true) if p > 0)
    bound = pure_dp(epsilon, rows).nats
    assert rows * (math.log(2) - entropy) <= bound + 1e-9
    assert bound <= rows * min(epsilon, epsilon**2 / 2) + 1e-9


@given(epsilon=st.floats(0.01, 10))
def test_pure_dp_is_the_divergence_of_the_two_answers_of_randomized_response(epsilon: float) -> None:
    true = 1 / (1 + math.exp(-epsilon))
    known = true * math.log(true / (1 - true)) + (1 - true) * math.log((1 - true) / true)
    assert pure_dp(epsilon, 1).nats == pytest.approx(known)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 1.0, 30.0, 1e4])
def test_divergence_of_a_whole_batch_is_that_of_two_gaussians(sigma: float) -> None:
    assert mi.subsampled_gaussian_divergence(sigma, 1.0) == pytest.approx(1 / (2 * sigma**2), rel=1e-9)
    assert mi.subsampled_gaussian_divergence(sigma, 0.0) == 0


@pytest.mark.parametrize("sigma", [0.7, 1.0, 3.0, 1e3])
def test_divergence_of_a_small_sample_is_quadratic_in_q(sigma: float) -> None:
    """KL = q^2 / 2 (e^(1 / sigma^2) - 1) + O(q^3): half the chi-square divergence."""
    q = 1e-4
    assert mi.subsampled_gaussian_divergence(sigma, q) == pytest.approx(q**2 / 2 * math.expm1(1 / sigma**2), rel=5e-3)


def test_dp_sgd_adds_up_over_events_and_takes_the_tighter_bound() -> None:
    events = [DpEvent(1.0, 0.1, 20), DpEvent(2.0, 0.05, 30)]
    rows = [mi.dp_sgd_rows([event], 100).nats for event in events]
    assert mi.dp_sgd_rows(events, 100).nats == pytest.approx(sum(rows))
    # E[B^2] = (.1 * 100)^2 + 100 * .1 * .9 = 109 and 25 + 4.75 = 29.75; d = 3
    by_hand = 20 * 1.5 * math.log(1 + 109 / 3) + 30 * 1.5 * math.log(1 + 29.75 / (3 * 4))
    assert mi.dp_sgd_channel(events, 100, 3).nats == pytest.approx(by_hand)
    assert dp_sgd(events, 100, 3).nats == pytest.approx(min(sum(rows), by_hand))
    many = DpEvent(0.3, 1.0, 5)  # little noise, few values: there the channel is tighter
    assert dp_sgd([many], 100, 1).nats == mi.dp_sgd_channel([many], 100, 1).nats < mi.dp_sgd_rows([many], 100).nats


def test_noisy_iterations_by_hand() -> None:
    found = noisy_iterations([(2.0, 1.0), (1.0, 0.5)], dimension=4)
    assert found.nats == pytest.approx(2 * math.log(2) + 2 * math.log(2))
    assert noisy_iterations([(2.0, 1.0), (1.0, 0.0)], dimension=4).nats == math.inf


def test_without_noise_there_is_storage_and_entropy() -> None:
    none = without_noise()
    assert none.nats == math.inf
    assert "entropy of W" in none.because
    assert dp_sgd([DpEvent(1.0, 0.1, 5), DpEvent(0.0, 0.1, 1)], 10, 3) == none
    assert storage(3, 16).nats == pytest.approx(48 * math.log(2))
    assert row_entropy(5, 8).nats == pytest.approx(15 * math.log(2))
    assert least(none, storage(3), row_entropy(5, 8)) == row_entropy(5, 8)


def test_epsilon_delta_alone_bounds_nothing() -> None:
    assert approximate_dp(1.0, 1e-5, 10).nats == math.inf
    assert approximate_dp(1.0, 0.0, 10) == pure_dp(1.0, 10)
    assert renyi_dp(0.25, 8).nats == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda: storage(0),
        lambda: row_entropy(5, 0.5),
        lambda: gaussian_channel(-1, 1, 1),
        lambda: pure_dp(math.nan, 1),
        lambda: zcdp(0.1, 0),
        lambda: mi.dp_sgd_rows([DpEvent(1.0, 0.1, 1)], 0),
        lambda: mi.subsampled_gaussian_divergence(0.0, 0.5),
        lambda: mi.subsampled_gaussian_divergence(1.0, 1.5),
        lambda: least(),
    ],
)
def test_bad_arguments_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        call()
