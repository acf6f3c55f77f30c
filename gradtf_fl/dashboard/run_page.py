"""Page of a simulation: its rounds, accuracy with the controls, epsilon over rounds, and who holds what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradtf_fl.dashboard.ledger_figures import LedgerFigures
from gradtf_fl.dashboard.run_view import MOST_LEDGERS, RunView, ledgers_of, view_run
from gradtf_fl.reports import (
    LedgerReport,
    OrganizationResult,
    SimulationReport,
    charted,
    control_names,
    count_of,
    epsilon_covers,
    largest_labels,
    metric_name,
    model_names,
)

MOST_ROWS = 60
"""Organizations with a line of their own."""
MOST_ROUNDS = 200
"""Attempts in the table of rounds; of more, the last ones."""
BAR = 1000
"""Units of the longest bar."""
TONES = {"running": "good", "completed": "good", "interrupted": "warn", "budget": "warn"}
ROLES = {"llm_generated": "result", "tiny_global": "result", "llm_ceiling": "limit", "tiny_ceiling": "limit"}


@dataclass(frozen=True)
class ScoreRow:
    """A model's or a control's mean score.

    Attributes:
        score: None where it was not measured. bar: its length in `BAR`.
        gain: share of the LLM's own gain; None where that has no meaning.
        role: ``result`` of what the federation delivers, ``limit`` of the comparison without privacy, else empty.
    """

    name: str
    score: float | None
    bar: float
    gain: float | None
    role: str


@dataclass(frozen=True)
class Piece:
    """Rows of one label in an organization's bar, in `BAR`; ``number`` chooses the colour."""

    label: str
    count: int
    number: int
    start: float
    length: float


@dataclass(frozen=True)
class Holding:
    """What one organization holds."""

    name: str
    rows: int
    test_rows: int
    pieces: tuple[Piece, ...]


class RunContext:
    """Context of the page's parts, at each call as it is by then."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._figures = LedgerFigures(lambda: ledgers_of(folder))
        self._of_report: tuple[SimulationReport | None, Mapping[str, Any]] = (None, {"report": None})

    def __call__(self) -> Mapping[str, Any]:
        view = view_run(self._folder)
        figures = self._figures.latest()
        costliest = max(figures.reports, key=lambda report: report.epsilon.prv, default=None)
        return {
            "view": view,
            "done": f"{view.completed}{of_rounds(view)} rounds done",
            "tone": TONES.get(view.state, "bad"),
            "rounds": view.rounds[-MOST_ROUNDS:],
            "rounds_left_out": max(0, len(view.rounds) - MOST_ROUNDS),
            "charged": charged(figures.reports) if view.state == "running" else None,
            "figures": figures,
            "curve": None if costliest is None else charted([costliest])[0],
            "least": min((report.epsilon.prv for report in figures.reports), default=None),
            "most_ledgers": MOST_LEDGERS,
            "covers": None if costliest is None else epsilon_covers(costliest.unit),
            "spoken": spoken(view, costliest),
            **self._told_of(view.report),
        }

    def _told_of(self, report: SimulationReport | None) -> Mapping[str, Any]:
        """What the page shows of a report, put together again only for another one."""
        if report is not None and report is not self._of_report[0]:
            self._of_report = (report, _of_report(report))
        return {"report": None} if report is None else self._of_report[1]


def _of_report(report: SimulationReport) -> Mapping[str, Any]:
    few = report.organizations[:MOST_ROWS]
    labels = largest_labels([organization.holds for organization in report.organizations])
    return {
        "report": report,
        "metric": metric_name(report),
        "scores": scores(report),
        "columns": {key: one_line(name) for key, name in model_names(report).items()},
        "organizations": few,
        "organizations_left_out": len(report.organizations) - len(few),
        "labels": labels,
        "holdings": holdings(few, labels),
        "rules": sorted({organization.rule for organization in report.organizations}),
    }


def scores(report: SimulationReport) -> tuple[ScoreRow, ...]:
    """Every model and control by its mean score: the TinyLM's first, the federation's result after the controls."""
    names = dict(model_names(report))
    names = {**{key: names.pop(key) for key in [*names] if not key.startswith("llm_g")}, **control_names(report)}
    order = [key for key in names if "ceiling" not in key] + [key for key in names if "ceiling" in key]
    accuracy = report.accuracy
    values = {key: accuracy.get(key) for key in order}
    longest = max([value for value in values.values() if value is not None], default=0.0)
    longest = longest if report.metric == "loss" else 1.0
    gains = report.gains
    return tuple(
        ScoreRow(
            name=one_line(names[key]),
            score=value,
            bar=0.0 if value is None or longest <= 0 else round(BAR * max(0.0, value) / longest, 1),
            gain=gains.get(key),
            role=ROLES.get(key, ""),
        )
        for key, value in values.items()
    )


def holdings(organizations: Sequence[OrganizationResult], labels: Sequence[str]) -> tuple[Holding, ...]:
    """A bar of training rows by label for each organization, all on one scale."""
    most = max((organization.rows for organization in organizations), default=0) or 1
    found = []
    for one in organizations:
        pieces, start = [], 0.0
        for number, label in enumerate(labels):
            count = count_of(one.holds, label, labels)
            if count:
                length = round(BAR * count / most, 1)
                pieces.append(Piece(label, count, number, round(start, 1), length))
                start += length
        found.append(Holding(one.name, one.rows, one.test_rows, tuple(pieces)))
    return tuple(found)


def charged(reports: Sequence[LedgerReport]) -> tuple[int, int] | None:
    """The newest round that a ledger has a charge of, and how many have one; None before the first."""
    rounds = [{charge.round for charge in report.account.charges} for report in reports]
    newest = max((number for found in rounds for number in found), default=0)
    return (newest, sum(newest in found for found in rounds)) if newest else None


def spoken(view: RunView, costliest: LedgerReport | None) -> str:
    """What is worth to be read out when it changes."""
    spent = "" if costliest is None else f", epsilon spent {costliest.epsilon.prv:.2f}"
    return f"{view.state}, {view.completed}{of_rounds(view)} rounds done{spent}"


def of_rounds(view: RunView) -> str:
    """`` of 3``; empty where nobody knows."""
    return "" if view.settings is None else f" of {view.settings.rounds}"


def one_line(heading: str) -> str:
    """A table's heading without its line breaks."""
    return heading.replace("-\n", "-").replace("\n", " ")
