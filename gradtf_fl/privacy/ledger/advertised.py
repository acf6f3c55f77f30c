"""Heads that organizations once announced, kept by someone else: what a rollback of ledger and head file runs into.

A file of them is either text, one head a line, each after the organization's name where the file serves several
ledgers, or the JSON document of an earlier ``gradtf audit verify --json`` or ``report --json``:

    # heads of March
    clinic 5f0c...
    bank   91ab...
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradtf_fl.errors import ConfigError


@dataclass(frozen=True)
class Announcement:
    """One head (32 bytes) and whose it is; ``organization`` is empty where the file does not say."""

    organization: str
    head: bytes


@dataclass(frozen=True)
class AdvertisedHeads:
    """Every announcement of a file."""

    announcements: tuple[Announcement, ...] = ()

    @classmethod
    def of_one(cls, *heads: bytes) -> AdvertisedHeads:
        """Heads (32 bytes each) of the one ledger that is looked at."""
        return cls(tuple(Announcement("", head) for head in heads))

    @property
    def names_nobody(self) -> bool:
        """Whether some head is without an organization, so that the file can serve one ledger only."""
        return any(not known.organization for known in self.announcements)

    def of(self, organization: str) -> tuple[bytes, ...]:
        """Heads that a ledger of ``organization`` must hold."""
        return tuple(known.head for known in self.announcements if known.organization in ("", organization))


def read_heads(path: Path) -> AdvertisedHeads:
    """The announcements in ``path``.

    Raises:
        ConfigError: it can't be read, or holds no heads; every bad line is named.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    found: list[Announcement] = []
    problems: list[str] = []
    for place, organization, head in _of_json(text) if text.lstrip().startswith("{") else _of_lines(text):
        try:
            found.append(Announcement(organization, head_bytes(head)))
        except ValueError:
            problems.append(f"{path}: {place}: expected 64 hexadecimal digits, not {head!r}")
    if not found and not problems:
        problems.append(f"{path}: holds no heads")
    if problems:
        raise ConfigError(problems)
    return AdvertisedHeads(tuple(found))


def head_bytes(text: object) -> bytes:
    """32 bytes from hexadecimal digits; ValueError otherwise."""
    value = bytes.fromhex(text) if isinstance(text, str) else b""
    if len(value) != 32:
        raise ValueError("no head")
    return value


def _of_lines(text: str) -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].strip().rsplit(maxsplit=1)
        if words:
            yield f"line {number}", words[0] if len(words) == 2 else "", words[-1]


def _of_json(text: str) -> Iterator[tuple[str, str, Any]]:
    try:
        ledgers = json.loads(text)["ledgers"]
        for number, ledger in enumerate(ledgers, 1):
            head = ledger["chain"]["head"] if "chain" in ledger else ledger["head"]
            yield f"ledger {number}", str(ledger["organization"]), head
    except (KeyError, TypeError, ValueError, RecursionError):
        yield "the JSON document", "", ""
