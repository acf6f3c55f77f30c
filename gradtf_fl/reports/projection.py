"""Rounds left at the present rate, for many ledgers at once: few PRV compositions, and each history only once.

PRV takes up to half a second on a history of 50,000 steps and `rounds_within` asks it a dozen times. RDP takes
microseconds and lies above PRV by a factor that hardly changes from one round to the next. So RDP, scaled by the
factor last seen, says where to look, and PRV is asked only there.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from itertools import count

from gradtf_fl.privacy import (
    MOST_ROUNDS,
    ROUNDING,
    DatasetAccount,
    DpEvent,
    epsilon_prv,
    epsilon_rdp,
    fits,
    greatest,
    last_round,
    merge,
)

EXACT = 64
"""Up to here the answer is that of `rounds_within`."""
NEAR = 0.01
"""Beyond `EXACT` the factor that PRV gave within this share of the answer is trusted for the rest: over such a stretch
it moves by less than 10^-4, and the answer is at most one round in a thousand off."""
GUESSES = 8
"""After this many the range is halved instead: two or three are usual."""


def projected_rounds(account: DatasetAccount, delta: float) -> int | None:
    """How many more rounds like the last one the ledger would accept; None without a budget or a round.

    Computed once for equal histories, rates, deltas and budgets. At most `MOST_ROUNDS`.
    """
    last = last_round(account.charges)
    if last is None or math.isinf(account.budget):
        return None
    return _rounds_left(merge(account.events), last, delta, account.budget)


@lru_cache(maxsize=4096)
def _rounds_left(history: tuple[DpEvent, ...], event: DpEvent, delta: float, budget: float) -> int:
    def after(rounds: int) -> tuple[DpEvent, ...]:
        return merge((*history, replace(event, steps=rounds * event.steps)))

    def accepted(rounds: int) -> bool:
        return fits(history, replace(event, steps=rounds * event.steps), delta, budget)

    def guess(known: int) -> int:
        """Where the budget ends if PRV : RDP stays what it is after ``known`` rounds."""
        bound = epsilon_rdp(after(known), delta)
        factor = epsilon_prv(after(known), delta) / bound if bound else 1.0
        return greatest(lambda rounds: factor * epsilon_rdp(after(rounds), delta) <= budget + ROUNDING, MOST_ROUNDS)

    if any(each.sigma == 0 for each in after(1)):
        return 0
    low, high, look = 0, MOST_ROUNDS + 1, guess(0)
    for looks in count():
        look = min(max(look, low + 1), high - 1)
        low, high = (look, high) if accepted(look) else (low, look)
        if high - low == 1 or low == MOST_ROUNDS:
            break
        seen, look = look, guess(look) if looks < GUESSES else (low + high) // 2
        if min(seen, look) > EXACT and abs(look - seen) <= NEAR * seen:
            return look
    return low
