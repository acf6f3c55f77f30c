"""The audit report on a terminal: figures in a table, and below it, once, what they refer to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import TYPE_CHECKING

from gradtf_fl.reports.audit import LedgerReport, not_covered
from gradtf_fl.reports.audit_words import limit, names_dataset, number, rounds_left, terms, title
from gradtf_fl.shown import shown

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

WIDE = 100
"""Columns from which on there is room for air, and for a column of datasets."""
LEGEND = (
    "PRV, PLD, RDP: epsilon spent by three accountants, all rounds composed jointly; replace: by PLD for one {unit} "
    "exchanged. Left: budget less PRV. Rounds left: projected, each like the last one."
)


@dataclass(frozen=True)
class AuditTable:
    """What rich prints for ``reports``; the layout follows the terminal's width, the content does not."""

    reports: Sequence[LedgerReport]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.text import Text

        yield self._figures(wide=options.max_width >= WIDE)
        units = sorted({report.unit.name for report in self.reports}, reverse=True)
        yield Text("\n" + LEGEND.format(unit=" or ".join(units)))
        for text in self._warnings():
            yield Text(text, "bold red")
        yield ""
        yield self._terms()
        yield Text("\nNot covered by epsilon:")
        bullets = _grid()
        for text in not_covered(report.unit for report in self.reports):
            bullets.add_row(" -", Text(text))
        yield bullets

    def _figures(self, wide: bool) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        clients = any(report.client_level is not None for report in self.reports)
        datasets = wide and any(names_dataset(report) for report in self.reports)
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1 if wide else 0, 0, 0))
        table.add_column("organization", overflow="fold", min_width=8)
        if datasets:
            table.add_column("dataset", overflow="fold")
        for heading in ("rounds", "PRV", "PLD", "RDP", "replace", "budget", "left", "rounds\nleft"):
            table.add_column(heading, justify="right", no_wrap=True)
        if clients:
            table.add_column("client\nlevel", justify="right", no_wrap=True)
        table.add_column("chain", no_wrap=True)
        for report in self.reports:
            names = [shown(report.organization), shown(report.dataset)] if datasets else [title(report)]
            state = Text("ok", "green") if report.sound else Text("BROKEN", "bold red")
            table.add_row(*(Text(name) for name in names), *_cells(report, clients), state)
        return table

    def _warnings(self) -> Iterator[str]:
        for report in self.reports:
            if not report.epsilon_valid:
                yield f"{title(report)}: EPSILON NOT VALID, the accountants assume Poisson sampling"
        for reading in {id(report.reading): report.reading for report in self.reports}.values():
            for problem in reading.problems:
                yield f"{shown(reading.content.genesis.organization)}: BROKEN, {shown(problem)}"

    def _terms(self) -> Table:
        from rich.text import Text

        grid = _grid()
        for term in terms(self.reports):
            names = chain([f"{term.name}:"], repeat(""))
            for name, (value, whose) in zip(names, term.values, strict=False):
                grid.add_row(name, Text(value if whose is None else f"{value} ({whose})"))
        return grid


def _cells(report: LedgerReport, clients: bool) -> list[str]:
    figures = (report.epsilon.prv, report.epsilon.pld, report.epsilon.rdp, report.replace_one)
    return [
        str(sum(charge.counted for charge in report.account.charges)),
        *("inf" if math.isinf(value) else number(value) for value in figures),
        limit(report.budget),
        limit(report.remaining),
        rounds_left(report),
        *([number(report.client_level)] if clients else []),
    ]


def _grid() -> Table:
    """Two columns without lines: a word, and text that wraps."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    return grid
