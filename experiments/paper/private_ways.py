"""Ways to spend one epsilon: how rows are clipped, what noise is added, and what takes the noisy sum.

Every way trains the same adapters on the same rows in the same rounds, as `dp_fine_tune_stacked` does, and its noise
is calibrated with what it itself charges. `PRESENT` is what organizations run today.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from experiments.paper.banded_noise import CorrelatedNoise, CyclicSampler, amplified, strategy
from gradtf_fl.privacy import DpEvent, noise_multiplier
from gradtf_fl.tasks import TokenRows
from gradtf_fl.training import StackedAdapters

Clipping = Literal["fixed", "adaptive", "auto"]
Rule = Literal["adam", "adam-corrected", "momentum"]
QUANTILE, QUANTILE_RATE = 0.5, 0.2
"""Adaptive clipping (Andrew et al. 2021): the share of norms below the clip, and the step of its logarithm."""
COUNT_RATIO = 5.0
"""Noise on the count of clipped rows, twice its deviation, in noise multipliers of the step: 2 % of the budget."""
AUTO_STABILITY = 0.01
"""Gamma of AUTO-S (Bu et al. 2023): g / (|g| + gamma)."""
KEPT = 0.9
"""Momentum."""


@dataclass(frozen=True)
class Way:
    """One way to train privately.

    Attributes:
        clipping: every row's gradient to a fixed norm at most, to one that follows the rows' median norm, or to about
            norm 1 (AUTO-S).
        bands: of the correlated noise, see `banded_noise`; 1 is independent noise.
        only_b: the A matrices stay as they are.
        rule: Adam, Adam without the noise's share of its second moment (Tang et al. 2024), or SGD with momentum.
        steps: of a round.
        batch: expected rows of a step.
        rate: learning rate.
        clip: fixed clip, or where the adaptive one begins.
        decay: whether the rate falls linearly to zero in each round.
        average: share of a round's last steps whose mean is released in place of the last.
        floor: adam-corrected: smallest denominator, in deviations of the noise.
    """

    clipping: Clipping = "fixed"
    bands: int = 1
    only_b: bool = False
    rule: Rule = "adam"
    steps: int = 50
    batch: int = 64
    rate: float = 1e-2
    clip: float = 0.5
    decay: bool = False
    average: float = 0.0
    floor: float = 0.3

    def event(self, sigma: float, rows: int, rounds: int) -> DpEvent:
        """What a row pays for all rounds at noise multiplier ``sigma``."""
        one = amplified(sigma, self.batch, rows, self.steps, self.bands)
        return DpEvent(one.sigma, one.q, rounds * one.steps)


PRESENT = Way()


def calibrated(way: Way, epsilon: float, delta: float, rows: int, rounds: int) -> float:
    """Noise multiplier with which all rounds of ``way`` cost ``epsilon``."""
    event = way.event(1.0, rows, rounds)
    return noise_multiplier(epsilon, delta, event.q, event.steps)


def split_sigma(way: Way, sigma: float) -> tuple[float, float]:
    """(noise multiplier of the gradients, deviation of the count's noise), together a release with ``sigma``.

    A count of indicators that are moved to -1/2 and 1/2 has sensitivity 1/2, so that
    1 / sigma^2 = 1 / gradients^2 + 1 / (2 count)^2.
    """
    if way.clipping != "adaptive":
        return sigma, 0.0
    return sigma / math.sqrt(1 - COUNT_RATIO**-2), COUNT_RATIO * sigma / 2


@cache
def matrix_of(way: Way) -> np.ndarray:
    """The way's C."""
    return strategy(way.steps, way.bands, KEPT if way.rule == "momentum" else 0.0)


def train(
    stack: StackedAdapters,
    rows: TokenRows,
    groups: Sequence[int],
    sigma: float,
    way: Way,
    seed: Sequence[int],
    rounds: int = 3,
) -> Tensor:
    """Federations that train in ``way``: adapter k belongs to federation ``groups[k]``.

    As `dp_fine_tune_stacked`, which it equals for `PRESENT`: a fresh optimizer in every round, which begins at the mean
    of the adapter's federation.

    Returns:
        float32 [federations, blocks, block_dim]: the mean of each federation's updates after the last round.
    """
    adapters, per_set = len(groups), len(rows) // len(groups)
    rng = np.random.default_rng(list(seed))
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    group = torch.as_tensor(groups)
    sizes = torch.bincount(group).float()[:, None, None]
    trained = trained_mask(stack, way)
    theta = stack.initial.repeat(adapters, 1, 1)
    q = way.event(sigma, per_set, 1).q
    expected = q * per_set / way.bands
    gradient_sigma, count_deviation = split_sigma(way, sigma)
    clip = torch.full((adapters,), 1.0 if way.clipping == "auto" else way.clip)
    for _ in range(rounds):
        moved = Moved(way, gradient_sigma, expected)
        noise = CorrelatedNoise(matrix_of(way))
        sampler = CyclicSampler(rng, adapters * per_set, q, way.bands)
        tail, kept = torch.zeros_like(theta), 0
        for step in range(way.steps):
            chosen = np.flatnonzero(sampler.draw())
            owner = torch.from_numpy(chosen // per_set)
            gradients = row_gradients(stack, theta, owner, rows.take(torch.from_numpy(chosen)), trained)
            norms = gradients.flatten(1).norm(dim=1)
            factors = 1 / (norms + AUTO_STABILITY) if way.clipping == "auto" else clip_share(norms, clip[owner])
            total = torch.zeros_like(theta).index_add_(0, owner, gradients * factors[:, None, None])
            fresh = torch.randn(theta.shape, generator=generator) * trained
            total += gradient_sigma * noise.next(fresh)  # everything in units of the clip
            if way.clipping == "adaptive":
                counts = torch.zeros(adapters).index_add_(0, owner, (norms <= clip[owner]).float() - 0.5)
                counts += count_deviation * torch.randn(adapters, generator=generator)
                clip = clip * torch.exp(-QUANTILE_RATE * (counts / expected + 0.5 - QUANTILE))
            theta = theta - moved.by(total / expected, step)
            if step >= way.steps * (1 - way.average):
                tail, kept = tail + theta, kept + 1
        if kept:
            theta = tail / kept
        means = theta.new_zeros(len(sizes), *theta.shape[1:]).index_add_(0, group, theta) / sizes
        theta = means[group]
    return means - stack.initial


def trained_mask(stack: StackedAdapters, way: Way) -> Tensor:
    """1 where the way trains [blocks, block_dim]."""
    mask = stack.mask.float()
    if way.only_b:
        for slot in stack.layout.slots:
            if "lora_A" in slot.suffix:
                mask[:, slot.start : slot.stop] = 0
    return mask


def row_gradients(stack: StackedAdapters, theta: Tensor, owner: Tensor, rows: TokenRows, trained: Tensor) -> Tensor:
    """Each drawn row's gradient of its own adapter [rows, blocks, block_dim]."""
    if not len(owner):
        return theta.new_zeros(0, *theta.shape[1:])
    copies = theta[owner].requires_grad_(True)
    torch.autograd.backward(stack.row_losses(copies, rows).sum())
    assert copies.grad is not None
    return copies.grad * trained


def clip_share(norms: Tensor, clip: Tensor) -> Tensor:
    """What each row's gradient is multiplied with, in units of its clip: min(1 / C, 1 / norm)."""
    return (1 / (norms + 1e-6)).minimum(1 / clip)


class Moved:
    """The optimizer of one round: how far each noisy mean moves the adapter."""

    def __init__(self, way: Way, sigma: float, expected: float) -> None:
        self._way, self._noise = way, sigma / expected
        self._first: Tensor | float = 0.0
        self._second: Tensor | float = 0.0
        self._variances = (np.linalg.inv(matrix_of(way)) ** 2).sum(1)  # of each step's noise

    def by(self, gradient: Tensor, step: int) -> Tensor:
        """The step's move, to be taken off."""
        way = self._way
        rate = way.rate * (1 - step / way.steps) if way.decay else way.rate
        if way.rule == "momentum":
            self._first = KEPT * self._first + gradient
            return rate * self._first
        self._first = 0.9 * self._first + 0.1 * gradient
        self._second = 0.999 * self._second + 0.001 * gradient.square()
        first = self._first / (1 - 0.9 ** (step + 1))
        second = self._second / (1 - 0.999 ** (step + 1))
        if way.rule == "adam-corrected":
            noise = self._noise**2 * float(self._variances[: step + 1].mean())
            second = (second - noise).clamp(min=(way.floor * self._noise) ** 2)
        return rate * first / (second.sqrt() + 1e-8)
