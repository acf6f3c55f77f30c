"""Reading and checking a ledger without changing a byte of it; `audit` and every `Ledger` call start here."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradtf_fl.errors import ConfigError, VerificationFailed
from gradtf_fl.privacy.chain import GENESIS_HASH, Entry, Problem, chain_problems
from gradtf_fl.privacy.records import Replay, replay
from gradtf_fl.privacy.store import Head, head_path, load_entries, read_head

EMPTY_HEAD = Head(0, GENESIS_HASH)
"""Written before a ledger is created, so that from then on a missing head file is a break."""


@dataclass(frozen=True)
class LedgerReading:
    """A ledger as found on disk: content, head (32 bytes), length in rows, and every break of its chain."""

    path: Path
    content: Replay
    head: bytes
    rows: int
    problems: tuple[Problem, ...]


def read_ledger(
    path: str | Path, *, public_keys: Collection[bytes] = (), advertised: bytes | None = None
) -> LedgerReading:
    """Read and check the ledger at ``path``; its head file is expected beside it.

    Args:
        path: the SQLite file.
        public_keys: keys (32 bytes each), one of which must be the ledger's; without any, its own is
            believed.
        advertised: a head (32 bytes) that the organization once announced; it must lie on the chain.

    Raises:
        ConfigError: there is no file, or it is no ledger.
        VerificationFailed: so damaged that nothing can be read from it.
    """
    path = Path(path)
    entries, structure = _load(path)
    content = replay_or_fail(path, entries)
    problems = check(path, entries, structure, content)
    key = content.genesis.public_key
    if public_keys and key not in public_keys:
        problems.append(Problem(1, f"the ledger is signed by another key, {key.hex()}"))
    if advertised not in {None, GENESIS_HASH, *(entry.hash for entry in entries)}:
        problems.append(Problem(0, "the advertised head is not on this chain"))
    return LedgerReading(path, content, entries[-1].hash, len(entries), tuple(problems))


def replay_or_fail(path: Path, entries: Sequence[Entry]) -> Replay:
    """The rows' content; VerificationFailed when not even the first row can be read."""
    try:
        return replay(entries)
    except ValueError as error:
        raise VerificationFailed(f"{path}: row 1: {error}") from error


def check(path: Path, entries: Sequence[Entry], structure: Sequence[Problem], content: Replay) -> list[Problem]:
    """Every break: of the file's structure, the chain, the rows' meaning, and the head file, in row order."""
    chain = chain_problems(entries, content.genesis.public_key)
    found = {*structure, *chain, *content.problems, *_head_problems(path, entries)}
    return sorted(found, key=lambda problem: (problem.row, problem.what))


def head_or_problem(path: Path) -> Head | Problem | None:
    """The head beside the ledger; None without a file, a `Problem` when it is damaged."""
    try:
        return read_head(path)
    except ValueError as error:
        return Problem(0, str(error))


def _head_problems(path: Path, entries: Sequence[Entry]) -> list[Problem]:
    """A head behind the chain is a crash before it was renewed (rows are signed); all else is a break."""
    name = head_path(path).name
    head = head_or_problem(path)
    if isinstance(head, Problem):
        return [head]
    if head is None:
        return [Problem(0, f"{name} is missing")]
    if head.rows > len(entries):
        return [Problem(len(entries) + 1, f"rows are cut off: {name} knows {head.rows}, {len(entries)} are left")]
    known = entries[head.rows - 1].hash if head.rows else GENESIS_HASH
    return [] if known == head.hash else [Problem(head.rows, f"{name} knows another row")]


def _load(path: Path) -> tuple[list[Entry], list[Problem]]:
    lost = VerificationFailed(f"{path}: {head_path(path).name} is there, but the ledger is gone or emptied")
    headed = head_or_problem(path) not in (None, EMPTY_HEAD)
    if not path.is_file():
        raise lost if headed else ConfigError(f"ledger {path}: there is no such file")
    with path.open("rb") as file:
        magic = file.read(16)
    if magic != b"SQLite format 3\0":
        raise lost if headed else ConfigError(f"ledger {path}: not a privacy ledger (no SQLite file)")
    try:
        return load_entries(path)
    except ConfigError as error:
        raise lost if headed else ConfigError(f"ledger {path}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise VerificationFailed(f"{path}: the file is damaged ({error})") from error
