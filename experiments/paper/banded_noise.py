"""Banded matrix factorization: noise that later steps take back in part (Choquette-Choo et al. 2023, BandMF).

A round releases C G + Z, with G [steps, size] the sums of clipped gradients and Z independent Gaussian noise. The
optimizer takes C^-1 (C G + Z) = G + C^-1 Z: every step's own sum, with noise that is correlated over steps. C is lower
triangular with ``bands`` diagonals, its columns have norm 1.

The sampler is cyclic: every row belongs to one of ``bands`` groups, drawn for each row by itself, and step t draws,
independently with probability q' = min(1, bands * batch / rows), from the rows of group t mod bands alone. A row's
steps are then at least ``bands`` apart, the columns of C at these steps share no line, and what the row sees is the
Poisson-subsampled Gaussian mechanism with q' and ceil(steps / bands) releases.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradtf_fl.privacy import DpEvent

Matrix = NDArray[np.float64]


def sums_workload(steps: int, momentum: float = 0.0) -> Matrix:
    """What is to be accurate [steps, steps]: all sums of gradients, or where SGD with momentum stands after each."""
    powers = np.subtract.outer(np.arange(steps), np.arange(steps))
    kept = np.where(powers >= 0, momentum ** np.maximum(powers, 0).astype(float), 0.0)
    return np.tril(np.ones((steps, steps))) @ kept


def strategy(steps: int, bands: int, momentum: float = 0.0) -> Matrix:
    """C [steps, steps]: lower triangular, ``bands`` diagonals, columns of norm 1, least mean squared error found.

    The error is that of `sums_workload` A under the noise: |A C^-1|^2, by L-BFGS from the identity.

    Raises:
        ValueError: bands outside 1..steps.
    """
    if not 1 <= bands <= steps:
        raise ValueError(f"bands must lie in 1..{steps}, not {bands}")
    if bands == 1:
        return np.eye(steps)
    workload = torch.from_numpy(sums_workload(steps, momentum))
    line, column = np.nonzero(np.tri(steps) - np.tri(steps, k=-bands))
    below = line > column
    place = torch.from_numpy(line[below]), torch.from_numpy(column[below])
    # relative to a diagonal of 1, so that no C is singular
    free = torch.zeros(int(below.sum()), dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([free], max_iter=500, history_size=20, line_search_fn="strong_wolfe")

    def matrix() -> Tensor:
        whole = torch.eye(steps, dtype=torch.float64).index_put(place, free)
        normalised: Tensor = whole / torch.linalg.vector_norm(whole, dim=0)
        return normalised

    def error() -> Tensor:
        search.zero_grad()
        solved = torch.linalg.solve_triangular(matrix().mT, workload.mT, upper=True)
        squared: Tensor = solved.square().sum()
        squared.backward()  # type: ignore[no-untyped-call]
        return squared

    search.step(error)  # type: ignore[no-untyped-call]
    found: Matrix = matrix().detach().numpy()
    return found


def error_of(matrix: Matrix, momentum: float = 0.0) -> float:
    """Root mean squared error of the workload under C's noise, in units of sigma."""
    steps = len(matrix)
    return float(np.linalg.norm(sums_workload(steps, momentum) @ np.linalg.inv(matrix)) / math.sqrt(steps))


class CorrelatedNoise:
    """C^-1 Z step by step, with a memory of ``bands - 1`` earlier steps' noise.

    Line t of C X = Z gives X_t = (Z_t - sum_{t - bands < s < t} C[t, s] X_s) / C[t, t].
    """

    def __init__(self, matrix: Matrix) -> None:
        line, column = np.nonzero(matrix)
        self._matrix, self._step, self._kept = matrix, 0, int((line - column).max())
        self._earlier: list[Tensor] = []

    def next(self, fresh: Tensor) -> Tensor:
        """This step's noise from ``fresh`` standard normal draws of the same shape."""
        line, noise = self._matrix[self._step], fresh
        for back, earlier in enumerate(reversed(self._earlier), 1):
            noise = noise - float(line[self._step - back]) * earlier
        noise = noise / float(line[self._step])
        self._earlier = [*self._earlier, noise][max(0, len(self._earlier) + 1 - self._kept) :]
        self._step += 1
        return noise


class CyclicSampler:
    """Which rows a step of one round draws. With one band it is the Poisson sampler.

    The group of each row is drawn by itself: a row that comes or goes moves no other.
    """

    def __init__(self, rng: np.random.Generator, rows: int, q: float, bands: int) -> None:
        self._rng, self._q, self._bands, self._step = rng, q, bands, 0
        self._group = rng.integers(bands, size=rows) if bands > 1 else np.zeros(rows, np.int64)
        self._last = np.full(rows, -bands)

    def draw(self) -> NDArray[np.bool_]:
        """Whether the next step takes each row [rows].

        Raises:
            AssertionError: a row would take part twice within ``bands`` steps, which the charge does not cover.
        """
        mine = self._group == self._step % self._bands
        drawn: NDArray[np.bool_] = mine & (self._rng.random(len(mine)) < self._q)
        assert (self._step - self._last[drawn] >= self._bands).all(), "a row took part within the bands"
        self._last[drawn] = self._step
        self._step += 1
        return drawn


def amplified(sigma: float, batch: int, rows: int, steps: int, bands: int) -> DpEvent:
    """What one row of a round of ``steps`` pays under the cyclic sampler."""
    return DpEvent(sigma, min(1.0, bands * batch / rows), -(-steps // bands))
