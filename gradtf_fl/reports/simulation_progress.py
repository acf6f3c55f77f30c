"""Live progress of ``gradtf simulate`` on stderr: a bar with the time left, or a line now and then."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.progress import TextColumn, TimeElapsedColumn

from gradtf_fl.reports.progress import ProgressDisplay

STAGE_LINE_EVERY_S = 5.0
"""Seconds between two lines about stages of rounds."""


@dataclass(frozen=True)
class SimulationEvent:
    """One step of a running simulation.

    Attributes:
        stage: what happens now, e.g. ``train``, ``mask``, ``generate``, ``ceiling``.
        done, total: steps of the whole run finished so far.
        round: 0 outside rounds.
        joined, expected, dropped: organizations that answered, that were asked, and that this round has lost.
        answered: organizations that answered this stage or were lost in it.
        epsilon: largest one spent by an organization.
        seconds: how long the stage took.
        left_s: seconds that the run still takes, an estimate; None without one.
        passing: of interest only while it lasts.
        out: the folder of the run, told once, when the run can be continued from there; else empty.
    """

    stage: str
    done: int = 0
    total: int = 0
    round: int = 0
    rounds: int = 0
    joined: int | None = None
    expected: int | None = None
    dropped: int | None = None
    answered: int = 0
    epsilon: float | None = None
    seconds: float | None = None
    left_s: float | None = None
    passing: bool = False
    out: str = ""


class SimulationProgress(ProgressDisplay):
    """Shows events: a bar and a status line on a terminal; elsewhere a line for what is new, but of the stages in
    rounds one every `STAGE_LINE_EVERY_S` seconds at most."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__("starting", TimeElapsedColumn(), TextColumn("{task.fields[rate]}"), console=console)
        self._last_line = float("-inf")

    def show(self, event: SimulationEvent) -> None:
        """Show one event."""
        details, left = _details(event), time_left(event.left_s)
        if self.live:
            training = event.stage == "train" and event.expected
            done, total = (event.answered, event.expected) if training else (event.done, event.total or None)
            self.show_bar(_headline(event), done, total, rate=left, details=details)
        elif self._is_due(event):
            self._last_line = self.seconds
            text = f"{event.answered:,} of {event.expected:,} answered" if event.passing else details
            self.show_line(": ".join(filter(None, (_headline(event), ", ".join(filter(None, (text, left)))))))

    def _is_due(self, event: SimulationEvent) -> bool:
        waited = self.seconds - self._last_line >= STAGE_LINE_EVERY_S
        if event.passing:
            return waited and bool(event.answered and event.expected)
        over = event.epsilon is not None and (event.round == event.rounds or event.stage != "completed")
        return waited or not event.round or over


def time_left(seconds: float | None) -> str:
    """An estimate in words, as exact as it may be; empty without one.

    >>> from gradtf_fl.reports.simulation_progress import time_left
    >>> time_left(40.0), time_left(250.0), time_left(3000.0), time_left(9000.0)
    ('under 1 min left', 'about 4 min left', 'about 50 min left', 'about 2.5 h left')
    """
    if seconds is None:
        return ""
    minutes = seconds / 60
    if minutes < 1:
        return "under 1 min left"
    if minutes < 9.5:
        return f"about {minutes:.0f} min left"
    if minutes < 87.5:
        return f"about {5 * round(minutes / 5)} min left"
    return f"about {round(minutes / 30) / 2:g} h left"


def _headline(event: SimulationEvent) -> str:
    return f"round {event.round}/{event.rounds} {event.stage}" if event.round else event.stage


def _details(event: SimulationEvent) -> str:
    parts = []
    if event.joined is not None:
        parts.append(f"{event.joined:,}{f' of {event.expected:,}' if event.expected else ''} joined")
    if event.dropped is not None:
        parts.append(f"{event.dropped:,} dropped")
    if event.epsilon is not None:
        parts.append(f"epsilon spent {event.epsilon:.3f}")
    if event.seconds is not None:
        parts.append(f"{event.seconds:.1f} s")
    return ", ".join(parts)
