"""Progress of long provider work: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0


class WorkProgress:
    """A context manager whose `show` is called with (what, done, total)."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self._title = title
        self._console = console or Console(stderr=True)
        self._began = time.monotonic()
        self._last_line = float("-inf")
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(self._title, total=None, rate="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, what: str, done: int, total: int) -> None:
        """``done`` of ``total`` steps are behind, ``what`` goes on now."""
        seconds = time.monotonic() - self._began
        rate = f"{done / seconds:.2f}/s" if done and seconds > 0 else ""
        if self._bar is not None:
            self._bar.update(self._task, description=f"{self._title} {what}", completed=done, total=total, rate=rate)
        elif done >= total or time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            left = f", {seconds / done * (total - done):.0f} s left" if 0 < done < total else ""
            click.echo(f"[{seconds:6.1f} s] {self._title} {what}: {done} of {total} {rate}{left}".rstrip(), err=True)
