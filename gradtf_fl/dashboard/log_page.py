"""Page of the JSON logs: the last lines, which hold words of a fixed list, numbers and times."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradtf_fl.dashboard.sources import Sources
from gradtf_fl.deployment import last_lines
from gradtf_fl.file_names import EVENTS

MOST_LINES = 100
FIXED = ("time", "component", "event")


@dataclass(frozen=True)
class LogLine:
    """One line. ``fields``: name and value of all but `FIXED` and empty ones."""

    time: str
    component: str
    event: str
    fields: tuple[tuple[str, str], ...]


def logs_of(sources: Sources) -> Mapping[str, Path]:
    """Title and file of each log; a simulation keeps none."""
    folders = {"Server": sources.server, "Organization": sources.organization}
    return {title: folder / EVENTS for title, folder in folders.items() if folder is not None}


def log_context(logs: Mapping[str, Path]) -> Mapping[str, Any]:
    """Context of the page's part."""
    return {"logs": [(title, path, newest_first(path)) for title, path in logs.items()], "spoken": ""}


def newest_first(path: Path) -> Sequence[LogLine]:
    """The last `MOST_LINES` lines."""
    return [
        LogLine(
            time=str(line.get("time", "")),
            component=str(line.get("component", "")),
            event=str(line.get("event", "")),
            fields=tuple((name, _said(value)) for name, value in line.items() if name not in FIXED and value != ""),
        )
        for line in reversed(last_lines(path, MOST_LINES))
    ]


def _said(value: object) -> str:
    """A JSON value as the log has it, a text without its quotes."""
    return value if isinstance(value, str) else json.dumps(value)
