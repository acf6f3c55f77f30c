"""What a simulation's folder tells, while it runs and after: its settings, its rounds, its report."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from gradtf_fl.config import NO_TRANSFORMER, SimulationConfig, load_toml
from gradtf_fl.deployment import holds_lock, read_federation
from gradtf_fl.errors import ConfigError, CorruptFile
from gradtf_fl.file_names import LEDGER, ORGANIZATIONS, REPORT, SIMULATION, SIMULATION_LOCK
from gradtf_fl.reports import SimulationReport

STATE_WORDS = {
    "running": "the report comes when the run is over",
    "budget": "an organization's budget is exhausted; finished rounds are kept",
    "aborted": "a round ended without a sum; finished rounds are kept",
}
T = TypeVar("T")
MOST_LEDGERS = 64
"""Organizations whose ledgers are read while a run goes on."""


@dataclass(frozen=True)
class RunSettings:
    """What a page says of a run's settings; see `SimulationConfig`."""

    organizations: int
    rounds: int
    epsilon: float
    delta: float
    transformer: str = ""
    noise_multiplier: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether the federation has no Grad-Transformer."""
        return self.transformer == NO_TRANSFORMER


@dataclass(frozen=True)
class RoundRow:
    """One attempt at a round, see `RoundRecord`; 0 where a figure is missing."""

    round: int
    attempt: int
    state: str
    joined: int = 0
    masked: int = 0
    unmasked: int = 0
    bytes_up_per_client: int = 0
    max_abs_error: float | None = None


@dataclass(frozen=True)
class RunView:
    """All of it.

    Attributes:
        state: ``running``, ``interrupted``, or the report's.
        settings: what the run was started with; None where that can't be read.
        rounds: the attempts so far.
        report: of a run that is over.
        problems: files that could not be read.
    """

    folder: Path
    state: str
    settings: RunSettings | None
    rounds: tuple[RoundRow, ...]
    report: SimulationReport | None
    problems: tuple[str, ...]

    @property
    def advice(self) -> str:
        """What the state means; empty where there is nothing to add."""
        if self.report is not None and self.report.reason:
            return self.report.reason
        if self.state == "interrupted":
            return f"nothing runs here; continue with: gradtf simulate --resume {self.folder}"
        if self.state == "running" and self.settings is not None and self.completed >= self.settings.rounds:
            return "the rounds are over; accuracy is being measured"
        return STATE_WORDS.get(self.state, "")

    @property
    def completed(self) -> int:
        """Finished rounds."""
        return sum(record.state == "completed" for record in self.rounds)


def view_run(folder: Path) -> RunView:
    """Look at a simulation's folder; what can't be read is one of the view's ``problems``."""
    problems: list[str] = []
    report = _report(folder, problems)
    records = read_federation(folder, problems).get("records", ()) if report is None else report.rounds
    state = "running" if holds_lock(folder, SIMULATION_LOCK) else "interrupted"
    return RunView(
        folder=folder,
        state=state if report is None else report.state,
        settings=_checked(RunSettings, _settings(folder, problems) if report is None else report.config, problems),
        rounds=_checked(tuple[RoundRow, ...], records, problems) or (),
        report=report,
        problems=tuple(problems),
    )


def ledgers_of(folder: Path) -> list[Path]:
    """Ledgers of the run's organizations, `MOST_LEDGERS` at most."""
    return sorted(folder.glob(f"{ORGANIZATIONS}/*/{LEDGER}"))[:MOST_LEDGERS]


def _report(folder: Path, problems: list[str]) -> SimulationReport | None:
    path = folder / REPORT
    try:
        known = path.stat()
        return _read_report(path, known.st_mtime_ns, known.st_size)
    except FileNotFoundError:
        return None
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror})")
    except CorruptFile as error:
        problems += error.problems
    return None


@lru_cache(maxsize=2)
def _read_report(path: Path, mtime_ns: int, size: int) -> SimulationReport:
    """Read again only when the file has changed."""
    return SimulationReport.read(path)


def _settings(folder: Path, problems: list[str]) -> dict[str, Any] | None:
    try:
        return load_toml(SimulationConfig, folder / SIMULATION).model_dump(mode="json")
    except ConfigError as error:
        problems += error.problems
        return None


def _checked(kind: type[T], value: object, problems: list[str]) -> T | None:
    """``value`` as a ``kind``; None, and a line in ``problems``, where it is none."""
    from pydantic import TypeAdapter, ValidationError

    if value is None:
        return None
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        problems.append(f"the run's own files say what can't be: {error.error_count()} problems")
        return None
