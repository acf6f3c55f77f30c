"""Ctrl-C and SIGTERM during a simulation: one line that says what is kept and how to continue, then the end."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from gradtf_fl.cli.main import INTERRUPTED
from gradtf_fl.file_names import REPORT
from gradtf_fl.reports import SimulationEvent, SimulationProgress

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """A context manager in which the signals end the process at once.

    A run is on disk as a killed process leaves it, at every moment, so there is nothing to wait for: an exception in
    the middle of a step of DP-SGD would only be one more way for it to end. Where other processes train (Ray), they are
    ended first, on the way out of `KeyboardInterrupt`. A second signal ends the process without that.

    Args:
        progress: what shows events, to which `show` passes them on.
        rounds: of the run.
        others: whether other processes have to be ended.
    """

    def __init__(self, progress: SimulationProgress, rounds: int, others: bool) -> None:
        self._progress, self._rounds, self._others = progress, rounds, others
        self._out: Path | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def show(self, event: SimulationEvent) -> None:
        """Show one event."""
        self._out = Path(event.out) if event.out else self._out
        self._progress.show(event)

    def _end(self, number: int, frame: FrameType | None) -> None:
        for one in SIGNALS:
            signal.signal(one, signal.SIG_DFL)
        line = kept_line(self._out, self._rounds)
        if self._others:
            raise KeyboardInterrupt(line)
        terminal = "\r\x1b[2K\x1b[?25h" if self._progress.live else ""  # the bar's line goes, the cursor comes back
        os.write(2, f"{terminal}gradtf: {line}\n".encode(errors="backslashreplace"))  # what holds a lock stays away
        os._exit(INTERRUPTED)


def kept_line(out: Path | None, rounds: int) -> str:
    """What an interrupted run leaves, and the command that continues it.

    Args:
        out: its folder; None before there is anything to continue.
        rounds: of the run.
    """
    if out is None:
        return "interrupted: nothing was begun"
    from gradtf_fl.simulation import rounds_kept

    command = f"gradtf simulate --resume {shlex.quote(str(out))}"
    if (out / REPORT).exists():
        return f"interrupted: the run is over, its report is {out / REPORT}"
    return f"interrupted: {rounds_kept(out)} of {rounds} rounds and all charges are kept; continue with: {command}"
