"""The audit report as JSON, CSV, HTML or a table for the terminal."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradtf_fl.privacy import CLIENT_ASSUMPTIONS
from gradtf_fl.reports.audit import LedgerReport, RoundCost, finite, not_covered, round_json
from gradtf_fl.reports.audit_chart import Chart, chart, highest
from gradtf_fl.reports.audit_table import AuditTable
from gradtf_fl.reports.audit_words import limit, noisers, number, rounds_left, title
from gradtf_fl.shown import shown
from gradtf_fl.version import __version__

if TYPE_CHECKING:
    from jinja2 import BaseLoader, Environment
    from rich.console import RenderableType

CSV_COLUMNS = [
    "organization",
    "dataset",
    "delta",
    "budget",
    "chain_ok",
    "run",
    "round",
    "attempt",
    "state",
    "sigma",
    "q",
    "steps",
    "epsilon_after",
    "noise_generator",
    "when",
    "unit",
    "adjacency",
    "sampler",
    "accountant",
    "epsilon_prv",
    "epsilon_pld",
    "epsilon_rdp",
    "remaining",
    "projected_rounds_left",
    "client_level_epsilon",
    "head",
]
MOST_INDENTED = 10_000
"""Charges up to which JSON is indented, which takes Python several times as long."""
MOST_LISTED = 100
"""Charges of one account that the page lists in full."""


def to_json(reports: Sequence[LedgerReport]) -> str:
    """One JSON document: ``{"ledgers": [...]}``; one line a ledger beyond `MOST_INDENTED` charges."""
    documents = [report.to_json() for report in reports]
    if sum(len(document["rounds"]) for document in documents) <= MOST_INDENTED:
        return json.dumps({"ledgers": documents}, indent=1, allow_nan=False) + "\n"
    return '{"ledgers": [\n' + ",\n".join(json.dumps(each, allow_nan=False) for each in documents) + "\n]}\n"


def to_csv(reports: Sequence[LedgerReport]) -> str:
    """One line per charge; a ledger without charges has one line with empty round columns."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for report in reports:
        fixed = {name: inert(value) for name, value in _fixed(report).items()}
        for cost in [round_json(c) for c in report.rounds] or [{}]:
            texts = {name: inert(cost.get(name)) for name in ("run", "noise_generator", "when")}
            line = {**cost, **texts, **fixed}
            writer.writerow([line.get(name) for name in CSV_COLUMNS])
    return buffer.getvalue()


def _fixed(report: LedgerReport) -> dict[str, object]:
    """What every line of one account repeats."""
    genesis, spent = report.reading.content.genesis, report.epsilon
    return {
        "organization": report.organization,
        "dataset": report.dataset,
        "delta": report.delta,
        "budget": finite(report.budget),
        "chain_ok": report.sound,
        "unit": report.unit.text,
        "adjacency": report.unit.adjacency,
        "sampler": report.sampler,
        "accountant": genesis.accountant,
        "epsilon_prv": finite(spent.prv),
        "epsilon_pld": finite(spent.pld),
        "epsilon_rdp": finite(spent.rdp),
        "remaining": finite(report.remaining),
        "projected_rounds_left": report.projected_rounds,
        "client_level_epsilon": finite(report.client_level),
        "head": report.reading.head.hex(),
    }


def inert(value: object) -> object:
    """``value``; text that a spreadsheet would take for a formula gets an apostrophe in front (CWE-1236)."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def to_html(reports: Sequence[LedgerReport]) -> str:
    """A self-contained page: no scripts, no fonts, nothing fetched."""
    return (
        audit_environment()
        .get_template("audit.html")
        .render(
            pairs=charted(reports),
            ledgers=len({report.reading.path for report in reports}),
            broken=len({report.reading.path for report in reports if not report.sound}),
            not_covered=not_covered(report.unit for report in reports),
            units=sorted({report.unit.name for report in reports}, reverse=True),
            version=__version__,
        )
        + "\n"
    )


def charted(reports: Sequence[LedgerReport]) -> list[tuple[LedgerReport, Chart | None]]:
    """Each report with its chart, all on one axis of epsilon; None where it is infinite."""
    top = highest(list(reports))
    return [(report, chart(report, top)) for report in reports]


def audit_environment(*loaders: BaseLoader) -> Environment:
    """Jinja for pages about ledgers: this folder's templates after those of ``loaders``, and their filters."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([*loaders, PackageLoader("gradtf_fl", "reports")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "shown": shown,
        "title": title,
        "rounds_left": rounds_left,
        "limit": lambda report: limit(report.budget),
        "left": lambda report: limit(report.remaining),
        "noisers": noisers,
        "listed": listed,
    }
    environment.globals["assumptions"] = CLIENT_ASSUMPTIONS
    return environment


def listed(rounds: Sequence[RoundCost]) -> list[RoundCost]:
    """Charges for the page: all, or of more than `MOST_LISTED` those of the curve and those that were not settled."""
    if len(rounds) <= MOST_LISTED:
        return list(rounds)
    return [cost for cost in rounds if cost.epsilon_after is not None or cost.charge.state != "settled"]


def to_table(reports: Sequence[LedgerReport]) -> RenderableType:
    """For the terminal: a line of figures per dataset of each ledger, then what the figures mean."""
    return AuditTable(reports)
