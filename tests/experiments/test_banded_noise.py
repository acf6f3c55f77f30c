"""Banded matrix factorization: C's algebra, the noise that it makes, and the sampler that its charge assumes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.paper.banded_noise import (
    CorrelatedNoise,
    CyclicSampler,
    Matrix,
    amplified,
    error_of,
    strategy,
    sums_workload,
)

SHAPES = ((6, 2), (12, 3), (13, 4), (9, 9))


def noise_matrix(matrix: Matrix) -> Matrix:
    """What `CorrelatedNoise` makes of each unit vector of fresh draws, as a matrix."""
    noise = CorrelatedNoise(matrix)
    return np.stack([noise.next(unit).numpy() for unit in torch.eye(len(matrix), dtype=torch.float64)])


@st.composite
def banded(draw: st.DrawFn) -> Matrix:
    """A banded lower triangular matrix with columns of norm 1."""
    steps = draw(st.integers(1, 10))
    bands = draw(st.integers(1, steps))
    entries = st.lists(st.floats(-1, 1), min_size=steps * steps, max_size=steps * steps)
    whole = np.triu(np.tril(np.array(draw(entries)).reshape(steps, steps)), k=1 - bands)
    np.fill_diagonal(whole, 1.0)
    normalised: Matrix = whole / np.linalg.norm(whole, axis=0)
    return normalised


@given(banded())
@settings(max_examples=60, deadline=None)
def test_noise_has_the_covariance_of_the_inverse(matrix: Matrix) -> None:
    made = noise_matrix(matrix)
    np.testing.assert_allclose(matrix @ made, np.eye(len(matrix)), atol=1e-9 * np.abs(made).max())
    inverse = np.linalg.inv(matrix)
    np.testing.assert_allclose(made @ made.T, inverse @ inverse.T, rtol=1e-6, atol=1e-6 * np.abs(made).max() ** 2)


@pytest.mark.parametrize(("steps", "bands"), SHAPES, ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.9], ids=str)
def test_strategy_is_banded_with_columns_of_norm_one(steps: int, bands: int, momentum: float) -> None:
    matrix = strategy(steps, bands, momentum)
    line, column = np.nonzero(matrix)
    assert (line >= column).all()
    assert (line - column).max() == bands - 1
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=0), 1.0, rtol=1e-12)


@pytest.mark.parametrize(("steps", "bands"), SHAPES, ids=str)
def test_steps_of_one_row_share_no_line(steps: int, bands: int) -> None:
    """So the sensitivity of k releases is sqrt(k), for gradients of any direction, as of independent releases."""
    matrix = strategy(steps, bands)
    for group in range(bands):
        mine = matrix[:, group::bands]
        assert (np.count_nonzero(mine, axis=1) <= 1).all()
        np.testing.assert_allclose(mine.T @ mine, np.eye(mine.shape[1]), atol=1e-12)


def test_strategy_lowers_the_error_and_more_bands_lower_it_more() -> None:
    errors = [error_of(strategy(20, bands)) for bands in (1, 2, 4, 20)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(math.sqrt(21 / 2))  # mean of 1..20
    # Fichtenberger, Henzinger, Upadhyay 2023: the square root of the prefix sums is within 1 + ln(n) / pi
    assert errors[-1] < 1 + math.log(20) / math.pi


def test_no_step_in_any_direction_improves_the_strategy() -> None:
    best, rng = strategy(8, 3), np.random.default_rng(0)
    for _ in range(50):
        near = best + 1e-3 * rng.normal(size=best.shape) * (best != 0)
        assert error_of(near / np.linalg.norm(near, axis=0)) >= error_of(best) - 1e-9


def test_workload_of_momentum() -> None:
    assert sums_workload(3, 0.5).tolist() == [[1, 0, 0], [1.5, 1, 0], [1.75, 1.5, 1]]


@pytest.mark.parametrize("bands", [0, 6], ids=str)
def test_strategy_refuses_bands_outside_the_steps(bands: int) -> None:
    with pytest.raises(ValueError, match=r"bands must lie in 1\.\.5"):
        strategy(5, bands)


@given(st.integers(1, 40), st.integers(1, 8), st.floats(0.05, 1.0), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_sampler_keeps_to_what_is_charged(steps: int, bands: int, q: float, seed: int) -> None:
    sampler = CyclicSampler(np.random.default_rng(seed), 50, q, bands)
    drawn = np.stack([sampler.draw() for _ in range(steps)])
    assert drawn.sum(0).max() <= amplified(1.0, 1, 50, steps, bands).steps
    for row in drawn.T:
        assert (np.diff(np.flatnonzero(row)) % bands == 0).all()


def test_sampler_draws_with_the_charged_probability() -> None:
    event = amplified(1.0, 64, 1024, 50, 4)
    sampler = CyclicSampler(np.random.default_rng(3), 200_000, event.q, 4)
    shares = [float(sampler.draw().mean()) for _ in range(8)]
    assert np.mean(shares) == pytest.approx(64 / 1024, rel=0.01)  # the batch, in the mean over groups


def test_sampler_refuses_a_row_within_the_bands() -> None:
    sampler = CyclicSampler(np.random.default_rng(0), 10, 1.0, 3)
    sampler.draw()
    sampler._group[:] = 1  # a fault: every row is in the next step's group too
    with pytest.raises(AssertionError, match="within the bands"):
        sampler.draw()


@pytest.mark.parametrize(
    ("steps", "bands", "q", "charged"),
    [(50, 1, 1 / 16, 50), (50, 4, 1 / 4, 13), (48, 4, 1 / 4, 12), (50, 32, 1.0, 2)],
    ids=["independent", "rounded-up", "whole", "no-amplification-left"],
)
def test_amplification(steps: int, bands: int, q: float, charged: int) -> None:
    event = amplified(2.0, 64, 1024, steps, bands)
    assert (event.sigma, event.q, event.steps) == (2.0, q, charged)
