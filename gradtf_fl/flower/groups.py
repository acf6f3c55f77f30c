"""Group mode and the gate: what a server can do against bad inputs without looking at any single one.

Nothing proves that an organization submits an honest vector, and secure aggregation hides the one that does not.
In group mode the roster is split once and for all into groups of at least five; each group is summed apart, and
the coordinate-wise median or trimmed mean over the group means bounds what a minority of groups can do. The price:
an organization is hidden among its group only. The gate accepts or rejects a WHOLE round by what its sum is; it
never searches for a culprit, which would open sums of fewer organizations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.config import Combine
from gradtf_fl.errors import RoundRejected
from gradtf_fl.secagg import Floats, RoundConfig, SecureSum

TRIM = 0.2  # share of the groups cut at either end by the trimmed mean, at least one
CHUNK = 1 << 16  # coordinates that are combined at a time


def groups_needed(groups: int) -> int:
    """Groups that must reach the end of a round: all but a minority."""
    return groups // 2 + 1


def combine_groups(sums: Sequence[SecureSum], how: Combine) -> Floats:
    """One update [dim] from the groups' means, in their precision.

    Args:
        how: "mean" weights each group by its total weight; "median" and "trimmed-mean" count groups equally,
            coordinate by coordinate (Yin et al. 2018), cutting `TRIM` of them at either end.
    """
    if len(sums) == 1:
        return sums[0].mean
    combined, weights = np.empty_like(sums[0].mean), [one.total_weight for one in sums]
    for start in range(0, combined.size, CHUNK):
        part = slice(start, start + CHUNK)
        combined[part] = _combined(np.stack([one.mean[part] for one in sums], dtype=np.float64), weights, how)
    return combined


def _combined(means: NDArray[np.float64], weights: Sequence[float], how: Combine) -> NDArray[np.float64]:
    """One chunk of the update from the groups' [groups, chunk]."""
    groups = len(means)
    if how == "mean":
        return np.average(means, axis=0, weights=weights)
    if how == "median":
        return np.asarray(np.median(means, axis=0), np.float64)
    cut = min(max(1, math.floor(TRIM * groups)), (groups - 1) // 2)
    kept: NDArray[np.float64] = np.sort(means, axis=0)[cut : groups - cut]
    return np.asarray(kept.mean(axis=0), np.float64)


def gate(sums: Sequence[SecureSum], config: RoundConfig, max_norm: float | None = None) -> None:
    """Accepts the round, or rejects all of it.

    Args:
        max_norm: largest L2 norm of a group's mean; None is the clip, which no mean of honest clients exceeds
            (plus what the Skellam noise adds, where there is any).

    Raises:
        RoundRejected: a sum with coordinates that no honest clients can give (they wrapped or are saturated), or
            a mean that is too long.
    """
    for one in sums:
        if one.beyond:
            raise RoundRejected(f"{one.beyond} coordinates of a sum lie outside what {one.clients} clients can give")
        limit = (config.clip if max_norm is None else max_norm) * (1 + 1e-3) + one.noise_norm
        norm = one.norm
        if not norm <= limit:
            raise RoundRejected(
                f"the mean of {one.clients} clients has norm {norm:.4g}, at most {limit:.4g} is accepted"
            )
