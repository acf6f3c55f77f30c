"""The guessing game of `empirical_audit` on one layer of 10^8 coordinates: rounding must not void the claim there.

No model: canaries are rows whose gradients are given. Each is dense, +-20 C / sqrt(size) in every coordinate, so that
its norm is a sum of ``size`` equal squares, the case in which float32 is worst. Canary i has its signs by bit i of the
coordinate's number, so canaries are orthogonal, and none has to be kept. One step draws all of them that are in
(q = 1); clipping, noise and Adam are the trainer's (`PrivateAdam`).

A canary is guessed to be in where the noisy sum's part along it is above 1/2 (in units of C). All are guessed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gradtf_fl.privacy import DpEvent, Guesses, LowerBound, epsilon_prv, lower_bound, noise_multiplier
from gradtf_fl.training.audit_plan import GRADIENT_NORM
from gradtf_fl.training.grad_samplers import GradSampler
from gradtf_fl.training.private_adam import PrivateAdam
from gradtf_fl.training.randomness import Draws

CANARIES = 12
DELTA = 1e-5
CONFIDENCE = 0.95
"""Of each of the two bounds that a game gives, 1 - (1 - confidence) / 2."""


@dataclass(frozen=True)
class WideGame:
    """What one game proved.

    Attributes:
        size: coordinates.
        clip: C.
        claimed: epsilon (PRV) that the noise is calibrated to.
        guesses: about `CANARIES` canaries.
        bound: lower bounds against the claim, also where the noise was left out.
        row_norms: of each canary that was in, as the sum has it, in units of C; at most 1. Only without noise.
    """

    size: int
    clip: float
    claimed: float
    guesses: Guesses
    bound: LowerBound
    row_norms: tuple[float, ...]


def wide_size(least: int) -> int:
    """Coordinates, at least so many, in which the canaries are orthogonal."""
    return max(1, -(-least >> CANARIES)) << CANARIES


def play_wide(size: int, clip: float, seed: int, epsilon: float = 0.5, noise: bool = True) -> WideGame:
    """Toss the coins, take one step with the claimed noise or without any, guess and bound.

    Args:
        size: coordinates, a multiple of 2^`CANARIES`; 40 bytes of memory each.
        clip: C.
        seed: of coins and noise.
        epsilon: the claim.
        noise: False plays the positive control, which has to be caught.
    """
    event = DpEvent(noise_multiplier(epsilon, DELTA, 1.0, 1), 1.0, 1)
    coins = np.random.default_rng([seed, 0x57494445]).integers(0, 2, CANARIES).astype(bool)
    layer = nn.Parameter(torch.zeros(size))
    optimizer = PrivateAdam(_Given(layer), event.sigma if noise else 0.0, clip, 1.0, 1e-3, Draws.make(seed))
    included = np.flatnonzero(coins)
    norms = []
    for number, canary in enumerate(included, 1):
        row = _canary(size, int(canary), GRADIENT_NORM * clip / math.sqrt(size))
        layer.grad_sample = row[None]  # type: ignore[attr-defined]
        optimizer.signal_skip_step(number < len(included))
        optimizer.step()
    if not len(included):
        layer.grad_sample = torch.zeros(0, size)  # type: ignore[attr-defined]
        optimizer.step()
    seen = [_along(optimizer.gradient, canary) / clip for canary in range(CANARIES)]
    if not noise:
        norms = [seen[int(canary)] for canary in included]
    correct = int(((np.array(seen) > 0.5) == coins).sum())
    guesses = Guesses(CANARIES, CANARIES, correct)
    bound = lower_bound(guesses, event, DELTA, 1 - (1 - CONFIDENCE) / 2)
    return WideGame(size, clip, epsilon_prv([event], DELTA), guesses, bound, tuple(norms))


class _Given(GradSampler):
    """No model: whoever plays puts the rows' gradients into ``grad_sample``."""

    def __init__(self, layer: nn.Parameter) -> None:
        self.parameters = {"layer": layer}


def _canary(size: int, bit: int, value: float) -> Tensor:
    row = torch.full((size,), value)
    row.view(-1, 2, 1 << bit)[:, 1].neg_()
    return row


def _along(gradient: Tensor, bit: int) -> float:
    """Inner product with the canary's direction of norm 1."""
    parts = gradient.view(-1, 2, 1 << bit).sum((0, 2), dtype=torch.float64)
    return float(parts[0] - parts[1]) / math.sqrt(gradient.numel())
