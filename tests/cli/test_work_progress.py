"""Progress of a verb's work: lines with rate and time left for a log, a bar on a terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from gradtf_fl.reports import WorkProgress
from gradtf_fl.reports.progress import LINE_EVERY_S


class Clock:
    """Seconds as a test sets them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("gradtf_fl.reports.progress.time.monotonic", lambda: self.now)


def test_a_log_gets_a_line_now_and_then_and_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, text = Clock(monkeypatch), io.StringIO()
    with WorkProgress("train", Console(file=text)) as progress:
        for done in range(5):
            progress.show("[loss] 1.0", done, 5)
            clock.now += LINE_EVERY_S / 2
        progress.show("end", 5, 5)
    assert text.getvalue().splitlines() == [
        "[   0.0 s] train [loss] 1.0: 0 of 5",
        "[  10.0 s] train [loss] 1.0: 2 of 5 0.20/s, 15 s left",
        "[  20.0 s] train [loss] 1.0: 4 of 5 0.20/s, 5 s left",
        "[  25.0 s] train end: 5 of 5 0.20/s",
    ]


def test_a_terminal_gets_a_bar_that_goes_when_the_work_is_done() -> None:
    text = io.StringIO()
    with WorkProgress("curate", Console(file=text, force_terminal=True, width=100)) as progress:
        progress.show("pairs", 3, 9)
        progress._screen.refresh()
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
    assert "curate pairs" in shown
    assert "3/9" in shown
    assert "/s" in shown
    assert text.getvalue().endswith("\x1b[2K")  # the bar's line is cleared
