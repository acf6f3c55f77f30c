"""What an auditor is told about a ledger: every epsilon with the words that give it meaning."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gradtf_fl.privacy import (
    CLIENT_ACCOUNTANT,
    CLIENT_ADJACENCY,
    CLIENT_ASSUMPTIONS,
    CLIENT_NOISE,
    CLIENT_UNIT,
    NOISE_UNRECORDED,
    SAMPLERS,
    Charge,
    DatasetAccount,
    DpEvent,
    Epsilons,
    LedgerReading,
    SkellamRdp,
    Unit,
    epsilon_pld_replace_one,
    epsilon_prv,
    epsilons,
    merge,
    read_ledger,
)
from gradtf_fl.reports.projection import projected_rounds

CURVE_POINTS = 32
"""Rounds for which epsilon is recomputed; of a longer history every n-th round and the last."""
ALL_CURVES_POINTS = 320
"""Points over all ledgers of one report; each has at least `FEWEST_POINTS`."""
FEWEST_POINTS = 4

BY_UNIT = {
    "row": "People with several rows: the unit is one row, so k rows of one person cost up to k times as much.",
    "person": "People whom the data has under several names: the unit is all rows with one value of the field that "
    "says whose they are. Who is in several datasets, or at several organizations, pays in each of them.",
}
"""By the unit's name."""
NOT_COVERED = (
    "That the organization takes part, how many rows or persons it has (q and the batch size give it away), and its "
    "hyper-parameters.",
    "Clipping rates, losses, exact batch sizes and evaluation figures. They stay in the organization; who "
    "publishes them leaves this guarantee.",
    "Noise or clipping bounds that were tuned by looking at the private rows.",
    "Attacks on the floating-point noise and on the running machine (timing, memory).",
    "Anything trained without noise, such as the comparison ceiling of a simulation.",
)


def not_covered(units: Iterable[Unit]) -> tuple[str, ...]:
    """What epsilons of these units do not cover."""
    first, *others = NOT_COVERED
    return (first, *dict.fromkeys(BY_UNIT[unit.name] for unit in units), *others)


@dataclass(frozen=True)
class RoundCost:
    """One charge and epsilon (PRV, joint) after it; None where the curve leaves this round out."""

    charge: Charge
    epsilon_after: float | None


@dataclass(frozen=True)
class LedgerReport:
    """One dataset's figures.

    Attributes:
        reading: the ledger as found, with the breaks of its chain.
        account: the dataset, its budget and its charges.
        events: what counts, merged by (sigma, q).
        epsilon: joint epsilon, add/remove adjacency.
        replace_one: the same by PLD for one REPLACED row (person).
        remaining: budget less PRV epsilon, at least 0; inf without a budget.
        noise: every kind of noise generator that a charge names.
        client_level: epsilon of one organization in the opened sums by their Skellam noise, over all of its
            datasets; None without any.
        curve_points: at how many of its rounds epsilon is recomputed in `rounds`.
    """

    reading: LedgerReading
    account: DatasetAccount
    events: tuple[DpEvent, ...]
    epsilon: Epsilons
    replace_one: float
    remaining: float
    noise: tuple[str, ...]
    client_level: float | None
    curve_points: int = CURVE_POINTS

    @cached_property
    def rounds(self) -> tuple[RoundCost, ...]:
        """Every charge in order, some with epsilon after it; computed when it is first asked for."""
        return _curve(self.account.charges, self.delta, self.curve_points)

    @cached_property
    def projected_rounds(self) -> int | None:
        """Rounds like the last one that still fit the budget, at most `MOST_ROUNDS`; None: no budget or no round yet.

        Computed when it is first asked for, once for equal histories.
        """
        return projected_rounds(self.account, self.delta)

    @property
    def organization(self) -> str:
        return self.reading.content.genesis.organization

    @property
    def dataset(self) -> str:
        return self.account.name

    @property
    def unit(self) -> Unit:
        """Whose epsilon it is."""
        return self.account.unit

    @property
    def sampler(self) -> str:
        """How steps draw: in the dataset's unit, unless the ledger is of another sampler."""
        return self.unit.sampler if self.epsilon_valid else self.reading.content.genesis.sampler

    @property
    def delta(self) -> float:
        return self.reading.content.genesis.delta

    @property
    def budget(self) -> float:
        return self.account.budget

    @property
    def noisers(self) -> tuple[int, ...]:
        """How many honest organizations each opened sum's noise is assumed to come from: every number that occurs."""
        return tuple(sorted({event.noisers for event in self.reading.content.client_level}))

    @property
    def sound(self) -> bool:
        """Whether the chain holds; the figures of a broken one prove nothing."""
        return not self.reading.problems

    @property
    def epsilon_valid(self) -> bool:
        """Whether the sampler is the one that the accountants assume (fixed-size batches are not)."""
        return self.reading.content.genesis.sampler in SAMPLERS

    def to_json(self) -> dict[str, Any]:
        """The audit document of one ledger; infinite figures become null."""
        genesis = self.reading.content.genesis
        return {
            "organization": self.organization,
            "dataset": self.dataset,
            "ledger": str(self.reading.path),
            "unit": self.unit.text,
            "adjacency": self.unit.adjacency,
            "delta": self.delta,
            "sampler": self.sampler,
            "accountant": genesis.accountant,
            "noise_generator": list(self.noise),
            "events": [{"sigma": e.sigma, "q": e.q, "steps": e.steps} for e in self.events],
            "epsilon": {
                "prv": finite(self.epsilon.prv),
                "pld": finite(self.epsilon.pld),
                "rdp": finite(self.epsilon.rdp),
                "replace_one_pld": finite(self.replace_one),
            },
            "client_level": self._client_level_json(),
            "epsilon_valid": self.epsilon_valid,
            "budget": finite(self.budget),
            "remaining": finite(self.remaining),
            "projected_rounds_left": self.projected_rounds,
            "rounds": [round_json(cost) for cost in self.rounds],
            "not_covered": list(not_covered([self.unit])),
            "chain": {
                "ok": self.sound,
                "head": self.reading.head.hex(),
                "rows": self.reading.rows,
                "public_key": self.reading.keys[-1].hex(),
                "problems": [{"row": p.row, "what": p.what} for p in self.reading.problems],
            },
        }

    def _client_level_json(self) -> dict[str, Any] | None:
        if self.client_level is None:
            return None
        return {
            "epsilon": finite(self.client_level),
            "delta": self.delta,
            "unit": CLIENT_UNIT,
            "adjacency": CLIENT_ADJACENCY,
            "accountant": CLIENT_ACCOUNTANT,
            "noise_generator": CLIENT_NOISE,
            "assumptions": CLIENT_ASSUMPTIONS,
            "events": [asdict(event) for event in self.reading.content.client_level],
        }


def round_json(cost: RoundCost) -> dict[str, Any]:
    """JSON form of one charge."""
    charge = cost.charge
    return {
        "run": charge.run_id,
        "round": charge.round,
        "attempt": charge.attempt,
        "state": charge.state,
        "sigma": charge.event.sigma,
        "q": charge.event.q,
        "steps": charge.event.steps,
        "epsilon_after": finite(cost.epsilon_after),
        "noise_generator": charge.noise,
        "note": charge.note,
        "when": charge.when,
    }


def finite(value: float | None) -> float | None:
    """``value``, or None where JSON has no number for it."""
    return value if value is not None and math.isfinite(value) else None


def report_ledger(path: str | Path) -> tuple[LedgerReport, ...]:
    """Read one ledger and recompute its epsilons from its events, dataset by dataset.

    Raises:
        ConfigError: no file, or no ledger.
        VerificationFailed: too damaged to be read. Lesser breaks are in the report (`LedgerReport.sound`).
    """
    return tuple(report_all([read_for_report(path)]))


def read_for_report(path: str | Path) -> LedgerReading:
    """The ledger at ``path``, checked as far as its figures hang on it.

    That is the file's structure, its bytes and its head, the hash and the meaning of every row, and the signatures
    that all others hang on (the last row's and each rotation's): whoever signed the last row signed every figure.
    That every single signature is whole is for `gradtf audit verify` to say.
    """
    return read_ledger(path, every_signature=False)


def report_all(readings: Sequence[LedgerReading]) -> list[LedgerReport]:
    """The figures of each dataset of each ledger, with fewer points on each curve the more ledgers there are."""
    points = curve_points(len(readings))
    return [report for reading in readings for report in report_ledger_reading(reading, points)]


def curve_points(ledgers: int) -> int:
    """Points on each curve of a report on this many ledgers."""
    return min(CURVE_POINTS, max(FEWEST_POINTS, ALL_CURVES_POINTS // max(1, ledgers)))


def report_ledger_reading(reading: LedgerReading, points: int) -> list[LedgerReport]:
    """The figures of each dataset of one ledger."""
    delta, clients = reading.content.genesis.delta, reading.content.client_level
    client_level = SkellamRdp().epsilon(clients, delta) if clients else None
    return [_report(reading, account, client_level, points) for account in reading.content.datasets]


def _report(
    reading: LedgerReading, account: DatasetAccount, client_level: float | None, curve_points: int
) -> LedgerReport:
    delta, events = reading.content.genesis.delta, merge(account.events)
    spent = epsilons(events, delta)
    noise = dict.fromkeys(charge.noise for charge in account.charges if charge.counted)
    return LedgerReport(
        reading=reading,
        account=account,
        events=events,
        epsilon=spent,
        replace_one=epsilon_pld_replace_one(events, delta),
        remaining=max(0.0, account.budget - spent.prv) if math.isfinite(spent.prv) else 0.0,
        noise=tuple(noise) or (NOISE_UNRECORDED,),
        client_level=client_level,
        curve_points=curve_points,
    )


def _curve(charges: Sequence[Charge], delta: float, points: int) -> tuple[RoundCost, ...]:
    stride = math.ceil(len(charges) / points) or 1
    costs = []
    history: tuple[DpEvent, ...] = ()
    pending: list[DpEvent] = []
    for i, charge in enumerate(charges):
        if charge.counted:
            pending.append(charge.event)
        after = None
        if i % stride == stride - 1 or i + 1 == len(charges):
            history, pending = merge((*history, *pending)), []
            after = epsilon_prv(history, delta)
        costs.append(RoundCost(charge, after))
    return tuple(costs)
