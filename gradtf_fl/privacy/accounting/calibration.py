"""The least noise that keeps a history within its budget."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

from gradtf_fl.errors import BudgetExhausted, ConfigError
from gradtf_fl.privacy.accounting.accountants import epsilon_prv
from gradtf_fl.privacy.accounting.events import DpEvent, merge
from gradtf_fl.privacy.accounting.prv import mesh_error
from gradtf_fl.round_messages import MAX_EPSILON, MIN_DELTA, MIN_EPSILON

MAX_SIGMA = 1e4
CLOSENESS = 2e-3
"""The search stops once at most this share of what was left of the target is given away ..."""
SIGMA_CLOSENESS = 2e-3
"""... or once less noise, by this share, is known to be too little."""
SIGMA_DIGITS = 4
"""Sigma is rounded UP to this many decimals, so that equal plans give equal, mergeable events."""
_NOTHING = 1e-9
GUESSED_FROM = 20.0
"""Sigma above which the search begins at the central limit's guess. Trials far below it take up to seconds there
(budgets of .1 and less, many steps), and a node makes them when a server asks. Up to it they are cheap: from 1."""


def noise_multiplier(target_epsilon: float, delta: float, q: float, steps: int, spent: Iterable[DpEvent] = ()) -> float:
    """Least noise for which ``spent`` and ``steps`` more steps stay within ``target_epsilon``.

    Opacus' own calibration forgets what was already spent; here both are composed jointly by PRV. The result
    never exceeds the target: ``epsilon_prv([*spent, DpEvent(sigma, q, steps)], delta) <= target_epsilon``.

    >>> from gradtf_fl import DpEvent, epsilons, noise_multiplier
    >>> sigma = noise_multiplier(target_epsilon=2.0, delta=1e-5, q=1 / 16, steps=50)
    >>> 1.95 < epsilons([DpEvent(sigma, 1 / 16, 50)], delta=1e-5).prv <= 2.0
    True

    Args:
        target_epsilon: the budget.
        q, steps: the planned sampling probability and number of steps.
        spent: the ledger's history, charges that are not settled yet included.

    Raises:
        ConfigError: an argument outside its range, or a target that no sigma up to 10,000 reaches from nothing.
        BudgetExhausted: ``spent`` alone reaches the target, or leaves too little of it for any sigma up to 10,000.
    """
    problems = []
    if not MIN_EPSILON <= target_epsilon <= MAX_EPSILON:
        problems.append(f"epsilon must be {MIN_EPSILON:g} to {MAX_EPSILON:g}, not {target_epsilon}")
    if not MIN_DELTA <= delta < 1:
        problems.append(f"delta must be {MIN_DELTA:g} or more, and below 1, not {delta}")
    if not 0 < q <= 1:
        problems.append(f"the sampling probability must lie in (0, 1], not {q}")
    if steps < 1:
        problems.append(f"steps must be at least 1, not {steps}")
    if problems:
        raise ConfigError(problems)
    return _calibrated(target_epsilon, delta, q, steps, merge(spent))


@lru_cache(maxsize=256)
def _calibrated(target_epsilon: float, delta: float, q: float, steps: int, history: tuple[DpEvent, ...]) -> float:
    """A node is asked for the same plan in every round."""
    used = epsilon_prv(history, delta)
    if used >= target_epsilon:
        raise BudgetExhausted(f"epsilon {used:.3f} is spent already; the target is {target_epsilon:g}")
    sigma = _search(target_epsilon, delta, q, steps, history, used)
    if sigma is None:
        what = f"no noise keeps {steps} steps at q={q:g} within epsilon {target_epsilon:g}"
        if history:
            raise BudgetExhausted(f"{what}, of which {used:.3f} is spent")
        raise ConfigError(f"{what}: raise it")
    return sigma


GUESSES = 4
"""Trials near the central limit's guess, all too little, after which it is asked whether any sigma is enough."""
SECANTS = 9
"""Trials after which the bracket is halved: a bent curve, or one with a step where RDP takes over, is crept along."""


def _search(
    target: float, delta: float, q: float, steps: int, history: tuple[DpEvent, ...], used: float
) -> float | None:
    """Secant steps, kept inside the bracket once there is one. None when 10,000 is not enough.

    Over log sigma, the log of what the new steps ADD to epsilon is nearly a line.
    """
    tried: list[tuple[float, float]] = []  # (log sigma, log of added epsilon / what is left), in order of trial

    def enough(sigma: float) -> bool:
        added = epsilon_prv((*history, DpEvent(sigma, q, steps)), delta) - used
        tried.append((math.log(sigma), math.log(max(added, _NOTHING) / (target - used))))
        return added <= target - used

    best = None
    guess = _central_limit(target - mesh_error(target), delta, q, steps, history)  # PRV says about as much too much
    sigma = guess if guess > GUESSED_FROM else 1.0
    for _ in range(60):
        sigma = min(MAX_SIGMA, math.ceil(sigma * 10**SIGMA_DIGITS - 1e-6) / 10**SIGMA_DIGITS)
        if any(math.isclose(math.log(sigma), x, abs_tol=1e-12) for x, _ in tried):
            break  # the bracket is as narrow as sigma's digits
        if enough(sigma):
            best = sigma if best is None else min(best, sigma)
        elif best is None and len(tried) == GUESSES and sigma > GUESSED_FROM:
            if not enough(MAX_SIGMA):
                return None
            best = MAX_SIGMA
        if best is not None and _close(tried, best):
            break
        sigma = math.exp(_next_guess(tried))
    return best


def _central_limit(target: float, delta: float, q: float, steps: int, history: tuple[DpEvent, ...]) -> float:
    """Sigma where all steps are taken together for one Gaussian of parameter mu (Bu et al. 2020): near, no bound."""
    root, exp = math.sqrt(2), math.exp(min(target, 700.0))
    low, high = -20.0, 10.0  # log mu
    for _ in range(60):
        mu = math.exp((low + high) / 2)
        a, b = target / mu, mu / 2
        enough = math.erfc((a - b) / root) / 2 - exp * math.erfc((a + b) / root) / 2 <= delta
        low, high = ((low + high) / 2, high) if enough else (low, (low + high) / 2)
    left = math.exp(2 * low) - sum(one.q**2 * one.steps * math.expm1(min(700.0, one.sigma**-2)) for one in history)
    return 1.0 if left <= 0 else 1 / math.sqrt(math.log1p(left / (q * q * steps)))


def _close(tried: list[tuple[float, float]], best: float) -> bool:
    """Whether nearly all that was left is used, or a sigma just below the best is too little."""
    gap = next(gap for x, gap in tried if x == math.log(best))
    below = max((x for x, gap in tried if gap > 0), default=-math.inf)
    return math.log(1 - CLOSENESS) <= gap or math.log(best) - below <= SIGMA_CLOSENESS


def _next_guess(tried: list[tuple[float, float]]) -> float:
    """Log sigma at which the line through the two best trials lies half the allowed closeness below the target; after
    many trials the middle of the bracket."""
    x1, gap1 = min(tried, key=lambda trial: abs(trial[1]))
    x0, gap0 = min((t for t in tried if t[0] != x1), key=lambda t: abs(t[1]), default=(x1 - 1, gap1 + 1.7))
    slope = min((gap1 - gap0) / (x1 - x0), -0.1)
    guess = x1 - (gap1 + CLOSENESS / 2) / slope
    low = max((x for x, gap in tried if gap > 0), default=x1 - 2)
    high = min((x for x, gap in tried if gap <= 0), default=x1 + 2)
    if len(tried) >= SECANTS:
        return (low + high) / 2
    margin = 0.02 * (high - low)
    return min(high - margin, max(low + margin, guess))
