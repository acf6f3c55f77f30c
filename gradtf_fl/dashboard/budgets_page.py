"""Page of ledgers: each budget with its charges and the rounds that still fit, as `gradtf audit report` has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradtf_fl.dashboard.ledger_figures import LedgerFigures
from gradtf_fl.dashboard.sources import Sources
from gradtf_fl.file_names import LEDGER
from gradtf_fl.reports import LedgerReport, charted, not_covered


class BudgetsContext:
    """Context of the page's parts, at each call as it is by then."""

    def __init__(self, sources: Sources) -> None:
        own = None if sources.organization is None else sources.organization / LEDGER
        self._own = own
        self._named = tuple(path for path in sources.ledgers if path != own)
        self._figures = LedgerFigures(self._paths)

    def __call__(self) -> Mapping[str, Any]:
        figures = self._figures.latest()
        return {
            "pairs": charted(figures.reports),
            "problems": figures.problems,
            "pending": figures.pending,
            "uncharged": self._own is not None and not self._own.is_file(),
            "not_covered": not_covered(report.unit for report in figures.reports),
            "units": sorted({report.unit.name for report in figures.reports}, reverse=True),
            "spoken": spoken(figures.reports),
        }

    def _paths(self) -> list[Path]:
        own = [self._own] if self._own is not None and self._own.is_file() else []
        return [*own, *self._named]


def spoken(reports: Sequence[LedgerReport]) -> str:
    """How many charges there are by now."""
    if not reports:
        return ""
    charges = sum(len(report.account.charges) for report in reports)
    return f"{charges} charges in {len(reports)} budgets"
