"""A ledger's content as its rows add up to it: budgets and charges by dataset.

`Books` takes rows one by one and knows at any time what counts; `Replay` is its frozen picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradtf_fl.errors import ConfigError
from gradtf_fl.privacy.accounting.events import DpEvent, Unit
from gradtf_fl.privacy.accounting.skellam import SkellamEvent
from gradtf_fl.privacy.ledger.chain import Entry, Problem
from gradtf_fl.privacy.ledger.records import Charge, Genesis, read_body, read_budget, read_charge, read_reservation
from gradtf_fl.privacy.ledger.rotation import ROTATE


@dataclass(frozen=True)
class DatasetAccount:
    """What one dataset may spend and has spent: its budget in epsilon (may be inf), whose epsilon that is, and its
    charges in order."""

    name: str
    budget: float
    unit: Unit
    charges: tuple[Charge, ...]

    @property
    def events(self) -> tuple[DpEvent, ...]:
        """Every event that counts, in order."""
        return tuple(charge.event for charge in self.charges if charge.counted)


@dataclass(frozen=True)
class Replay:
    """A ledger's content: budgets and units by dataset, all charges in order, and rows that make no sense."""

    genesis: Genesis
    budgets: Mapping[str, float]
    units: Mapping[str, Unit]
    charges: tuple[Charge, ...]
    problems: tuple[Problem, ...]

    @property
    def datasets(self) -> tuple[DatasetAccount, ...]:
        """One account for each dataset, in order of appearance.

        The accounts stand apart because no row (and where the unit is a person, nobody) is in two datasets: that is the
        organization's promise, which a ledger cannot check. Who is in several pays in each of them.
        """
        charges: dict[str, list[Charge]] = {name: [] for name in self.budgets}
        for charge in self.charges:
            charges[charge.dataset].append(charge)
        return tuple(
            DatasetAccount(name, self.budgets[name], self.units[name], tuple(own)) for name, own in charges.items()
        )

    def dataset(self, name: str) -> DatasetAccount:
        """The account of one dataset; KeyError where the ledger does not know it."""
        own = tuple(charge for charge in self.charges if charge.dataset == name)
        return DatasetAccount(name, self.budgets[name], self.units[name], own)

    @property
    def budget(self) -> float:
        """Budget of a ledger of one dataset; ConfigError where there are several and `dataset` must name one."""
        if len(self.budgets) != 1:
            raise ConfigError(f"{self.genesis.organization} has several datasets: {', '.join(self.budgets)}")
        return next(iter(self.budgets.values()))

    @property
    def events(self) -> tuple[DpEvent, ...]:
        """Every event that counts, of all datasets: what a row (a person) that is in each of them pays."""
        return tuple(charge.event for charge in self.charges if charge.counted)

    @property
    def client_level(self) -> tuple[SkellamEvent, ...]:
        """Skellam events of every charge that counts, of all datasets: their unit is the whole organization."""
        return tuple(charge.client_level for charge in self.charges if charge.counted and charge.client_level)


class Books:
    """The running content of a ledger. Rows that make no sense become `problems` and change nothing else."""

    def __init__(self, genesis: Genesis) -> None:
        self.genesis = genesis
        self.budgets: dict[str, float] = {}
        self.units: dict[str, Unit] = {}
        self.charges: dict[int, Charge] = {}
        self.problems: list[Problem] = []
        self._steps: dict[str, dict[tuple[float, float], int]] = {}

    def enter(self, entry: Entry, document: Mapping[str, Any] | None = None) -> None:
        """Take one row after the genesis row; ``document`` is its body, where that is read already."""
        try:
            self._enter(entry, document)
        except (ValueError, KeyError) as error:
            self.problems.append(Problem(entry.number, f"a {entry.kind} row that makes no sense ({error})", "content"))

    def _enter(self, entry: Entry, document: Mapping[str, Any] | None) -> None:
        if entry.kind == ROTATE:
            return  # whether a rotation is sound is the chain's matter
        document = read_body(entry.body) if document is None else document
        if entry.kind == "reserve":
            charge = read_charge(entry.number, document)
            if charge.dataset not in self.budgets:
                raise ValueError(f"dataset {charge.dataset!r} has no budget")
            if charge.unit != self.units[charge.dataset]:
                raise ValueError(f"dataset {charge.dataset!r} is charged by another unit than its own")
            self.charges[entry.number] = charge
            self._count(charge, 1)
        elif entry.kind in ("settle", "abort"):
            opened = self.charges[read_reservation(document)]
            closed = opened.closed(entry.kind, document)
            self.charges[opened.reservation] = closed
            self._count(opened, -1)
            self._count(closed, 1)
        elif entry.kind == "budget":
            dataset, budget, unit = read_budget(document)
            if self.units.setdefault(dataset, unit) != unit:
                raise ValueError(f"dataset {dataset!r} changes its unit")
            self.budgets[dataset] = budget
        else:
            raise ValueError(f"unknown kind {entry.kind!r}")

    def _count(self, charge: Charge, sign: int) -> None:
        event = charge.event
        if not charge.counted or event.releases_nothing:
            return
        steps = self._steps.setdefault(charge.dataset, {})
        steps[event.sigma, event.q] = steps.get((event.sigma, event.q), 0) + sign * event.steps

    def spent(self, dataset: str) -> tuple[DpEvent, ...]:
        """What counts for ``dataset``, merged by (sigma, q)."""
        steps = self._steps.get(dataset, {})
        return tuple(DpEvent(sigma, q, count) for (sigma, q), count in sorted(steps.items()) if count)

    def picture(self) -> Replay:
        """The content now."""
        return Replay(
            self.genesis, dict(self.budgets), dict(self.units), tuple(self.charges.values()), tuple(self.problems)
        )


def open_books(entries: Sequence[Entry]) -> Books:
    """Books of all rows. ValueError without a readable genesis row."""
    if not entries or entries[0].kind != "genesis":
        raise ValueError("the first row is not a genesis row")
    books = Books(Genesis.parse(entries[0].body))
    for entry in entries[1:]:
        books.enter(entry)
    return books


def replay(entries: Sequence[Entry]) -> Replay:
    """The content of all rows, in order. ValueError without a readable genesis row."""
    return open_books(entries).picture()
