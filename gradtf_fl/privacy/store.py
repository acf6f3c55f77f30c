"""The ledger's two files: an append-only SQLite table, and the chain's head beside it."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gradtf_fl.errors import ConfigError, VerificationFailed
from gradtf_fl.privacy.chain import Entry, Problem

WAIT_S = 120.0
"""How long one process waits for another's transaction."""

SCHEMA = {
    "entries": (
        "CREATE TABLE entries (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL, "
        "previous BLOB NOT NULL, hash BLOB NOT NULL, signature BLOB NOT NULL)"
    ),
    "entries_are_never_changed": (
        "CREATE TRIGGER entries_are_never_changed BEFORE UPDATE ON entries "
        "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
    ),
    "entries_are_never_deleted": (
        "CREATE TRIGGER entries_are_never_deleted BEFORE DELETE ON entries "
        "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
    ),
    "entries_only_append": (  # also stops INSERT OR REPLACE, which runs no delete trigger
        "CREATE TRIGGER entries_only_append BEFORE INSERT ON entries "
        "WHEN NEW.number <> (SELECT COUNT(*) + 1 FROM entries) "
        "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
    ),
}


@dataclass(frozen=True)
class Head:
    """Length of the chain and its last hash (32 bytes)."""

    rows: int
    hash: bytes


def head_path(ledger: Path) -> Path:
    """Where the head of ``ledger`` is kept."""
    return ledger.with_name("ledger.head" if ledger.name == "ledger.sqlite" else ledger.name + ".head")


def create(path: Path) -> None:
    """An empty ledger file of mode 0600; nothing where one exists."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # SQLite gives -wal and -shm the same mode
    with transaction(path) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            for statement in SCHEMA.values():
                connection.execute(statement)


@contextmanager
def transaction(path: Path) -> Iterator[sqlite3.Connection]:
    """The only writer of ``path`` while the block runs; committed at its end, undone on an exception."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=WAIT_S, isolation_level=None)
    try:
        _write_ahead(connection)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
    except sqlite3.OperationalError:  # locked for too long, disk full: not the ledger's fault
        raise
    except sqlite3.DatabaseError as error:
        raise VerificationFailed(f"{path}: the file is damaged ({error})") from error
    finally:
        connection.close()


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch to WAL. Two processes that both create a ledger may collide here, where SQLite does not wait."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def load_entries(path: Path) -> tuple[list[Entry], list[Problem]]:
    """`read_entries` of a file at rest or in use; nothing is written, not even SQLite's side files.

    A file without a write-ahead log is read as it lies (``immutable``, which creates no files and works in
    read-only folders). If a writer came in meanwhile, it is read again, with SQLite's locks.
    """
    wal = path.with_name(path.name + "-wal")
    before = path.stat()
    if not wal.exists():
        entries_and_problems = _load(path, "mode=ro&immutable=1")
        after = path.stat()
        if not wal.exists() and (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size):
            return entries_and_problems
    return _load(path, "mode=ro")


def _load(path: Path, options: str) -> tuple[list[Entry], list[Problem]]:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?{options}", uri=True, timeout=WAIT_S)
    try:
        return read_entries(connection)
    finally:
        connection.close()


def append(connection: sqlite3.Connection, entry: Entry) -> None:
    """Write one row inside a `transaction`."""
    values = (entry.number, entry.kind, entry.body, entry.previous, entry.hash, entry.signature)
    connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", values)


def read_entries(connection: sqlite3.Connection) -> tuple[list[Entry], list[Problem]]:
    """All rows of well-typed columns, and what is wrong with the file's structure.

    Raises:
        ConfigError: the database holds no ledger at all.
        sqlite3.DatabaseError: it can't be read.
    """
    try:
        return _read_entries(connection)
    except UnicodeDecodeError as error:
        raise sqlite3.DatabaseError("text that is no UTF-8") from error


def _read_entries(connection: sqlite3.Connection) -> tuple[list[Entry], list[Problem]]:
    found = {name: sql for name, sql in connection.execute("SELECT name, sql FROM sqlite_master")}
    if "entries" not in found:
        raise ConfigError("a SQLite file, but no privacy ledger: it has no table of entries")
    problems = [Problem(0, f"the schema's {name} was changed") for name in SCHEMA if found.get(name) != SCHEMA[name]]
    problems += [
        Problem(0, f"the file holds {name}, which is no part of a ledger") for name in sorted(found.keys() - SCHEMA)
    ]
    entries = []
    query = "SELECT number, kind, body, previous, hash, signature FROM entries ORDER BY rowid"
    for position, row in enumerate(connection.execute(query), 1):
        types = (int, str, str, bytes, bytes, bytes)
        if not all(isinstance(value, wanted) for value, wanted in zip(row, types, strict=True)):
            problems.append(Problem(position, "a column holds another type of value"))
            break
        entries.append(Entry(*row))
    return entries, problems


def write_head(ledger: Path, head: Head) -> None:
    """Replace the head file atomically; durable when this returns."""
    target = head_path(ledger)
    staging = target.with_name(f"{target.name}.{os.getpid()}.new")
    handle = os.open(staging, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    try:
        os.write(handle, json.dumps({"rows": head.rows, "hash": head.hash.hex()}).encode() + b"\n")
        os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(staging, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_head(ledger: Path) -> Head | None:
    """The head beside ``ledger``; None where there is no file. ValueError when it is damaged."""
    try:
        document = json.loads(head_path(ledger).read_text(encoding="ascii"))
        head = Head(document["rows"], bytes.fromhex(document["hash"]))
        if not isinstance(head.rows, int) or head.rows < 0:
            raise ValueError("rows is no count")
        return head
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{head_path(ledger).name} is damaged") from error
