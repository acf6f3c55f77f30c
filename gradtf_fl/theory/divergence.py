"""How far private rows are from public ones: a cross-fitted classifier, and lower bounds of KL and JS from it.

A logistic regression learns to tell the two sides apart on part of the rows; on rows that it has not seen, its log
odds T estimate log(private density / public density). For ANY function T that was fixed before the rows it is
evaluated on,

    KL(private || public) >= E_private[T] - log E_public[e^T]     (Donsker, Varadhan)
    JS(private, public)   >= log 2 - cross-entropy of T           (nats, at most log 2)

so both are LOWER bounds, up to sampling error: features and classifier see only part of what differs. No estimate from
m rows can certify a KL much above log m (McAllester, Stratos 2020): far apart, the figure says "at least", and the
classifier's AUC is what can be read. An estimate never makes Theorem 5.2 a bound: that needs KL from ABOVE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.errors import ConfigError
from gradtf_fl.theory.features import Features

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Scores = NDArray[np.floating[Any]]

FOLDS = 5
T_QUANTILE = 2.776
"""Student's t, 4 degrees of freedom, 97.5 %."""
RIDGE = 3e-4
STEPS = 150
MOST_LOG_ODDS = 5.0
"""T is clipped to +-5: one public row in 150 may weigh as much as all others, and not more."""
SATURATED_AUC = 0.99
FEWEST_ROWS = 50
"""A side; 10 held-out rows in each fold."""


@dataclass(frozen=True)
class Interval:
    """Mean over folds and its 95 % interval by Student's t. Folds share training rows, so it is approximate."""

    value: float
    low: float
    high: float

    @classmethod
    def of_folds(cls, values: Floats, least: float, most: float) -> Interval:
        """Interval of the folds' ``values`` [FOLDS], cut to the quantity's range."""
        half = T_QUANTILE * float(values.std(ddof=1)) / math.sqrt(len(values))
        mean = float(values.mean())
        low, value, high = (min(most, max(least, x)) for x in (mean - half, mean, mean + half))
        return cls(value, low, high)


@dataclass(frozen=True)
class Divergence:
    """Estimates from ``rows`` (private, public) rows.

    Attributes:
        auc: chance that a private row gets the higher score of a private and a public one; .5 = can't be told apart.
        kl: lower bound of KL(private || public), nats.
        js: lower bound of the Jensen-Shannon divergence, nats, at most log 2.
        saturated: the sides can be told apart (nearly) always: ``kl`` shows the resolution, not the divergence.
    """

    auc: Interval
    kl: Interval
    js: Interval
    saturated: bool
    rows: tuple[int, int]


def estimate(
    private: Features, public: Features, sources: tuple[Labels, Labels] | None = None, seed: int = 0
) -> Divergence:
    """Cross-fitted estimate from features [rows, dimension] of both sides.

    Args:
        sources: a number for each private and each public row; rows with equal numbers stay in one fold.
        seed: deals the folds.

    Raises:
        ConfigError: a side has fewer than `FEWEST_ROWS` rows, the dimensions differ, or a value is not finite.
    """
    problems = [
        f"{name}: {len(side)} different rows; at least {FEWEST_ROWS} are needed"
        for name, side in (("private", private), ("public", public))
        if len(side) < FEWEST_ROWS
    ]
    if private.shape[1:] != public.shape[1:]:
        problems.append(f"features of {private.shape[1:]} and {public.shape[1:]} values can't be compared")
    elif not (np.isfinite(private).all() and np.isfinite(public).all()):
        problems.append("features hold NaN or infinite values")
    if problems:
        raise ConfigError(problems)
    sizes = (len(private), len(public))
    is_private = np.arange(sum(sizes)) < len(private)
    origin = np.arange(sum(sizes)) if sources is None else np.concatenate(sources)
    fold = deal(origin, is_private, np.random.default_rng([seed, 0x464F4C44]))
    scores = _held_out_log_odds(np.concatenate([private, public]), is_private, fold)
    clipped = np.clip(scores, -MOST_LOG_ODDS, MOST_LOG_ODDS)
    by_fold = [(clipped[is_private & (fold == k)], clipped[~is_private & (fold == k)]) for k in range(FOLDS)]
    auc = Interval.of_folds(np.array([area(p, q) for p, q in by_fold]), 0.0, 1.0)
    kl = Interval.of_folds(np.array([donsker_varadhan(p, q) for p, q in by_fold]), 0.0, math.inf)
    js = Interval.of_folds(np.array([jensen_shannon(p, q) for p, q in by_fold]), 0.0, math.log(2))
    return Divergence(auc, kl, js, auc.high >= SATURATED_AUC, sizes)


def deal(origin: Labels, is_private: NDArray[np.bool_], rng: np.random.Generator) -> Labels:
    """Fold [rows] of each row: rows of one origin together, and a like share of both sides in every fold."""
    shares = np.where(is_private, 1 / is_private.sum(), 1 / (~is_private).sum())
    _, index = np.unique(origin, return_inverse=True)
    members = np.split(np.argsort(index, kind="stable"), np.cumsum(np.bincount(index))[:-1])
    filled = np.zeros((FOLDS, 2))
    fold = np.zeros(len(origin), dtype=np.int64)
    for number in rng.permutation(len(members)):
        rows = members[number]
        added = np.array([shares[rows][is_private[rows]].sum(), shares[rows][~is_private[rows]].sum()])
        emptiest = int(np.argmin(filled @ (added > 0)))
        fold[rows] = emptiest
        filled[emptiest] += added
    return fold


def donsker_varadhan(private: Floats, public: Floats) -> float:
    """E_private[T] - log E_public[e^T] from T on both sides' held-out rows, nats."""
    top = public.max()
    return float(private.mean() - top - math.log(np.exp(public - top).mean()))


def jensen_shannon(private: Floats, public: Floats) -> float:
    """log 2 - cross-entropy of "private or public" with both sides weighing the same, nats."""
    cross_entropy = (np.logaddexp(0, -private).mean() + np.logaddexp(0, public).mean()) / 2
    return math.log(2) - float(cross_entropy)


def area(private: Scores, public: Scores) -> float:
    """Area under the ROC curve: share of pairs in which the private score is the greater, ties half."""
    order = np.sort(public)
    below = np.searchsorted(order, private, "left") + np.searchsorted(order, private, "right")
    return float(below.mean()) / (2 * len(public))


def _held_out_log_odds(table: Features, is_private: NDArray[np.bool_], fold: Labels) -> Floats:
    """Log odds [rows] of each row by the model that did not see its fold.

    All folds' ridge logistic regressions are trained side by side by Nesterov's accelerated gradient: one pass over
    the features serves five models. Both sides weigh the same whatever their sizes, so log odds are log density ratios.
    """
    centred = table - table.mean(axis=0)
    trains = fold[:, None] != np.arange(FOLDS)  # [rows, FOLDS]
    signs = np.where(is_private, 1.0, -1.0)[:, None]
    sizes = np.where(is_private[:, None], trains[is_private].sum(axis=0), trains[~is_private].sum(axis=0))
    importance = trains / (2 * sizes)  # of each row in each model's mean loss; sums to 1
    step = 1 / (_curvature(centred, importance[:, 0]) + RIDGE)
    weights = np.zeros((table.shape[1], FOLDS), dtype=np.float32)
    offsets = np.zeros(FOLDS)
    ahead, ahead_offsets = weights, offsets
    for number in range(STEPS):
        odds = centred @ ahead + ahead_offsets
        pull = importance * signs / (1 + np.exp(np.clip(signs * odds, -50, 50)))
        moved = ahead + step * ((centred.T @ pull.astype(np.float32)) - RIDGE * ahead)
        moved_offsets = ahead_offsets + step * pull.sum(axis=0)
        momentum = number / (number + 3)
        ahead = moved + momentum * (moved - weights)
        ahead_offsets = moved_offsets + momentum * (moved_offsets - offsets)
        weights, offsets = moved, moved_offsets
    scores = centred @ weights + offsets
    held_out: Floats = scores[np.arange(len(fold)), fold].astype(np.float64)
    return held_out


def _curvature(centred: Features, importance: Floats) -> float:
    """Greatest second derivative of the loss: a quarter of the largest eigenvalue, by power iteration, with slack."""
    direction = np.ones(centred.shape[1], dtype=np.float32)
    largest = 0.0
    scaled = importance.astype(np.float32)
    for _ in range(12):
        direction /= np.linalg.norm(direction) or 1.0
        direction = centred.T @ (scaled * (centred @ direction))
        largest = float(np.linalg.norm(direction))
    return 0.25 * (1.3 * largest + 1.0)  # 1.0: the offset's own column
