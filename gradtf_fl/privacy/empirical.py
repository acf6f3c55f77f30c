"""What an auditor may conclude from guesses about canaries: lower bounds on epsilon, with confidence.

One-run auditing (Steinke, Nasr, Jagielski 2023, arXiv 2305.08846): each of m canary rows enters the training set
by a fair coin of its own; whoever sees the release guesses some of the coins. A private trainer limits how many
guesses can be right. Two limits are used, both for neighbours that differ in one row:

- one (epsilon, delta) pair: Corollary 5.4, a binomial tail with a correction for delta (`p_value`);
- the whole trade-off curve of DP-SGD (Mahloujifar, Melis, Chaudhuri 2024, arXiv 2410.22235; `curve_p_value`),
  which convicts with far fewer canaries when the claimed epsilon is large.

A bound near 0 proves nothing: the attack may have been weak. This file knows no model and loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.privacy.accounting.accountants import epsilon_prv
from gradtf_fl.privacy.accounting.events import DpEvent

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MAX_EPSILON = 50.0
"""No search goes higher."""
BISECTIONS = 60
CURVE_EPSILONS = np.concatenate([np.linspace(0.0, 12.0, 241), np.linspace(12.5, MAX_EPSILON, 76)])
"""Slopes at which a trade-off curve is kept; fewer would only make the bound looser."""
NOISE_STEPS = 8
"""Noise multipliers tried, for each doubling; the bound is rounded to the next one, towards more privacy."""
NOISE_OCTAVES = (-2, 4)
"""Doublings below and above the claimed noise multiplier in which the bound is searched."""


@dataclass(frozen=True)
class Guesses:
    """The outcome of a guessing game: ``correct`` of ``made`` guesses about ``canaries`` fair coins.

    Raises:
        ValueError: not 0 <= correct <= made <= canaries, or no canary.
    """

    canaries: int
    made: int
    correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.made <= self.canaries or self.canaries == 0:
            raise ValueError(f"{self.correct} right of {self.made} guesses about {self.canaries} canaries")


def score_guesses(scores: Floats, included: Bools, guess_in: int, guess_out: int) -> Guesses:
    """Guess "in" for the ``guess_in`` highest of the scores [m], "out" for the ``guess_out`` lowest, abstain elsewhere.

    Equal scores are ranked by their position, never by their coin.

    Raises:
        ValueError: more guesses than canaries, or a score that is not a number.
    """
    if min(guess_in, guess_out) < 0 or guess_in + guess_out > len(scores):
        raise ValueError(f"{guess_in} + {guess_out} guesses about {len(scores)} canaries")
    if np.isnan(scores).any():
        raise ValueError("a score is not a number")
    ranked = np.argsort(scores, kind="stable")
    right = int(included[ranked[len(scores) - guess_in :]].sum()) + int((~included[ranked[:guess_out]]).sum())
    return Guesses(len(scores), guess_in + guess_out, right)


def p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Largest probability, under (epsilon, delta)-DP, that at least this many guesses are right.

    Corollary 5.4 of Steinke et al.: with W ~ Binomial(r, e^eps / (1 + e^eps)),
    P[correct >= v] <= P[W >= v] + 2 m delta max_i P[v > W >= v - i] / i.
    """
    masses = binomial_masses(guesses.made, 1 / (1 + math.exp(-epsilon)))
    tail = float(masses[guesses.correct :].sum())
    below = np.cumsum(masses[: guesses.correct][::-1])  # P[v > W >= v - i] for i = 1..v
    steepest = float((below / np.arange(1, guesses.correct + 1)).max(initial=0.0))
    return min(1.0, tail + 2 * guesses.canaries * delta * steepest)


def binomial_masses(n: int, q: float) -> Floats:
    """P[Binomial(n, q) = k] for k = 0..n, 0 < q < 1."""
    k = np.arange(n + 1)
    masses: Floats = np.exp(_log_choices(n) + k * math.log(q) + (n - k) * math.log1p(-q))
    return masses


@lru_cache(maxsize=64)
def _log_choices(n: int) -> Floats:
    logs = np.array([math.lgamma(k + 1) for k in range(n + 1)])
    choices: Floats = logs[n] - logs - logs[::-1]
    return choices


def epsilon_lower_bound(guesses: Guesses, delta: float, confidence: float) -> float:
    """Largest epsilon that the guesses refute: an (epsilon, delta)-DP trainer gives them with at most 1 - confidence.

    0 when nothing is refuted; at most `MAX_EPSILON`.
    """
    low, high = 0.0, MAX_EPSILON
    alpha = 1 - confidence
    if p_value(guesses, low, delta) > alpha:
        return 0.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(guesses, middle, delta) <= alpha else (low, middle)
    return low


def attainable_bound(canaries: int, made: int, delta: float, confidence: float) -> float:
    """`epsilon_lower_bound` if every guess is right: the most that this many canaries can show."""
    return epsilon_lower_bound(Guesses(canaries, made, made), delta, confidence)


@dataclass(frozen=True)
class PrivacyCurve:
    """A mechanism's trade-off curve, as (epsilon, delta) pairs that it satisfies: two arrays [k].

    P[A] <= e^epsilon P[B] + delta for neighbours A and B, both ways, at every pair.
    """

    epsilons: Floats
    deltas: Floats

    def least_other(self, probability: float) -> float:
        """Least probability, with a neighbour, of an event that has ``probability`` here.

        The greatest of (p - delta) / e^eps and 1 - delta - e^eps (1 - p) over all pairs: convex, rising with p.
        """
        scale = np.exp(self.epsilons)
        forward = (probability - self.deltas) / scale
        complement = 1 - self.deltas - scale * (1 - probability)
        return max(0.0, float(forward.max()), float(complement.max()))


@lru_cache(maxsize=256)
def dp_sgd_curve(event: DpEvent) -> PrivacyCurve:
    """The curve of ``event`` by Google's PLD accountant, add/remove adjacency, rounded towards less privacy.

    Raises:
        ValueError: an event without noise: it has no curve.
    """
    if event.sigma == 0:
        raise ValueError("steps without noise have no trade-off curve")
    from dp_accounting.pld import privacy_loss_distribution as pld

    step: Any = pld.from_gaussian_mechanism(event.sigma, sampling_prob=event.q, value_discretization_interval=1e-3)
    run = step.self_compose(event.steps)
    deltas = np.asarray(run.get_delta_for_epsilon(CURVE_EPSILONS.tolist()), dtype=float)
    return PrivacyCurve(CURVE_EPSILONS, deltas)


def curve_p_value(guesses: Guesses, curve: PrivacyCurve) -> float:
    """Largest probability, under ``curve``, that at least this many guesses are right; not below 1e-15.

    The greatest tail for which `least_total` stays within 1.
    """
    low, high = 1e-15, 1.0
    if least_total(guesses, curve, high) <= 1:
        return 1.0
    while high / low > 1 + 1e-6:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if least_total(guesses, curve, middle) <= 1 else (low, middle)
    return high


def least_total(guesses: Guesses, curve: PrivacyCurve, tail: float) -> float:
    """Least total mass of numbers p_0..p_r with p_v + .. + p_r = ``tail`` that ``curve`` allows; above 1: impossible.

    Let p_c be the probability of exactly c right guesses of r, h_j the sum over c >= j of (c / m) p_c and r_j that
    of ((r - c) / m) p_c. Another coin for a canary that is guessed right turns "c right" into "c - 1 right, this
    one wrong"; the mean over canaries and the convexity of `least_other` give, for every j, r_{j-1} >=
    least_other(h_j) (the recursion of Mahloujifar et al. for fair coins). What is missing is put as low as its
    constraint allows, which adds most to r and least to h, so that no other distribution needs less. The tail itself
    lies at v for the same reason.
    """
    m, made = guesses.canaries, guesses.made
    right, wrong, total = tail * guesses.correct / m, tail * (made - guesses.correct) / m, tail
    for j in range(guesses.correct, 0, -1):
        missing = curve.least_other(right) - wrong
        if missing > 0:
            mass = missing * m / (made - j + 1)
            total += mass
            right += mass * (j - 1) / m
            wrong += missing
        if total > 1:
            break
    return total


def least_refuted_noise(guesses: Guesses, event: DpEvent, confidence: float) -> float | None:
    """Least noise multiplier, with ``event``'s q and steps, that the guesses refute; every greater one is refuted too.

    None when even 2^4 times the claimed noise is not refuted; searched down to a quarter of it.
    """
    low, high = (octaves * NOISE_STEPS for octaves in NOISE_OCTAVES)

    def noise(step: int) -> float:
        return event.sigma * 2 ** (step / NOISE_STEPS)

    def refuted(step: int) -> bool:
        return least_total(guesses, dp_sgd_curve(replace(event, sigma=noise(step))), 1 - confidence) > 1

    if not refuted(high):
        return None
    return noise(_first(refuted, low, high))


def _first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Least number in low..high for which ``holds``; it holds for ``high`` and for all above one that it holds for."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


@dataclass(frozen=True)
class LowerBound:
    """What guesses prove about a DP-SGD run of which ``event`` is claimed, each bound with the given confidence.

    Attributes:
        pair: by Corollary 5.4, at the claim's delta.
        curve: epsilon (PRV) that DP-SGD with the least refuted noise would have to claim; 0 when none is refuted.
        noise: that noise multiplier: the run is less private than one with it. None when none is refuted.
        pair_p, curve_p: largest probability of this many right guesses if the claim is true.
        refutes: whether either bound refutes the claim.
    """

    pair: float
    curve: float
    noise: float | None
    pair_p: float
    curve_p: float
    refutes: bool

    @property
    def epsilon(self) -> float:
        """The greater of the two."""
        return max(self.pair, self.curve)


def lower_bound(guesses: Guesses, event: DpEvent, delta: float, confidence: float) -> LowerBound:
    """Both bounds, each with ``confidence``, for a run that claims ``event``."""
    pair_p = p_value(guesses, epsilon_prv([event], delta), delta)
    curve_p = curve_p_value(guesses, dp_sgd_curve(event))
    noise = least_refuted_noise(guesses, event, confidence)
    return LowerBound(
        pair=epsilon_lower_bound(guesses, delta, confidence),
        curve=0.0 if noise is None else epsilon_prv([replace(event, sigma=noise)], delta),
        noise=noise,
        pair_p=pair_p,
        curve_p=curve_p,
        refutes=min(pair_p, curve_p) <= 1 - confidence,
    )
