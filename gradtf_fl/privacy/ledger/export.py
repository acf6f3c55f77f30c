"""A ledger as one portable text file, and back.

JSONL in canonical form. The first line says what the file is and where the chain ends, as the head file does
for a ledger; every further line is one row with its hash and its signature. The rows are the organization's
own signed rows, so an export is as good as the ledger: it is verified and reported the same way, anyone who has
a ledger can make one, and importing it gives a ledger with exactly these rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradtf_fl.errors import ConfigError, VerificationFailed
from gradtf_fl.privacy.ledger.chain import Entry, Problem
from gradtf_fl.privacy.ledger.head import Head, HeldHead, head_path
from gradtf_fl.privacy.ledger.records import canonical
from gradtf_fl.privacy.ledger.store import LedgerFile, append, create, image

FORMAT = "gradtf-fl ledger export 1"


@dataclass(frozen=True)
class Export:
    """An export's rows, and where the file differs from the one that `export_text` makes of them."""

    entries: list[Entry]
    problems: list[Problem]


def export_text(entries: Sequence[Entry]) -> str:
    """The file for ``entries``, at least one; equal rows give equal bytes."""
    first = canonical({"format": FORMAT, "rows": len(entries), "head": entries[-1].hash.hex()})
    return "\n".join([first, *(canonical(_document(entry)) for entry in entries)]) + "\n"


def looks_like_export(content: bytes) -> bool:
    """Whether ``content`` is an export, be it a damaged one."""
    return content.startswith(b"{") or FORMAT.encode() in content[:512]


def parse_export(path: Path, content: bytes) -> Export:
    """Rows of an export. Damage that leaves rows to be read is in `Export.problems`.

    Raises:
        VerificationFailed: no row can be read.
    """
    lines = content.decode(errors="replace").split("\n")[1:]
    entries: list[Entry] = []
    problems: list[Problem] = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            entries.append(_entry(json.loads(line)))
        except (KeyError, TypeError, ValueError, RecursionError):
            problems.append(Problem(number, "its line is not a row of an export"))
            break
    if not entries:
        raise VerificationFailed(f"{path}: row 1: the export holds no row that can be read")
    if not problems and content != export_text(entries).encode():
        problems.append(_difference(lines, entries))
    return Export(entries, problems)


def _difference(lines: Sequence[str], entries: Sequence[Entry]) -> Problem:
    for number, (line, entry) in enumerate(zip(lines, entries, strict=False), 1):
        if line != canonical(_document(entry)):
            return Problem(number, "its line is not in canonical form")
    what = f"the first line does not say that {len(entries)} rows end here: rows are cut off, or it changed"
    return Problem(0, what, "head")


def import_ledger(entries: Collection[Entry], target: Path) -> None:
    """Make a ledger of ``entries`` (verified by the caller) at ``target``, with its head file.

    Raises:
        ConfigError: something exists there; nothing is ever overwritten.
    """
    taken = [str(place) for place in (target, head_path(target)) if place.exists()]
    if taken:
        raise ConfigError([f"{place}: exists and is never overwritten" for place in taken])
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = LedgerFile(target.with_name(f".{target.name}.{os.getpid()}.new"))
    try:
        create(draft)
        last = Head(0, b"")
        with draft.transaction() as connection:
            for entry in entries:
                append(connection, entry)
                last = Head(entry.number, entry.hash)
        with draft.transaction() as connection:
            last = Head(last.rows, last.hash, image(connection))
        draft.close()
        with HeldHead(target, create=True) as held:
            held.write(last, durable=True)
        os.link(draft.path, target)  # unlike a rename, never replaces a ledger that came in meanwhile
    finally:
        draft.close()
        draft.path.unlink(missing_ok=True)


def _document(entry: Entry) -> dict[str, Any]:
    return {
        "number": entry.number,
        "kind": entry.kind,
        "body": entry.body,
        "previous": entry.previous.hex(),
        "hash": entry.hash.hex(),
        "signature": entry.signature.hex(),
    }


def _entry(document: dict[str, Any]) -> Entry:
    number, kind, body = document["number"], document["kind"], document["body"]
    if type(number) is not int or not isinstance(kind, str) or not isinstance(body, str):
        raise TypeError("a field of another type")
    return Entry(number, kind, body, *(bytes.fromhex(document[name]) for name in ("previous", "hash", "signature")))
