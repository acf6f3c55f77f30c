"""Renyi DP of the Poisson-subsampled Gaussian: one curve per mechanism, computed once.

Renyi divergences of composed mechanisms add up order by order, so the curve of one step serves every history
that the mechanism is in. With it a history costs microseconds, and the ledger can show on every charge that a
budget is far away without composing anything else.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.privacy.accounting.events import DpEvent

Curve = NDArray[np.float64]
"""Renyi divergence, at most, by order [orders]."""

ORDERS: Curve = np.array([1 + x / 10 for x in range(1, 100)] + list(range(12, 64)))
"""Opacus' own choice; a missing order only makes the bound looser."""


MOST_SIGMA = 1e4
"""Of a sampled step; what is above counts as this. At 1e8 the divergence is below float64's rounding of 1."""
WHOLE_ORDERS_FROM = 200.0
"""Sigma above which the series of broken orders takes seconds to minutes; the next whole order bounds each."""
LONG_SERIES_FROM, LONG_SERIES_WITHIN = 20.0, 100.0
"""From this sigma the same holds where q is so near to 1/2: both series begin within this of each other."""


@lru_cache(maxsize=4096)
def step_curve(sigma: float, q: float) -> Curve:
    """Curve of one step with ``sigma`` > 0 [orders], by Opacus (Mironov, Talwar, Zhang 2019, section 3.3)."""
    from opacus.accountants.analysis.rdp import compute_rdp

    sampled = q < 1
    orders = np.ceil(ORDERS) if sampled and _has_long_series(sigma, q) else ORDERS
    noise = min(sigma, MOST_SIGMA) if sampled else sigma
    curve = np.asarray(compute_rdp(q=q, noise_multiplier=noise, steps=1, orders=orders), dtype=np.float64)
    curve.setflags(write=False)
    return curve


def _has_long_series(sigma: float, q: float) -> bool:
    """Whether broken orders take long, see the constants; ``q`` < 1."""
    if sigma > WHOLE_ORDERS_FROM:
        return True
    return sigma >= LONG_SERIES_FROM and sigma**2 * abs(math.log(1 / q - 1)) < LONG_SERIES_WITHIN


def compose(events: tuple[DpEvent, ...]) -> Curve:
    """Curve of a history of at least one event [orders]; every sigma is above 0."""
    first, *others = events
    total = first.steps * step_curve(first.sigma, first.q)
    for event in others:
        total += event.steps * step_curve(event.sigma, event.q)
    return total


def convert(curve: Curve, delta: float) -> float:
    """Least epsilon that ``curve`` gives at ``delta`` (Balle et al. 2020, theorem 21), at least 0."""
    best = float(np.fmin.reduce(curve + _conversion(delta)))  # fmin passes over orders that overflowed to NaN
    return math.inf if math.isnan(best) else max(0.0, best)


def convert_replaced(curve: Curve, delta: float) -> float:
    """An epsilon at ``delta`` for one REPLACED row, from the curve of adding or removing one.

    A removal and an addition, each (e, d), are together (2 e, (1 + e^e) d). With d = delta / (2 e^e), `convert`'s
    condition on e is linear in it, order by order above 2.
    """
    high = ORDERS > 2
    above, order = curve[high] + _conversion(delta)[high], ORDERS[high]
    best = float(np.fmin.reduce((above + math.log(2) / (order - 1)) * (order - 1) / (order - 2)))
    return math.inf if math.isnan(best) else max(0.0, 2 * best)


@lru_cache(maxsize=256)
def _conversion(delta: float) -> Curve:
    return np.log((ORDERS - 1) / ORDERS) - (math.log(delta) + np.log(ORDERS)) / (ORDERS - 1)
