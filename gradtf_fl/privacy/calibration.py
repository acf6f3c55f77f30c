"""The least noise that keeps a history within its budget."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gradtf_fl.errors import BudgetExhausted, ConfigError
from gradtf_fl.privacy.accountants import epsilon_prv
from gradtf_fl.privacy.events import DpEvent, merge

MAX_SIGMA = 1e4
MIN_EPSILON = 0.01
"""PRV's own error, about 0.002 there, leaves nothing to calibrate below."""
CLOSENESS = 2e-3
"""The search stops once epsilon lies within this share below its target."""
SIGMA_DIGITS = 4
"""Sigma is rounded UP to this many decimals, so that equal plans give equal, mergeable events."""


def noise_multiplier(target_epsilon: float, delta: float, q: float, steps: int, spent: Iterable[DpEvent] = ()) -> float:
    """Least noise for which ``spent`` and ``steps`` more steps stay within ``target_epsilon``.

    Opacus' own calibration forgets what was already spent; here both are composed jointly by PRV. The result
    never exceeds the target: ``epsilon_prv([*spent, DpEvent(sigma, q, steps)], delta) <= target_epsilon``.

    Raises:
        ConfigError: an argument outside its range, or a target that no sigma up to 10,000 reaches.
        BudgetExhausted: ``spent`` alone passes the target.
    """
    problems = []
    if not (math.isfinite(target_epsilon) and target_epsilon >= MIN_EPSILON):
        problems.append(f"epsilon must be a finite number of at least {MIN_EPSILON}, not {target_epsilon}")
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
    """Secant steps on log epsilon over log sigma (nearly a line), kept inside the bracket once there is one."""
    tried: list[tuple[float, float]] = []  # (log sigma, log of epsilon / target), in order of trial

    def enough(sigma: float) -> bool:
        gap = math.log(epsilon_prv((*history, DpEvent(sigma, q, steps)), delta) / target)
        tried.append((math.log(sigma), gap))
        return gap <= 0

    best = math.inf
    sigma = 1.0
    for _ in range(60):
        sigma = math.ceil(sigma * 10**SIGMA_DIGITS - 1e-6) / 10**SIGMA_DIGITS
        if any(math.isclose(math.log(sigma), x, abs_tol=1e-12) for x, _ in tried):
            break  # the bracket is as narrow as sigma's digits
        if enough(sigma):
            best = min(best, sigma)
            if tried[-1][1] >= -CLOSENESS:
                break
        elif sigma > 100 and math.isinf(best) and not enough(MAX_SIGMA):
            raise ConfigError(f"no noise keeps {steps} steps at q={q:g} within epsilon {target:g}: raise it")
        sigma = math.exp(_next_guess(tried))
    return best if math.isfinite(best) else MAX_SIGMA


def _next_guess(tried: list[tuple[float, float]]) -> float:
    """Log sigma at which the line through the two best trials lies half the allowed closeness below the target."""
    x1, gap1 = min(tried, key=lambda trial: abs(trial[1]))
    x0, gap0 = min((t for t in tried if t[0] != x1), key=lambda t: abs(t[1]), default=(x1 - 1, gap1 + 1.7))
    slope = min((gap1 - gap0) / (x1 - x0), -0.1)
    guess = x1 - (gap1 + CLOSENESS / 2) / slope
    low = max((x for x, gap in tried if gap > 0), default=x1 - 2)
    high = min((x for x, gap in tried if gap <= 0), default=x1 + 2)
    margin = 0.02 * (high - low)
    return min(high - margin, max(low + margin, guess))
