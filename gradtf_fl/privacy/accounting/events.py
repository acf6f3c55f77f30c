"""What a privacy accountant reads: runs of one mechanism, and the words that give an epsilon its meaning."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from gradtf_fl.privacy.accounting.skellam import SkellamEvent


@dataclass(frozen=True)
class Unit:
    """Whose an epsilon is: of a row, or of a person with all of their rows.

    >>> from gradtf_fl import Unit
    >>> Unit("patient").adjacency
    'add or remove one person with all of their rows'

    Attributes:
        person: the field of a row that says whose it is; None where every row counts for itself.
    """

    person: str | None = None

    @property
    def name(self) -> str:
        """``row`` or ``person``."""
        return "row" if self.person is None else "person"

    def __str__(self) -> str:
        return self.name if self.person is None else f"{self.name} (by {self.person!r})"

    @property
    def plural(self) -> str:
        """``rows`` or ``persons``."""
        return f"{self.name}s"

    @property
    def text(self) -> str:
        """The unit, for a report."""
        if self.person is None:
            return "one sequence (one row of the organization's data)"
        return f"one person (all rows of the organization's data with one value of {self.person!r})"

    @property
    def adjacency(self) -> str:
        """What two neighbouring data sets differ in."""
        return "add or remove one row" if self.person is None else "add or remove one person with all of their rows"

    @property
    def sampler(self) -> str:
        """How a step draws."""
        return f"Poisson: every {self.name} is drawn independently with probability q in each step"


ROW_UNIT = Unit()
UNIT, ADJACENCY, SAMPLER = ROW_UNIT.text, ROW_UNIT.adjacency, ROW_UNIT.sampler
SAMPLERS = (SAMPLER, Unit("").sampler)
"""All that an accountant's figures hold for."""
ACCOUNTANT = "PRV (Opacus) enforces the budget; PLD (Google dp-accounting) and RDP (Opacus) are cross-checks"
NOISE_CSPRNG = "CSPRNG-seeded, floating point, not hardened"
NOISE_SEEDED = "replayable from a seed: a simulation, protects nobody"
NOISE_UNRECORDED = "not recorded"


@dataclass(frozen=True, order=True)
class DpEvent:
    """``steps`` releases of the Poisson-subsampled Gaussian mechanism.

    >>> from gradtf_fl import DpEvent
    >>> planned = DpEvent(sigma=1.0, q=64 / 1024, steps=50)
    >>> planned.covers(DpEvent(sigma=1.0, q=64 / 1024, steps=20))
    True

    Attributes:
        sigma: noise multiplier = standard deviation of the noise / L2 sensitivity; 0 means no noise (epsilon
            = inf).
        q: probability with which each row (person) enters a step, 0..1; in a federation batch / rows (persons) that are
            declared, so that it is public.
        steps: number of releases, noise-only steps of empty batches included.

    Raises:
        ValueError: a field outside its range.
    """

    sigma: float
    q: float
    steps: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma >= 0):
            raise ValueError(f"sigma must be a finite number >= 0, not {self.sigma}")
        if not 0 <= self.q <= 1:
            raise ValueError(f"q must lie in 0..1, not {self.q}")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 0:
            raise ValueError(f"steps must be a whole number >= 0, not {self.steps}")

    @property
    def releases_nothing(self) -> bool:
        """Whether the event touches nobody: no steps, or nobody can be drawn."""
        return self.steps == 0 or self.q == 0

    def covers(self, other: DpEvent) -> bool:
        """Whether this costs at least as much as ``other``: no more noise, no smaller q, no fewer steps."""
        return other.releases_nothing or (self.sigma <= other.sigma and self.q >= other.q and self.steps >= other.steps)


Event = DpEvent | SkellamEvent
"""Two mechanisms: of a row or a person (`DpEvent`, `Unit`), and of a whole organization (`SkellamEvent`)."""


def merge(events: Iterable[DpEvent]) -> tuple[DpEvent, ...]:
    """Events with equal (sigma, q) added up, empty ones left out, in ascending order.

    Composition is commutative, so the order of a history never changes its epsilon; merging makes it cheap.
    """
    steps: dict[tuple[float, float], int] = {}
    for event in events:
        if not event.releases_nothing:
            steps[event.sigma, event.q] = steps.get((event.sigma, event.q), 0) + event.steps
    return tuple(DpEvent(sigma, q, count) for (sigma, q), count in sorted(steps.items()))


def merge_skellam(events: Iterable[SkellamEvent]) -> tuple[SkellamEvent, ...]:
    """Skellam events that differ in nothing but their releases added up, in order of first appearance."""
    releases: dict[SkellamEvent, int] = {}
    for event in events:
        kind = replace(event, releases=0)
        releases[kind] = releases.get(kind, 0) + event.releases
    return tuple(replace(kind, releases=count) for kind, count in releases.items() if count)


def separate(events: Iterable[Event]) -> tuple[tuple[DpEvent, ...], tuple[SkellamEvent, ...]]:
    """A mixed history as its two histories: what a row pays for, and what an organization pays for.

    They are never composed with each other. Each protects another unit, and the second holds only against who
    sees no more than the sums: their epsilons stand side by side and are not added.
    """
    history = tuple(events)
    rows = tuple(event for event in history if isinstance(event, DpEvent))
    return rows, tuple(event for event in history if isinstance(event, SkellamEvent))


def total_steps(events: Sequence[DpEvent]) -> int:
    """Releases in a history."""
    return sum(event.steps for event in events)
