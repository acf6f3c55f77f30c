"""Words around the audit's figures that every format for people shares: names, figures, and what they refer to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gradtf_fl.privacy import CLIENT_ASSUMPTIONS, MOST_ROUNDS, TRAIN
from gradtf_fl.reports.audit import LedgerReport
from gradtf_fl.shown import shown

NAMED = 6
"""How many organizations that share a value are named; all of them unless they are the majority."""


def number(value: float | None, digits: int = 3) -> str:
    """A figure for people: infinity in a word, a dash for none."""
    if value is None:
        return "–"
    return "infinite" if math.isinf(value) else f"{value:.{digits}f}"


def limit(value: float) -> str:
    """A budget or what is left of it; "none" where nothing limits it."""
    return "none" if math.isinf(value) else number(value)


def names_dataset(report: LedgerReport) -> bool:
    """Whether the dataset must be named: it is not the ledger's only one, or not the usual one."""
    return len(report.reading.content.budgets) > 1 or report.dataset != TRAIN


def title(report: LedgerReport) -> str:
    """The organization, and its dataset where that must be named."""
    dataset = f" / {shown(report.dataset)}" if names_dataset(report) else ""
    return shown(report.organization) + dataset


def rounds_left(report: LedgerReport) -> str:
    """Projected rounds left, a dash without a budget or a round."""
    rounds = report.projected_rounds
    if rounds is None:
        return "–"
    return f"{rounds}+" if rounds >= MOST_ROUNDS else str(rounds)


def noisers(report: LedgerReport) -> str:
    """Honest organizations whose noise the client-level epsilon rests on: "4", or "3 to 5" over its rounds."""
    least, *_, most = report.noisers * 2
    return str(least) if least == most else f"{least} to {most}"


@dataclass(frozen=True)
class Term:
    """One thing that figures refer to. ``values``: each value and whose it is (None: everybody's)."""

    name: str
    values: tuple[tuple[str, str | None], ...]


def terms(reports: Sequence[LedgerReport]) -> tuple[Term, ...]:
    """The words without which an epsilon is not a report, in the order of an audit."""
    found = [
        _term("unit", reports, lambda report: report.unit.text),
        _term("adjacency", reports, lambda report: report.unit.adjacency),
        _term("delta", reports, lambda report: f"{report.delta:g}"),
        _term("sampler", reports, lambda report: report.sampler),
        _term("accountant", reports, lambda report: report.reading.content.genesis.accountant),
        _term("noise generator", reports, lambda report: "; ".join(report.noise)),
    ]
    clients = [report for report in reports if report.client_level is not None]
    if clients:
        assumptions = f"of one organization in the opened sums; {CLIENT_ASSUMPTIONS}"
        found.append(Term("client level", ((assumptions, None),)))
        found.append(_term("honest noisers", clients, noisers))
    return tuple(found)


def _term(name: str, reports: Sequence[LedgerReport], value_of: Callable[[LedgerReport], str]) -> Term:
    owners: dict[str, dict[str, None]] = {}
    for report in reports:
        owners.setdefault(shown(value_of(report)), {})[title(report)] = None
    if len(owners) <= 1:
        return Term(name, tuple((value, None) for value in owners))
    most = max(owners, key=lambda value: len(owners[value]))
    crowd = len(owners[most])
    shortened = crowd > NAMED and all(len(names) < crowd for value, names in owners.items() if value != most)
    return Term(
        name,
        tuple(
            (value, f"the other {crowd}" if shortened and value == most else ", ".join(names))
            for value, names in owners.items()
        ),
    )
