"""Planning before spending: what a run would cost and bring, from arithmetic and committed measurements alone.

No data is touched and no ledger is changed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from gradtf_fl.errors import ConfigError, VerificationFailed
from gradtf_fl.file_names import LEDGER
from gradtf_fl.privacy.accounting.accountants import (
    ROUNDING,
    Epsilons,
    epsilon_pld_replace_one,
    epsilon_prv,
    epsilons,
    fits,
)
from gradtf_fl.privacy.accounting.calibration import noise_multiplier
from gradtf_fl.privacy.accounting.events import ROW_UNIT, DpEvent, Unit
from gradtf_fl.privacy.ledger.books import DatasetAccount
from gradtf_fl.privacy.ledger.reading import LedgerReading, read_ledger
from gradtf_fl.privacy.ledger.records import Charge

EXPECTED_ACCURACY = Path(__file__).parent.parent / "assets" / "expected_accuracy.json"
"""Built from experiments/results by ``python -m experiments.embedded.expected_accuracy``."""
MOST_ROUNDS = 10_000
"""No projection looks further."""


@dataclass(frozen=True)
class RunPlan:
    """A federation's run as one organization pays for it: ``epsilon`` is for all ``rounds`` times ``steps`` steps.

    Raises:
        ConfigError: every count out of range.
    """

    epsilon: float
    delta: float
    rounds: int
    batch: int
    rows: int
    steps: int

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be at least 1" for name in ("rounds", "batch", "rows", "steps") if self._count(name) < 1
        ]
        if self.batch > self.rows >= 1:
            problems.append(f"batch ({self.batch}) is larger than rows ({self.rows})")
        if problems:
            raise ConfigError(problems)

    def _count(self, name: str) -> int:
        value: int = getattr(self, name)
        return value

    def event(self, sigma: float, rounds: int = 1) -> DpEvent:
        """So many rounds of it, as the accountant sees them."""
        return DpEvent(sigma, self.batch / self.rows, rounds * self.steps)


@dataclass(frozen=True)
class Expected:
    """Mean accuracy at an epsilon; ``measured`` false where it lies between two measured ones.

    Attributes:
        tiny: TinyLM tuned by the organizations.
        generated: LLM with the update made from theirs.
    """

    organizations: int
    tiny: float
    generated: float
    measured: bool


@dataclass(frozen=True)
class LedgerOutlook:
    """What the run would do to a dataset's account in a ledger, and how long its budget lasts.

    Attributes:
        spent, after: epsilon (PRV, joint) now and after the planned run.
        budget: None without one.
        unit: whose epsilon.
        rounds_left: further rounds like the last one in the ledger (None: no round yet, or no budget).
        planned_rounds: rounds of the planned kind that fit (None: no budget). Both end at `MOST_ROUNDS`.
    """

    organization: str
    dataset: str
    budget: float | None
    spent: float
    after: float
    rounds_left: int | None
    planned_rounds: int | None
    unit: Unit = ROW_UNIT

    @property
    def fits(self) -> bool:
        """Whether the planned run stays within the budget."""
        return self.budget is None or self.after <= self.budget + ROUNDING

    def to_json(self) -> dict[str, Any]:
        """Every figure, and whether the run fits."""
        return {**asdict(self), "unit": self.unit.name, "fits": self.fits}


@dataclass(frozen=True)
class WhatIf:
    """The answer: least noise for the plan, its epsilon by three accountants, accuracy to expect, and the ledger's.

    Attributes:
        unit: whose the epsilons are; the plan's ``rows`` and ``batch`` count these.
    """

    plan: RunPlan
    sigma: float
    epsilon: Epsilons
    replace_one: float
    accuracy: tuple[Expected, ...]
    differs: tuple[str, ...]
    ledger: LedgerOutlook | None
    unit: Unit = ROW_UNIT

    def to_json(self) -> dict[str, Any]:
        """One JSON document."""
        measured = measurements()
        return {
            "plan": asdict(self.plan),
            "unit": self.unit.name,
            "q": self.plan.batch / self.plan.rows,
            "total_steps": self.plan.rounds * self.plan.steps,
            "noise_multiplier": self.sigma,
            "epsilon": {**asdict(self.epsilon), "replace_one_pld": self.replace_one},
            "accuracy": {
                "expected": [asdict(expected) for expected in self.accuracy],
                "measured_range": [min(_measured_epsilons()), max(_measured_epsilons())],
                "without_dp": measured["without_dp"],
                "untuned": measured["untuned"],
                "task": measured["task"],
                "conditions": measured["conditions"],
                "plan_differs": list(self.differs),
                "source": measured["source"],
            },
            "ledger": None if self.ledger is None else self.ledger.to_json(),
        }


def what_if(plan: RunPlan, ledger: Path | None = None, dataset: str | None = None, unit: Unit | None = None) -> WhatIf:
    """Answer for ``plan``, with ``ledger``'s history where one is named (its delta must be the plan's).

    Args:
        dataset: whose account pays; not needed where the ledger has one dataset.
        unit: whose epsilon; None: the ledger's, or a row's.

    Raises:
        ConfigError: no noise reaches the plan's epsilon, no such ledger or dataset, or another delta or unit.
        VerificationFailed: the ledger's chain is broken.
    """
    sigma = noise_multiplier(plan.epsilon, plan.delta, plan.batch / plan.rows, plan.rounds * plan.steps)
    run = [plan.event(sigma, plan.rounds)]
    found = None if ledger is None else outlook(plan, sigma, ledger, dataset)
    if found is not None and unit is not None and unit != found.unit:
        raise ConfigError(f"ledger {ledger}: the unit of {found.dataset!r} is {found.unit}, not {unit}")
    return WhatIf(
        plan=plan,
        sigma=sigma,
        epsilon=epsilons(run, plan.delta),
        replace_one=epsilon_pld_replace_one(run, plan.delta),
        accuracy=expected_accuracy(plan.epsilon),
        differs=differences(plan),
        ledger=found,
        unit=unit or (ROW_UNIT if found is None else found.unit),
    )


@cache
def measurements() -> dict[str, Any]:
    """The committed table of accuracies, with its conditions and source."""
    document: dict[str, Any] = json.loads(EXPECTED_ACCURACY.read_text(encoding="utf8"))
    return document


def _measured_epsilons() -> list[float]:
    return sorted({float(point["epsilon"]) for point in measurements()["points"]})


def expected_accuracy(epsilon: float) -> tuple[Expected, ...]:
    """One entry for each measured number of organizations; none outside the measured range of epsilon.

    Between two measured epsilons the line over log epsilon is taken.
    """
    found = []
    points = measurements()["points"]
    for organizations in sorted({int(point["organizations"]) for point in points}):
        known = sorted((p for p in points if p["organizations"] == organizations), key=lambda p: float(p["epsilon"]))
        for low, high in pairwise(known):
            if low["epsilon"] <= epsilon <= high["epsilon"]:
                share = math.log(epsilon / low["epsilon"]) / math.log(high["epsilon"] / low["epsilon"])
                tiny, generated = (low[name] + share * (high[name] - low[name]) for name in ("tiny", "generated"))
                found.append(Expected(organizations, tiny, generated, epsilon in (low["epsilon"], high["epsilon"])))
                break
    return tuple(found)


def differences(plan: RunPlan) -> tuple[str, ...]:
    """Where ``plan`` is not what was measured, e.g. ``rows 500 (measured: 1024)``."""
    conditions = measurements()["conditions"]
    mine = asdict(plan)
    return tuple(
        f"{name} {mine[name]:g} (measured: {conditions[name]:g})"
        for name in ("rows", "batch", "rounds", "steps", "delta")
        if mine[name] != conditions[name]
    )


def outlook(plan: RunPlan, sigma: float, ledger: Path, dataset: str | None = None) -> LedgerOutlook:
    """What the planned run would do to an account in the ledger at ``ledger`` (the file, or a folder with it)."""
    reading = read_ledger(ledger / LEDGER if ledger.is_dir() else ledger)
    if reading.problems:
        raise VerificationFailed([f"{reading.path}: {problem}" for problem in reading.problems])
    genesis, account = reading.content.genesis, _account(reading, dataset)
    delta, budget, history = genesis.delta, account.budget, account.events
    if delta != plan.delta:
        raise ConfigError(f"ledger {reading.path}: its delta is {delta:g}, fixed for good, not {plan.delta:g}")
    last = last_round(account.charges)
    limited = math.isfinite(budget)
    return LedgerOutlook(
        organization=genesis.organization,
        dataset=account.name,
        budget=budget if limited else None,
        spent=epsilon_prv(history, delta),
        after=epsilon_prv([*history, plan.event(sigma, plan.rounds)], delta),
        rounds_left=rounds_within(history, last, delta, budget) if limited and last is not None else None,
        planned_rounds=rounds_within(history, plan.event(sigma), delta, budget) if limited else None,
        unit=account.unit,
    )


def _account(reading: LedgerReading, dataset: str | None) -> DatasetAccount:
    accounts = {account.name: account for account in reading.content.datasets}
    if dataset is None and len(accounts) == 1:
        return next(iter(accounts.values()))
    if dataset not in accounts:
        named = "no dataset is named" if dataset is None else f"it has no dataset {dataset!r}"
        raise ConfigError(f"ledger {reading.path}: {named}; there are {', '.join(accounts)}")
    return accounts[dataset]


def last_round(charges: Sequence[Charge]) -> DpEvent | None:
    """The last charge that counts and releases something: the present rate of spending."""
    for charge in reversed(charges):
        if charge.counted and not charge.event.releases_nothing:
            return charge.event
    return None


def rounds_within(history: Sequence[DpEvent], event: DpEvent, delta: float, budget: float) -> int:
    """How many more rounds of ``event`` a ledger would accept within ``budget``; at most `MOST_ROUNDS`."""
    return greatest(
        lambda rounds: fits(history, replace(event, steps=rounds * event.steps), delta, budget), MOST_ROUNDS
    )


def greatest(holds: Callable[[int], bool], limit: int) -> int:
    """Greatest number in 1..limit for which ``holds``, 0 when for none; it holds for all below one it holds for."""
    low, high = 0, 1
    while high < limit and holds(high):
        low, high = high, 2 * high
    high = min(high, limit)
    if high == limit and holds(limit):
        return limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
