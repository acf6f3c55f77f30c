"""Progress on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

LINE_EVERY_S = 10.0


class ProgressDisplay:
    """A context manager; on a terminal its bar is shown as long as the context lasts.

    Attributes:
        live: whether to call `show_bar`, on a terminal, or `show_line`.
    """

    def __init__(self, title: str, *columns: ProgressColumn, console: Console | None = None) -> None:
        """
        Args:
            title: what the bar says at first.
            columns: of the bar, after its description and its count.
        """
        self.console = console or Console(stderr=True)
        self.live = self.console.is_terminal
        self._began = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *columns, console=self.console
        )
        self._task = self._bar.add_task(title, total=None, rate="")
        self._screen = Live(self._bar, console=self.console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if self.live:
            self._screen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._screen.stop()

    @property
    def seconds(self) -> float:
        """Since the display was made."""
        return time.monotonic() - self._began

    def show_bar(
        self, description: str, done: int, total: int | None, *, rate: str = "", details: str | None = None
    ) -> None:
        """``done`` of ``total`` steps are behind; ``details`` stand in a line above the bar."""
        self._bar.update(self._task, description=description, completed=done, total=total, rate=rate)
        if details is not None:
            self._screen.update(Group(Text(details or " ", style="dim"), self._bar))

    def show_line(self, text: str) -> None:
        """A line behind the seconds that passed."""
        self.console.print(f"[{self.seconds:6.1f} s] {text}", markup=False, highlight=False, soft_wrap=True)


class WorkProgress(ProgressDisplay):
    """Of long work by one verb: rate and time left; without a terminal a line every `LINE_EVERY_S` at most."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        super().__init__(title, TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=console)
        self._title = title
        self._last_line = float("-inf")
        self._total, self._since, self._first = -1, 0.0, 0

    def show(self, what: str, done: int, total: int) -> None:
        """``done`` of ``total`` steps are behind, ``what`` is being done now."""
        seconds = self.seconds
        if self._total not in (-1, total):  # another part of the work, with a pace of its own
            self._since, self._first = seconds, done
        self._total = total
        since, made = seconds - self._since, done - self._first
        rate = f"{made / since:.2f}/s" if made and since > 0 else ""
        if self.live:
            self.show_bar(f"{self._title} {what}", done, total, rate=rate)
        elif done >= total or seconds - self._last_line >= LINE_EVERY_S:
            self._last_line = seconds
            left = f", {since / made * (total - done):.0f} s left" if made and done < total else ""
            self.show_line(f"{self._title} {what}: {done} of {total} {rate}{left}".rstrip())
