"""Why a ServerApp ended: OUT/failure.json, from its process to the one that started it.

Flower keeps an error's text in none of the places that `gradtf server run` can ask, so a run that cannot start would
only be seen to end, again and again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from gradtf_fl.deployment import Occupied
from gradtf_fl.errors import ConfigError
from gradtf_fl.file_names import FAILURE
from gradtf_fl.files import PRIVATE, replace_file
from gradtf_fl.shown import shown


@dataclass(frozen=True)
class Failure:
    """An error's name and what it says, line by line; whether starting again can change anything."""

    name: str
    problems: tuple[str, ...]
    final: bool


def note_failure(out: Path, error: Exception) -> None:
    """Write it. OSError when that fails."""
    problems = error.problems if isinstance(error, ConfigError) else (f"{type(error).__name__}: {error}",)
    note = {
        "error": type(error).__name__,
        "final": isinstance(error, ConfigError) and not isinstance(error, Occupied),
        "problems": list(map(shown, problems)),
    }
    replace_file(out / FAILURE, json.dumps(note).encode(), PRIVATE)


def take_failure(out: Path) -> Failure | None:
    """What the last ServerApp left, which is removed; None where it left nothing that can be read."""
    path = out / FAILURE
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
        return Failure(str(note["error"]), tuple(map(str, note["problems"])), note["final"] is True)
    except (OSError, ValueError, KeyError, TypeError):
        return None
