"""The least noise that keeps a history within its budget."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gradtf_fl.errors import BudgetExhausted, ConfigError
from gradtf_fl.privacy.accountants import epsilon_prv
from gradtf_fl.privacy.events import DpEvent, merge

MAX_SIGMA = 1e4
CLOSENESS = 2e-3
"""The search stops once epsilon lies within this share below its target."""
SIGMA_DIGITS = 4
"""Sigma is rounded UP to this many decimals, so that equal plans give equal, mergeable events."""


def noise_multiplier(
    target_epsilon: float, delta: float, q: float, steps: int, spent: Iterable[DpEvent] = ()
) -> float:
    """Least noise for which ``spent`` and ``steps`` more steps stay within ``target_epsilon``.

    Opacus' own calibration forgets what was already spent; here both are composed jointly by PRV. The result
    never exceeds the target: ``epsilon_prv([*spent, DpEvent(sigma, q, steps)], delta) <= target_epsilon``.

    Raises:
        ConfigError: an argument outside its range, or a target that no sigma up to 10,000 reaches.
        BudgetExhausted: ``spent`` alone passes the target.
    """
    problems = []
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        problems.append(f"epsilon must be a finite number above 0, not {target_epsilon}")
    if not 0 < delta < 1:
        problems.append(f"delta must lie between 0 and 1, not {delta}")
    if not 0 < q <= 1:
        problems.append(f"the sampling probability must lie in (0, 1], not {q}")
    if steps < 1:
        problems.append(f"steps must be at least 1, not {steps}")
    if problems:
        raise ConfigError(problems)
    history = merge(spent)
    used = epsilon_prv(history, delta)
    if used >= target_epsilon:
        raise BudgetExhausted(f"epsilon {used:.3f} is spent already; the target is {target_epsilon:g}")
    return _search(target_epsilon, delta, q, steps, history)


def _search(target: float, delta: float, q: float, steps: int, history: tuple[DpEvent, ...]) -> float:
    """Bracketed false position on log epsilon over log sigma, which is close to a straight line."""

    def excess(sigma: float) -> float:
        return math.log(epsilon_prv((*history, DpEvent(sigma, q, steps)), delta) / target)

    low: tuple[float, float] | None = None  # too little noise
    high: tuple[float, float] | None = None  # enough noise
    sigma = 1.0
    for _ in range(60):
        sigma = math.ceil(sigma * 10**SIGMA_DIGITS) / 10**SIGMA_DIGITS
        gap = excess(sigma)
        if gap <= 0:
            if high is not None and low is not None and sigma >= high[0]:
                break
            high = (sigma, gap)
        else:
            low = (sigma, gap)
        if high is not None and (high[1] >= -CLOSENESS or (low and high[0] - low[0] < 2 * 10**-SIGMA_DIGITS)):
            break
        sigma = _next_guess(low, high)
        if sigma > MAX_SIGMA:
            raise ConfigError(f"no noise keeps {steps} steps at q={q:g} within epsilon {target:g}: raise it")
    assert high is not None
    return high[0]


def _next_guess(low: tuple[float, float] | None, high: tuple[float, float] | None) -> float:
    if high is None:
        assert low is not None
        return low[0] * min(8.0, max(1.3, math.exp(1.2 * low[1])))
    if low is None:
        return max(high[0] * max(0.25, math.exp(0.7 * high[1])) * 0.95, 0.01)
    # aim half the allowed closeness below the target, and stay off the bracket's ends
    x0, x1 = math.log(low[0]), math.log(high[0])
    share = (low[1] + CLOSENESS / 2) / (low[1] - high[1])
    return math.exp(x0 + min(0.95, max(0.05, share)) * (x1 - x0))
