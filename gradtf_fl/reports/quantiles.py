"""How figures spread over many organizations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MANY = 20
"""Organizations above which tables show quantiles in place of one line for each."""
QUANTILES = {"min": 0.0, "p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}

Quantiles = dict[str, float | None]
"""By the names of `QUANTILES`; None where nothing was measured."""


def quantiles(values: Sequence[float | None]) -> Quantiles:
    """Quantiles of what was measured, with linear interpolation between neighbours.

    >>> from gradtf_fl.reports.quantiles import quantiles
    >>> quantiles([1.0, 2.0, None, 3.0])["p25"]
    1.5
    """
    measured = [value for value in values if value is not None]
    if not measured:
        return dict.fromkeys(QUANTILES)
    found = np.quantile(np.array(measured, dtype=np.float64), list(QUANTILES.values()))
    return {name: float(value) for name, value in zip(QUANTILES, found, strict=True)}
