"""The audit report as JSON, CSV, HTML or a table for the terminal."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradtf_fl import __version__
from gradtf_fl.privacy.skellam import CLIENT_ASSUMPTIONS
from gradtf_fl.reports.audit import NOT_COVERED, LedgerReport, round_json
from gradtf_fl.reports.audit_chart import chart, highest

if TYPE_CHECKING:
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
]


def to_json(reports: Sequence[LedgerReport]) -> str:
    """One JSON document: ``{"ledgers": [...]}``."""
    return json.dumps({"ledgers": [report.to_json() for report in reports]}, indent=1, allow_nan=False) + "\n"


def to_csv(reports: Sequence[LedgerReport]) -> str:
    """One line per charge; a ledger without charges has one line with empty round columns."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for report in reports:
        document = report.to_json()
        fixed = {name: document[name] for name in ("organization", "dataset", "delta", "budget")}
        fixed["chain_ok"] = report.sound
        for cost in [round_json(c) for c in report.rounds] or [{}]:
            writer.writerow({**cost, **fixed})
    return buffer.getvalue()


def to_html(reports: Sequence[LedgerReport]) -> str:
    """A self-contained page: no scripts, no fonts, nothing fetched."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("gradtf_fl", "reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    top = highest(list(reports))
    pairs = [(report, chart(report, top)) for report in reports]
    template = environment.get_template("audit.html")
    assumptions = CLIENT_ASSUMPTIONS
    return template.render(pairs=pairs, not_covered=NOT_COVERED, assumptions=assumptions, version=__version__) + "\n"


def number(value: float | None, digits: int = 3) -> str:
    """A figure for people: infinity in a word, a dash for none."""
    if value is None:
        return "–"
    return "infinite" if math.isinf(value) else f"{value:.{digits}f}"


def to_table(reports: Sequence[LedgerReport]) -> RenderableType:
    """Tables for the terminal: one line per ledger, then what the figures mean."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    title = "Epsilon spent (replace: one row exchanged, by PLD)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("organization", overflow="fold")
    for heading in ("rounds", "PRV", "PLD", "RDP", "replace", "budget", "left"):
        table.add_column(heading, justify="right", no_wrap=True)
    with_clients = any(report.client_level is not None for report in reports)
    if with_clients:
        table.add_column("client\nlevel", justify="right", no_wrap=True)
    table.add_column("chain")
    for report in reports:
        figures = (report.epsilon.prv, report.epsilon.pld, report.epsilon.rdp, report.replace_one)
        limits = ["none" if math.isinf(value) else number(value) for value in (report.budget, report.remaining)]
        chain = Text("ok", "green") if report.sound else Text("BROKEN", "bold red")
        cells = [str(len(report.account.charges)), *(number(value) for value in figures), *limits]
        cells += [number(report.client_level)] if with_clients else []
        table.add_row(Text(report.organization), *cells, chain)
    return Group(table, *(Text(line) for line in meaning(reports)))


def meaning(reports: Sequence[LedgerReport]) -> list[str]:
    """The words without which an epsilon is not a report, each line once."""
    lines: dict[str, None] = {}
    for report in reports:
        genesis = report.reading.content.genesis
        lines[f"unit: {genesis.unit}; adjacency: {genesis.adjacency}; delta {report.delta:g}"] = None
        lines[f"sampler: {genesis.sampler}"] = None
        lines[f"accountant: {genesis.accountant}"] = None
        lines[f"noise generator: {'; '.join(report.noise)}"] = None
        if report.client_level is not None:
            lines[f"client level (one organization in the opened sums): {CLIENT_ASSUMPTIONS}"] = None
        if not report.epsilon_valid:
            lines[f"{report.organization}: EPSILON NOT VALID, the accountants assume Poisson sampling"] = None
    lines["Not covered by epsilon:"] = None
    lines |= dict.fromkeys(f"  - {text}" for text in NOT_COVERED)
    return list(lines)
