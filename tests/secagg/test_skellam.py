"""The sampler's distribution: exactly from its tables, and by statistics of what it draws (keys are fixed)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from gradtf_fl.secagg.noise.skellam import (
    MAX_VARIANCE,
    MIN_VARIANCE,
    SkellamNoise,
    log_probability,
    partition,
    tail_bound,
)
from gradtf_fl.secagg.quantization import CHUNK

KEY = bytes(range(32))
VARIANCES = [MIN_VARIANCE, 333.3, 4096.0, 7.5e6, 1.1e11, MAX_VARIANCE]


def drawn(variance: float, size: int, key: bytes = KEY) -> np.ndarray:  # type: ignore[type-arg]
    return SkellamNoise(key, variance).take(size)


# -- the probabilities ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [20.0, 21.7, 50.0, 400.0, 12345.6])
def test_probabilities_are_bessel_functions(variance: float) -> None:
    integers = np.arange(int(13 * math.sqrt(variance)))
    exact = np.log(special.ive(integers, variance))
    np.testing.assert_allclose(log_probability(integers, variance), exact, rtol=0, atol=5e-13)
    np.testing.assert_array_equal(log_probability(-integers, variance), log_probability(integers, variance))


@pytest.mark.parametrize("variance", [20.0, 1e3, 1e6])
def test_probabilities_obey_the_recurrence(variance: float) -> None:
    """I_(k-1)(v) - I_(k+1)(v) = (2 k / v) I_k(v) holds at every v, also where scipy is less exact."""
    k = np.arange(1, int(8 * math.sqrt(variance)), max(1, int(math.sqrt(variance) / 7)))
    own = log_probability(k, variance)
    difference = np.exp(log_probability(k - 1, variance) - own) - np.exp(log_probability(k + 1, variance) - own)
    np.testing.assert_allclose(difference, 2 * k / variance, rtol=0, atol=2e-13)


@pytest.mark.parametrize("variance", [1e10, MAX_VARIANCE])
def test_probabilities_of_wide_noise_are_gaussian_to_first_order(variance: float) -> None:
    k = (np.arange(9) * math.sqrt(variance)).astype(np.int64)
    normal = -(k.astype(float) ** 2) / (2 * variance) - 0.5 * math.log(2 * math.pi * variance)
    first_order = (k.astype(float) ** 4 / (24 * variance**3)) - k.astype(float) ** 2 / (4 * variance**2)
    np.testing.assert_allclose(log_probability(k, variance), normal + first_order, rtol=0, atol=1e-9)


@pytest.mark.parametrize("variance", [20.0, 700.0, 5000.0, 40000.0])
def test_the_tables_give_exactly_the_skellam_distribution(variance: float) -> None:
    """Multiplies out what `candidates` does: block weight, place in the block, acceptance."""
    table = partition(variance)
    width, capacity = 1 << table.shift, 1 << 53
    weights = [int(kept) for kept in table.threshold]
    assert max(weights) <= capacity
    for column, alias in enumerate(table.alias):
        weights[alias] += capacity - int(table.threshold[column]) if alias != column else 0
    assert sum(weights) == 2**64
    integers = (np.arange(-1024, 1024) * width)[:, None] + np.arange(width)
    accepted = np.exp(log_probability(integers, variance) - table.log_top[:, None])
    mass = np.array(weights)[:, None] * 2.0**-64 / width * accepted
    exact = special.ive(np.abs(integers), variance)
    np.testing.assert_allclose((mass / mass.sum())[exact > 1e-9], exact[exact > 1e-9], rtol=2e-10)
    assert np.abs(mass / mass.sum() - exact).sum() < 1e-12
    surely = table.sure[:, None] * 2.0**-table.level_bits
    assert (surely <= accepted).all()
    assert (surely >= accepted.min(axis=1, keepdims=True) - 1e-11).all()


@pytest.mark.parametrize("variance", VARIANCES)
def test_few_candidates_are_rejected(variance: float) -> None:
    assert variance < 4096 or 32 <= math.sqrt(variance) / 2 ** partition(variance).shift < 64
    assert partition(variance).level_bits >= 42

    class Stream:
        def update(self, zeros: bytes) -> bytes:
            return np.random.default_rng(0).bytes(len(zeros))

    _, rejected = partition(variance).candidates(Stream(), CHUNK)  # type: ignore[arg-type]
    assert rejected.size < 0.03 * CHUNK


# -- what is drawn ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", VARIANCES)
def test_moments(variance: float) -> None:
    """Mean 0, variance v, fourth moment 3 v^2 + v, each within 4 standard errors of a million draws."""
    size = 1_000_000
    scaled = drawn(variance, size) / math.sqrt(variance)
    assert abs(scaled.mean()) < 4 / math.sqrt(size)
    assert abs((scaled**2).mean() - 1) < 4 * math.sqrt((2 + 1 / variance) / size)
    assert abs((scaled**3).mean()) < 4 * math.sqrt(15.0 * (1 + 2 / variance) / size)
    assert abs((scaled**4).mean() - 3 - 1 / variance) < 4 * math.sqrt(96.0 * (1 + 3 / variance) / size)


@pytest.mark.parametrize("variance", [20.0, 900.0, 5000.0, 1e5])
def test_chi_square_against_the_skellam_distribution(variance: float) -> None:
    size = 400_000
    reach = int(3.5 * math.sqrt(variance))
    edges = np.arange(-reach, reach + 1)
    expected = stats.skellam.pmf(edges, variance / 2, variance / 2) * size
    values = drawn(variance, size)
    counts = np.bincount(np.clip(values, -reach - 1, reach + 1) + reach + 1, minlength=2 * reach + 3)
    outside = (size - expected.sum()) / 2
    result = stats.chisquare(counts, [outside, *expected, outside])
    assert 0.001 < result.pvalue < 0.999


def test_neighbouring_draws_and_blocks_are_uncorrelated() -> None:
    values = drawn(1e6, 4 * CHUNK) / 1e3
    for lag in (1, 2, CHUNK, 2 * CHUNK):
        pairs = values[:-lag] @ values[lag:] / (values.size - lag)
        assert abs(pairs) < 4.5 / math.sqrt(values.size - lag)


def test_the_sum_of_shares_has_the_sum_of_variances() -> None:
    size, shares, variance = 1_000_000, 3, 5.5e4
    total = sum(drawn(variance, size, bytes([i]) * 32) for i in range(shares))
    assert total.var() == pytest.approx(shares * variance, rel=0.005)  # 3.5 standard errors
    assert ((total / math.sqrt(shares * variance)) ** 4).mean() == pytest.approx(3.0, rel=0.015)


def test_the_stream_does_not_depend_on_the_sizes_taken() -> None:
    whole = drawn(5000.0, 3 * CHUNK)
    noise = SkellamNoise(KEY, 5000.0)
    sizes = [1, 0, CHUNK, 7, CHUNK - 8, CHUNK]
    np.testing.assert_array_equal(np.concatenate([noise.take(size) for size in sizes]), whole)
    assert whole.dtype == np.int64
    assert not np.array_equal(whole[:CHUNK], whole[CHUNK : 2 * CHUNK])
    assert not np.array_equal(whole[:100], drawn(5000.0, 100, bytes(32)))


@pytest.mark.parametrize("variance", [0.0, -1.0, 19.999, math.nan])
def test_coarse_noise_is_refused(variance: float) -> None:
    with pytest.raises(ValueError, match="more bits"):
        SkellamNoise(KEY, variance)


def test_other_arguments_are_refused() -> None:
    for variance in (2 * MAX_VARIANCE, math.inf):
        with pytest.raises(ValueError, match="above"):
            SkellamNoise(KEY, variance)
    with pytest.raises(ValueError, match="32 bytes"):
        SkellamNoise(b"short", 100.0)


@pytest.mark.parametrize("variance", [20.0, 200.0, 5000.0])
@pytest.mark.parametrize("exponent", [5.0, 20.0, 60.0])
def test_the_tail_bound_holds_and_is_not_loose(variance: float, exponent: float) -> None:
    t = math.ceil(tail_bound(variance, exponent))
    tail = special.ive(np.arange(t, t + 20 * int(math.sqrt(variance))), variance).sum()
    assert tail <= math.exp(-exponent)
    assert t <= 1.05 * math.sqrt(2 * variance * exponent) / (1 - exponent / (6 * variance)) + 1


def test_a_tail_bound_that_says_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="more bits"):
        tail_bound(10.0, 60.0)
