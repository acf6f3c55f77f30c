"""Epsilons of ledgers for a live page: computed in the background, again only when a ledger has changed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradtf_fl.errors import ConfigError, GradtfError, VerificationFailed
from gradtf_fl.privacy import LedgerReading
from gradtf_fl.reports import LedgerReport, read_for_report, report_each


@dataclass(frozen=True)
class Figures:
    """What is known.

    Attributes:
        reports: of each dataset of each ledger that could be read.
        problems: one line for each ledger that could not.
        pending: whether newer figures are being computed.
    """

    reports: tuple[LedgerReport, ...] = ()
    problems: tuple[str, ...] = ()
    pending: bool = False


class LedgerFigures:
    """The figures of all ledgers that ``find`` names. Its methods may be called from any thread."""

    def __init__(self, find: Callable[[], Sequence[Path]]) -> None:
        self._find = find
        self._lock = threading.Lock()
        self._known, self._busy = Figures(), False
        self._of: tuple[object, ...] = ()

    def latest(self) -> Figures:
        """What was computed last; starts the computation where a ledger has changed since."""
        paths = list(self._find())
        changed = tuple(_mark(path) for path in paths)
        with self._lock:
            if changed != self._of and not self._busy:
                self._busy = True
                threading.Thread(target=self._compute, args=(paths, changed), name="ledgers", daemon=True).start()
            return Figures(self._known.reports, self._known.problems, self._busy)

    def _compute(self, paths: list[Path], changed: tuple[object, ...]) -> None:
        try:
            found = read_and_report(paths)
        except Exception as error:  # a page goes on, whatever a file holds
            found = Figures(problems=(f"the ledgers can't be reported ({type(error).__name__})",))
        with self._lock:
            self._known, self._of, self._busy = found, changed, False


def read_and_report(paths: Sequence[Path]) -> Figures:
    """The figures of these ledgers, in their order."""
    readings: list[LedgerReading] = []
    problems: list[str] = []
    for path in paths:
        try:
            readings.append(read_for_report(path))
        except (ConfigError, VerificationFailed) as error:
            problems += error.problems
        except GradtfError as error:
            problems.append(f"{path}: {error}")
    reports, costly = report_each(readings)
    for report in reports:
        _ = report.rounds, report.projected_rounds  # computed here, not by whoever draws the page
    return Figures(tuple(reports), (*problems, *costly))


def _mark(path: Path) -> object:
    """Differs once the ledger or its write-ahead log has changed."""
    marks: list[object] = [path]
    for file in (path, path.with_name(f"{path.name}-wal")):
        try:
            status = file.stat()
        except OSError:
            marks.append(None)
        else:
            marks.append((status.st_mtime_ns, status.st_size) if status.st_size else None)
    return tuple(marks)
