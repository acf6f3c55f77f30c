"""The ledger's SQLite file: one append-only table."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gradtf_fl.errors import ConfigError, VerificationFailed
from gradtf_fl.privacy.ledger.chain import Entry, Problem

WAIT_S = 120.0
"""How long one process waits for another's transaction."""

LOG_PAGES = 256
"""SQLite's log starts over after this many pages (one or two a row): what is overwritten need not grow, which is what
the disk is slow at."""

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
        "WHEN NEW.number <> (SELECT COALESCE(MAX(number), 0) + 1 FROM entries) "
        "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
    ),
}
APPEND_TRIGGER_1 = SCHEMA["entries_only_append"].replace("COALESCE(MAX(number), 0)", "COUNT(*)")
"""As ledgers of format 1 have it: the same rule, but each row takes time in proportion to all before it."""
_COLUMNS = "SELECT number, kind, body, previous, hash, signature FROM entries"


Version = tuple[int, int]
"""How often the file was opened here, and SQLite's count of changes by others, which starts over each time."""


@dataclass(frozen=True)
class Stored:
    """A file's rows, what is wrong with its structure, and the SHA-256 of its pages (32 bytes) and their size."""

    entries: list[Entry]
    problems: list[Problem]
    image: bytes
    image_bytes: int


class LedgerFile:
    """The file, held open by one process from its first transaction to `close`.

    A forked child gets a connection of its own. Never open the file by other means than SQLite meanwhile: on
    POSIX systems, closing it once would drop this process's locks on it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._name = os.fspath(path)
        self._connection: sqlite3.Connection | None = None
        self._owner = 0
        self._opened = 0
        self._inode: tuple[int, int] | None = None
        self._logged = True  # whether SQLite keeps a log file; else every commit waits for the disk

    @property
    def is_open(self) -> bool:
        return self._connection is not None and self._owner == os.getpid()

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """The only writer while the block runs; committed at its end, undone on an exception.

        Args:
            durable: wait until this and everything before is on disk. Otherwise it is with the next that waits, or
                with `sync`; a power cut before that takes it back, the death of the process does not.

        Raises:
            VerificationFailed: the file is damaged, or another one took its place since it was opened.
        """
        try:
            connection = self._connected()
            if self._logged:
                connection.execute("PRAGMA synchronous=FULL" if durable else "PRAGMA synchronous=NORMAL")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError:  # locked for too long, disk full: not the ledger's fault
            raise
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise VerificationFailed(f"{self.path}: the file is damaged ({error})") from error

    def _connected(self) -> sqlite3.Connection:
        if not self.is_open:
            if self._connection is not None:
                _OF_PARENTS.append(self._connection)
            self._connection = _connect(self.path, "mode=rw", check_same_thread=False)
            self._owner, self._inode = os.getpid(), _inode(self._name)
            self._opened += 1
            self._logged = _write_ahead(self._connection)
            self._connection.execute(f"PRAGMA wal_autocheckpoint={LOG_PAGES}")
            if not self._logged:
                self._connection.execute("PRAGMA synchronous=EXTRA")  # with the journal's name off the disk at commit
        elif _inode(self._name) != self._inode:
            raise VerificationFailed(f"{self.path}: it was moved or replaced while it was open")
        assert self._connection is not None
        return self._connection

    def version(self, connection: sqlite3.Connection) -> Version:
        """Equal to an earlier one, inside a transaction, when no other connection has changed the file since."""
        return self._opened, connection.execute("PRAGMA data_version").fetchone()[0]

    def sync(self) -> None:
        """Wait until everything committed is on disk. SQLite's log may be opened meanwhile: it locks other files."""
        if not self._logged:
            return
        log = os.open(f"{self._name}-wal", os.O_RDONLY)
        try:
            os.fsync(log)
        finally:
            os.close(log)

    def close(self) -> None:
        """The last one to close it moves everything from SQLite's log into the file."""
        if self.is_open and self._connection is not None:
            self._connection.close()
        self._connection = None


_OF_PARENTS: list[sqlite3.Connection] = []
"""Connections that a forked child inherited: closing one there would touch the parent's files."""


def _connect(path: Path, options: str, *, check_same_thread: bool = True) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{options}",
        uri=True,
        timeout=WAIT_S,
        isolation_level=None,
        check_same_thread=check_same_thread,
    )
    connection.text_factory = lambda raw: raw.decode(errors="replace")  # damaged text fails its row's hash
    return connection


def _inode(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _write_ahead(connection: sqlite3.Connection) -> bool:
    """Switch to WAL; False where the file system has no shared memory (NFS, Lustre), and SQLite keeps its journal.

    Two processes that both create a ledger may collide here, where SQLite does not wait.
    """
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
            return str(mode).lower() == "wal"
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def keeps_log(folder: Path) -> bool:
    """Whether SQLite can keep a write-ahead log in ``folder``; OSError or sqlite3.Error where it can keep nothing."""
    probe = folder / f".probe-{os.getpid()}.sqlite"
    try:
        connection = _connect(probe, "mode=rwc")
        try:
            return _write_ahead(connection)
        finally:
            connection.close()
    finally:
        for ending in ("", "-wal", "-shm", "-journal"):
            Path(f"{probe}{ending}").unlink(missing_ok=True)


def create(file: LedgerFile) -> None:
    """An empty ledger of mode 0600, its name on disk; nothing where one exists."""
    file.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not file.path.exists():
        os.close(os.open(file.path, os.O_CREAT | os.O_RDWR, 0o600))  # SQLite gives -wal and -shm the same mode
        folder = os.open(file.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    with file.transaction() as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            for statement in SCHEMA.values():
                connection.execute(statement)


def load(path: Path) -> Stored:
    """A file at rest or in use; nothing is written, not even SQLite's side files.

    A file without a write-ahead log is read as it lies (``immutable``, which creates no files and works in
    read-only folders). If a writer came in meanwhile, it is read again, with SQLite's locks.

    Raises:
        ConfigError: the database holds no ledger.
        sqlite3.DatabaseError: it can't be read, or is not a SQLite file (``sqlite_errorcode`` SQLITE_NOTADB).
    """
    side = [path.with_name(path.name + ending) for ending in ("-wal", "-journal")]
    before = path.stat()
    if not any(file.exists() for file in side):
        stored = _load(path, "mode=ro&immutable=1")
        after = path.stat()
        if not any(file.exists() for file in side) and (before.st_mtime_ns, before.st_size) == (
            after.st_mtime_ns,
            after.st_size,
        ):
            if after.st_size != stored.image_bytes:
                stored.problems.append(Problem(0, "the file is longer or shorter than its pages"))
            return stored
    return _load(path, "mode=ro")


def _load(path: Path, options: str) -> Stored:
    connection = _connect(path, options)
    try:
        connection.execute("BEGIN")
        return read_stored(connection)
    except UnicodeDecodeError as error:  # Python cannot read SQLite's own message, which quotes a damaged schema
        raise sqlite3.DatabaseError("the schema is not UTF-8") from error
    finally:
        connection.close()


def read_stored(connection: sqlite3.Connection) -> Stored:
    """Everything, inside a transaction; for what it raises see `load`."""
    problems = structure_problems(connection)
    entries = read_entries(connection, 0, problems)
    pages = connection.serialize()
    return Stored(entries, problems, hashlib.sha256(pages).digest(), len(pages))


def image(connection: sqlite3.Connection) -> bytes:
    """SHA-256 of the file's pages (32 bytes) as they lie on disk once SQLite's log is moved into the file."""
    return hashlib.sha256(connection.serialize()).digest()


def structure_problems(connection: sqlite3.Connection) -> list[Problem]:
    """What differs from a ledger's schema; ConfigError where the database holds no ledger at all."""
    found = {name: sql for name, sql in connection.execute("SELECT name, sql FROM sqlite_master")}
    if "entries" not in found:
        raise ConfigError("a SQLite file, but no privacy ledger: it has no table of entries")
    if found.get("entries_only_append") == APPEND_TRIGGER_1:
        found["entries_only_append"] = SCHEMA["entries_only_append"]
    problems = [Problem(0, f"the schema's {name} was changed") for name in SCHEMA if found.get(name) != SCHEMA[name]]
    strange = sorted(found.keys() - SCHEMA)
    return problems + [Problem(0, f"the file holds {name}, which does not belong in a ledger") for name in strange]


def read_entries(connection: sqlite3.Connection, first: int, problems: list[Problem]) -> list[Entry]:
    """Rows from number ``first`` on, up to one whose columns hold the wrong types, which goes to ``problems``."""
    where = f" WHERE number >= {first:d}" if first else ""
    entries: list[Entry] = []
    for row in connection.execute(f"{_COLUMNS}{where} ORDER BY rowid"):
        if tuple(map(type, row)) != (int, str, str, bytes, bytes, bytes):
            problems.append(Problem(max(first, 1) + len(entries), "a column holds another type of value"))
            break
        entries.append(Entry(*row))
    return entries


def append(connection: sqlite3.Connection, entry: Entry) -> None:
    """Write one row inside a transaction."""
    connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", entry)


def last_row(connection: sqlite3.Connection) -> tuple[int, bytes] | None:
    """Number and hash of the last row; None in an empty table."""
    found = connection.execute("SELECT number, hash FROM entries ORDER BY number DESC LIMIT 1").fetchone()
    return None if found is None else (found[0], found[1])


def hash_of(connection: sqlite3.Connection, number: int) -> bytes | None:
    """Hash of one row; None without such a row."""
    found = connection.execute("SELECT hash FROM entries WHERE number = ?", (number,)).fetchone()
    return found[0] if found else None
