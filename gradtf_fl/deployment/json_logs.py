"""Structured logs: one JSON object a line, with nothing in it that could be private.

Logs leave the machine: they go to collectors, tickets and mails. So a line holds numbers, booleans, None, and strings
of which it is known beforehand what they can say:

- a word of the vocabulary that was fixed when the log was opened (`WORDS`: states, stages, refusal codes, programs,
  signals; and the caller's ``words``, such as the names of enrolled organizations, which come from configuration);
- a member of an Enum, or an exception's class: both are written in the source, never read from data;
- the text of a digest (32 or 64 lower-case hex digits), a version (1.41.0) or a loopback address (127.0.0.1:9092).

A pattern of "short identifiers" would be simpler, but a one-word answer of a private row, or an identity number, is a
short identifier too; so is ``patients.jsonl``. Everything else becomes ``"withheld"`` and is counted in the line's
``withheld``: a log that raises would stop a round for a word.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

from gradtf_fl import errors
from gradtf_fl.round_messages import STAGES, Refusal

WITHHELD = "withheld"
MAX_BYTES, KEPT = 10_000_000, 5
LARGEST = 2**53  # beyond, an integer is not a number to JSON's readers, and it could carry text

NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}")  # of events, components and fields
SHAPES = re.compile(
    r"(?:[0-9a-f]{32}|[0-9a-f]{64})"
    r"|[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}"
    r"|(?:127\.0\.0\.1|localhost|\[::1\]):[0-9]{1,5}"
)
PROGRAMS = ("superlink", "supernode", "serverapp", "clientapp", "server", "organization", "worker", "grid")
STATES = frozenset(
    {
        "starting", "running", "ready", "waiting", "stopping", "stopped", "ended", "restarting", "finished",
        "completed", "aborted", "rejected", "failed", "killed", "died", "ok", "degraded", "answered",
        "refused", "silent", "unusable", "stored", "gate", "connect", "generate", "deliver", "train", "aggregate",
    }
)  # fmt: skip
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGKILL", "SIGSEGV", "SIGABRT")
TRACKERS = ("tensorboard", "mlflow", "wandb")
ERRORS = tuple(name for name, value in vars(errors).items() if isinstance(value, type))
WORDS = frozenset({"", *STAGES, *map(str, Refusal), *PROGRAMS, *STATES, *SIGNALS, *TRACKERS, *ERRORS})


class JsonLog:
    """Appends to one file (0600). Several processes may write to it, and rotate it.

    Attributes:
        withheld: values that this object has replaced so far.
    """

    def __init__(
        self,
        path: Path,
        component: str,
        words: Iterable[str] = (),
        max_bytes: int = MAX_BYTES,
        kept: int = KEPT,
    ) -> None:
        """A log at ``path``, which appears with the first line.

        Args:
            component: who writes, e.g. ``serverapp``.
            words: strings that may be written, besides `WORDS`.
            max_bytes: a file that would grow beyond is renamed to PATH.1, PATH.1 to PATH.2, and so on.
            kept: renamed files that are kept.
        """
        self.path, self.withheld = path, 0
        self._component = component if NAME.fullmatch(component) else WITHHELD
        self._words = WORDS | frozenset(words)
        self._max_bytes, self._kept = max_bytes, kept

    def write(self, event: str, /, **fields: object) -> None:
        """Append one line, with one write(): lines of several processes do not mix.

        Raises:
            OSError: the file can't be written; the fields never raise.
        """
        line = self._line(event, fields)
        descriptor = self._open()
        try:
            size = os.fstat(descriptor).st_size
            if size and size + len(line) > self._max_bytes and self._rotate(descriptor):
                os.close(descriptor)
                descriptor = self._open()
                size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # a write that a full disk or a power cut tore apart spoils no second line
            if os.write(descriptor, line) != len(line):
                raise OSError(f"{self.path}: a line could only be written in part")
        finally:
            os.close(descriptor)

    def _line(self, event: str, fields: dict[str, object]) -> bytes:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, object] = {"time": now, "component": self._component}
        line["event"] = event if NAME.fullmatch(event) else WITHHELD
        withheld = int(line["event"] == WITHHELD)
        for name, value in fields.items():
            if not NAME.fullmatch(name) or name in line or name == WITHHELD:
                withheld += 1  # the name may be data: it goes with its value
                continue
            line[name] = self._allowed(value)
            withheld += line[name] == WITHHELD
        self.withheld += withheld
        return json.dumps(line | ({WITHHELD: withheld} if withheld else {}), allow_nan=False).encode() + b"\n"

    def _allowed(self, value: object) -> object:
        """``value`` as it may be written, or `WITHHELD`."""
        if isinstance(value, type) and issubclass(value, BaseException):
            return value.__name__
        if isinstance(value, Enum) and isinstance(value.value, str):
            return value.value if NAME.fullmatch(value.value) else WITHHELD
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return int(value) if abs(value) < LARGEST else WITHHELD
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else None
        if isinstance(value, str) and (value in self._words or SHAPES.fullmatch(value)):
            return str(value)
        return WITHHELD

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self.path, flags, 0o600)

    def _rotate(self, descriptor: int) -> bool:
        """Rename the full file open at ``descriptor``; True when the path is now another file's or nobody's.

        Whoever holds the full file's lock rotates. The others append to it a little longer, and lose nothing.
        """
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        with suppress(FileNotFoundError):
            if not os.path.samestat(os.stat(self.path), os.fstat(descriptor)):
                return True  # another process was faster
            for number in range(self._kept, 1, -1):
                with suppress(FileNotFoundError):
                    os.replace(_numbered(self.path, number - 1), _numbered(self.path, number))
            if self._kept:
                os.replace(self.path, _numbered(self.path, 1))
            else:
                os.unlink(self.path)
        return True


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def read_lines(path: Path, event: str | None = None, kept: int = KEPT) -> list[dict[str, Any]]:
    """Lines of a log, the oldest first, those of rotated files too; torn lines are left out.

    Args:
        event: only this event's lines.
    """
    wanted = "" if event is None else f'"event": {json.dumps(event)}'
    lines: list[dict[str, Any]] = []
    for file in [*(_numbered(path, number) for number in range(kept, 0, -1)), path]:
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for line in text.splitlines():
            if wanted not in line:
                continue
            with suppress(ValueError):
                document = json.loads(line)
                if isinstance(document, dict):
                    lines.append(document)
    return lines


def last_lines(path: Path, most: int, block: int = 1 << 18) -> list[dict[str, Any]]:
    """The last ``most`` lines of a log at most, the oldest first; empty without a log.

    Args:
        block: bytes from the end of the file that are looked at.
    """
    try:
        with path.open("rb") as file:
            file.seek(-min(file.seek(0, os.SEEK_END), block), os.SEEK_END)
            texts = file.read().splitlines()
    except OSError:
        return []
    lines: list[dict[str, Any]] = []
    for text in texts[-most:]:
        with suppress(ValueError):  # torn, or cut by the block
            document = json.loads(text)
            if isinstance(document, dict):
                lines.append(document)
    return lines
