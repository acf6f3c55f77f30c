"""Every charge of a ledger in a few lines: which rounds, how they ended, at what noise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from gradtf_fl.privacy import Charge
from gradtf_fl.shown import shown

CHARGE_HEADINGS = ("charged to", "charges", "rounds", "runs", "how they ended", "sigma", "q", "steps")
MOST_KINDS = 6
"""Lines of the table; further kinds share the last one."""
STATES = ("settled", "reserved", "aborted", "released")
NOT_COUNTED = {"released": "released, not counted"}
LONGEST_TIME, LONGEST_NUMBER = 40, 12


@dataclass
class _Kind:
    dataset: str
    sigma: str
    q: str
    charges: int = 0
    steps: int = 0
    rounds: set[int] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)
    states: Counter[str] = field(default_factory=Counter)

    def add(self, charge: Charge) -> None:
        self.charges += 1
        self.steps += charge.event.steps if charge.counted else 0
        self.rounds.add(charge.round)
        self.runs.add(charge.run_id)
        self.states[charge.state] += 1

    def row(self) -> tuple[str, ...]:
        states = ", ".join(
            f"{self.states[state]} {NOT_COUNTED.get(state, state)}" for state in STATES if self.states[state]
        )
        return (
            self.dataset,
            f"{self.charges:,}",
            spans(self.rounds),
            f"{len(self.runs):,}",
            states,
            self.sigma,
            self.q,
            f"{self.steps:,}",
        )


def charge_rows(accounts: Sequence[tuple[str, Sequence[Charge]]]) -> tuple[tuple[str, ...], ...]:
    """Cells below `CHARGE_HEADINGS`: charges of equal noise and sampling together, the commonest kinds alone.

    Args:
        accounts: a dataset's name and its charges, one pair a dataset.
    """
    kinds: dict[tuple[str, float, float], _Kind] = {}
    for dataset, charges in accounts:
        for charge in charges:
            event = charge.event
            key = dataset, event.sigma, event.q
            kinds.setdefault(key, _Kind(dataset, f"{event.sigma:.4f}", f"{event.q:.5f}")).add(charge)
    alone, others = list(kinds), []
    if len(kinds) > MOST_KINDS:
        common = set(sorted(kinds, key=lambda key: -kinds[key].charges)[: MOST_KINDS - 1])
        alone, others = [key for key in kinds if key in common], [key for key in kinds if key not in common]
    rows = [kinds[key].row() for key in alone]
    return (*rows, _together([kinds[key] for key in others])) if others else tuple(rows)


def _together(kinds: Sequence[_Kind]) -> tuple[str, ...]:
    """One line for many kinds of step."""
    sigmas, rates = sorted(float(kind.sigma) for kind in kinds), sorted(float(kind.q) for kind in kinds)
    total = _Kind(
        f"{len(kinds)} other kinds", f"{sigmas[0]:.4f} to {sigmas[-1]:.4f}", f"{rates[0]:.5f} to {rates[-1]:.5f}"
    )
    for kind in kinds:
        total.charges += kind.charges
        total.steps += kind.steps
        total.rounds |= kind.rounds
        total.runs |= kind.runs
        total.states += kind.states
    return total.row()


def spans(numbers: set[int], most: int = 4) -> str:
    """Whole numbers in a few characters: ``1 to 3, 7``; of more than ``most`` spans, the first and the last number."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    if len(found) > most:
        return f"{len(numbers):,} between {_digits(found[0][0])} and {_digits(found[-1][1])}"
    return ", ".join(_digits(low) if low == high else f"{_digits(low)} to {_digits(high)}" for low, high in found)


def _digits(number: int) -> str:
    return shown(number, LONGEST_NUMBER)


def period(charges: Sequence[Charge]) -> tuple[str, str]:
    """When the first and the last charge were written, by the organization's clock; dashes without any."""
    if not charges:
        return "–", "–"
    return moment(charges[0].when), moment(charges[-1].when)


def moment(text: str) -> str:
    """A recorded time to the minute, in UTC; text that is not a time as it stands."""
    try:
        return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError):
        return shown(text, LONGEST_TIME)
