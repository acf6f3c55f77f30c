"""``gradtf simulate`` on a terminal: live progress on stderr, the closing tables on stdout."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from gradtf_fl.reports.simulation_report import OrganizationResult, SimulationReport

EPSILON_COVERS = (
    "What epsilon covers: all that leaves an organization through its masked update vectors, all rounds "
    "composed jointly. Unit: one training row; adjacency: add or remove one row (replacing one costs up to "
    "twice as much); sampler: Poisson; accountant: PRV. It holds even if secure aggregation fails. "
    "What it does not cover: rows that belong together, such as one person's, which count one by one; the "
    "time and size of messages; the choice of hyper-parameters; the figures above, which come from private "
    "test rows and are shown only because this is a simulation. The simulation's noise is drawn from --seed "
    "so that a run can be repeated; such noise protects nobody, deployed organizations draw it from the system."
)


@dataclass(frozen=True)
class SimulationEvent:
    """One step of a running simulation.

    Attributes:
        stage: what goes on, e.g. ``train``, ``mask``, ``generate``, ``ceiling``.
        done, total: steps of the whole run finished so far. round: 0 outside rounds.
        joined, dropped: organizations in this round so far. epsilon: largest one spent by an organization.
        seconds: how long the stage took.
    """

    stage: str
    done: int = 0
    total: int = 0
    round: int = 0
    rounds: int = 0
    joined: int | None = None
    dropped: int | None = None
    epsilon: float | None = None
    seconds: float | None = None


class SimulationProgress:
    """Shows events: a bar and a status line on a terminal, one plain line per event elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._began = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._bar.add_task("starting", total=None)
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(self._bar, console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, event: SimulationEvent) -> None:
        """Show one event."""
        if self._live is None:
            line = f"[{time.monotonic() - self._began:6.1f} s] {_headline(event)}"
            details = _details(event)
            self.console.print(
                line + (f": {details}" if details else ""), markup=False, highlight=False, soft_wrap=True
            )
            return
        self._bar.update(
            self._task, description=_headline(event), completed=event.done, total=event.total or None
        )
        self._live.update(Group(Text(_details(event) or " ", style="dim"), self._bar))


def _headline(event: SimulationEvent) -> str:
    return f"round {event.round}/{event.rounds} {event.stage}" if event.round else event.stage


def _details(event: SimulationEvent) -> str:
    parts = []
    if event.joined is not None:
        parts.append(f"{event.joined} joined")
    if event.dropped is not None:
        parts.append(f"{event.dropped} dropped")
    if event.epsilon is not None:
        parts.append(f"epsilon spent {event.epsilon:.3f}")
    if event.seconds is not None:
        parts.append(f"{event.seconds:.1f} s")
    return ", ".join(parts)


def print_report(report: SimulationReport, console: Console) -> None:
    """The closing tables: organizations, controls, rounds, and what epsilon does and does not cover."""
    console.print(_organizations(report))
    console.print(_controls(report))
    console.print(_rounds(report))
    if report.state != "completed":
        console.print(f"[bold]{report.state}[/bold]: ", Text(report.reason), sep="")
    console.print(Text(EPSILON_COVERS), style="dim")
    console.print(Text(f"{report.wall_s:.1f} s in all; report, adapters and ledgers: {report.out}"))


def _organizations(report: SimulationReport) -> Table:
    table = Table(title="Accuracy on each organization's own private test rows")
    table.add_column("organization", no_wrap=True)
    table.add_column("rule")
    for heading in (
        "TinyLM base",
        "TinyLM tuned",
        "LLM base",
        "LLM generated",
        "LLM ceiling",
        "PGR",
        "epsilon",
    ):
        table.add_column(heading, justify="right")
    for organization in report.organizations:
        table.add_row(organization.name, organization.rule, *_figures(organization))
    table.add_section()
    accuracy = report.accuracy
    spent = max((o.epsilon for o in report.organizations), default=0.0)
    table.add_row(
        "mean",
        "",
        *_cells(accuracy[key] for key in _SHOWN),
        _cell(report.pgr),
        f"max {spent:.3f}",
        style="bold",
    )
    return table


_SHOWN = ("tiny_base", "tiny_tuned", "llm_base", "llm_generated", "llm_ceiling")


def _figures(organization: OrganizationResult) -> list[str]:
    cells = _cells(organization.accuracy.get(key) for key in _SHOWN)
    return [*cells, _cell(organization.pgr), f"{organization.epsilon:.3f} of {organization.budget:g}"]


def _controls(report: SimulationReport) -> Table:
    table = Table(title="Controls: would something simpler do? (LLM accuracy, mean over organizations)")
    for heading in ("mean shadow update", "nearest shadow update", "ridge", "Grad-Transformer"):
        table.add_column(heading, justify="right")
    accuracy = report.accuracy
    table.add_row(*_cells(accuracy[k] for k in ("mean_update", "nearest_update", "ridge", "llm_generated")))
    return table


def _rounds(report: SimulationReport) -> Table:
    table = Table(title="Rounds")
    for heading in ("round", "state", "joined", "masked", "unmasked", "max error of the sum", "up / client"):
        table.add_column(heading, justify="right")
    for r in report.rounds:
        error, sent = r.get("max_abs_error"), r.get("bytes_up_per_client")
        table.add_row(
            *(str(r.get(key, "")) for key in ("round", "state", "joined", "masked", "unmasked")),
            f"{error:.1e}" if error is not None else "-",
            f"{sent:,} B" if sent is not None else "-",
        )
    return table


def _cells(values: Iterable[float | None]) -> list[str]:
    return [_cell(value) for value in values]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
