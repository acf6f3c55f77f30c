"""Readers of a server's folder that get along with anything: what cannot be read is a line in ``problems``."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradtf_fl.deployment.json_logs import read_lines
from gradtf_fl.errors import ConfigError
from gradtf_fl.file_names import ENROLMENTS, EVENTS, FEDERATION, LOCK, ROSTER

if TYPE_CHECKING:
    from gradtf_fl.deployment.enrolment import Enrolment


@dataclass(frozen=True)
class Traffic:
    """An organization's payload bytes in one attempt at a round, and whether it is in that attempt's sum."""

    round: int
    attempt: int
    bytes_up: int
    bytes_down: int
    included: bool


def holds_lock(folder: Path, lock: str = LOCK) -> bool:
    """Whether a process runs the rounds in ``folder``, or holds another ``lock`` there."""
    try:
        with (folder / lock).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    except OSError:
        pass
    return False


def read_federation(folder: Path, problems: list[str]) -> dict[str, Any]:
    """``federation.json``, its records checked as far as a view needs them; empty without the file."""
    path = folder / FEDERATION
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        for record in document["records"]:
            _ = record["round"], record["attempt"], record["state"], record["included"], record["llm_adapter_sha256"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        problems.append(f"{path}: cannot be read ({type(error).__name__})")
        return {}
    return dict(document)


def read_roster(folder: Path, problems: list[str]) -> list[str]:
    """Keys of ``roster.txt`` (hex); empty without the file."""
    path = folder / ROSTER
    try:
        lines = path.read_text(encoding="ascii").split()
        return [bytes.fromhex(line).hex() for line in lines]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        problems.append(f"{path}: cannot be read ({type(error).__name__})")
        return []


def read_enrolled(folder: Path, problems: list[str]) -> dict[str, Enrolment]:
    """Identity key -> enrolment."""
    found: dict[str, Enrolment] = {}
    for path in sorted((folder / ENROLMENTS).glob("*.json")):
        try:
            known = path.stat()
            enrolment = _enrolment(path, known.st_mtime_ns, known.st_size)
            found[enrolment.identity] = enrolment
        except OSError as error:
            problems.append(f"{path}: cannot be read ({error.strerror})")
        except ConfigError as error:
            problems += error.problems
    return found


@lru_cache(maxsize=1024)
def _enrolment(path: Path, mtime_ns: int, size: int) -> Enrolment:
    """Read, and its signature checked, only when the file has changed."""
    from gradtf_fl.deployment.enrolment import read_enrolment

    return read_enrolment(path)


def read_traffic(folder: Path) -> Mapping[str, list[Traffic]]:
    """Key -> what the log has about its messages; a log that was rotated away has less."""
    path = folder / EVENTS
    try:
        known = path.stat()
    except OSError:
        return {}
    return _traffic_of(path, known.st_mtime_ns, known.st_size)


@lru_cache(maxsize=1)
def _traffic_of(path: Path, mtime_ns: int, size: int) -> Mapping[str, list[Traffic]]:
    """Read again only when the log has changed: a live view asks twice a second."""
    found: dict[str, list[Traffic]] = {}
    for line in read_lines(path, "organization"):
        try:
            where = int(line["round"]), int(line["attempt"])
            traffic = Traffic(*where, int(line["bytes_up"]), int(line["bytes_down"]), line["included"] is True)
        except (KeyError, TypeError, ValueError):
            continue
        if isinstance(key := line.get("organization"), str):
            found.setdefault(key, []).append(traffic)
    return found
