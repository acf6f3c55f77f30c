"""A ledger held open by one process: verified in full once, then followed row by row.

What was verified is kept in memory (`Chain`, `Books`). A transaction reads only the rows that other processes
added since, after checking that the last row it knows is still there and the schema untouched, and that the head
file agrees. Edits of older rows meanwhile change nothing that this process decides, for it does not read them
again; the next opening and every audit find them.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradtf_fl.errors import ConfigError, GradtfError, VerificationFailed
from gradtf_fl.privacy.ledger.books import Books
from gradtf_fl.privacy.ledger.chain import Chain, Entry, Problem, seal
from gradtf_fl.privacy.ledger.head import EMPTY_HEAD, FoundHead, Head, HeldHead, head_path
from gradtf_fl.privacy.ledger.reading import examine_file, head_problems, is_headed
from gradtf_fl.privacy.ledger.records import canonical
from gradtf_fl.privacy.ledger.store import (
    LedgerFile,
    Version,
    append,
    create,
    hash_of,
    image,
    last_row,
    read_entries,
    read_stored,
    structure_problems,
)


@dataclass
class Known:
    """What is verified of a ledger: its rows, and that its head file held ``head``, which lies on the chain.

    ``version`` is another one after every commit of another connection.
    """

    chain: Chain
    books: Books
    version: Version
    head: FoundHead

    def follow(self, connection: sqlite3.Connection) -> list[Problem]:
        """Take in the rows that others added since, and say what is wrong with them or with the schema."""
        problems = structure_problems(connection)
        entries = read_entries(connection, self.chain.rows, problems)
        if not entries or (entries[0].number, entries[0].hash) != (self.chain.rows, self.chain.head):
            return [*problems, Problem(self.chain.rows, "was cut off or changed while the ledger was open")]
        for entry in entries[1:]:
            problems += self.chain.follow(entry)
            self.books.enter(entry)
        return problems + self.books.problems


class Added(NamedTuple):
    """A row of ours and the JSON object that its body says."""

    entry: Entry
    document: Mapping[str, Any]


@dataclass
class Writing:
    """One transaction: what the ledger holds, verified, and the way to add rows."""

    chain: Chain
    books: Books
    key: Ed25519PrivateKey
    public: bytes
    connection: sqlite3.Connection
    added: list[Added] = field(default_factory=list)

    def add(self, kind: str, document: Mapping[str, Any]) -> int:
        """Append a signed row; returns its number. ConfigError where another key signs by now."""
        if self.chain.key != self.public:
            raise ConfigError(f"the ledger is signed by key {self.chain.key.hex()}, not by ours, {self.public.hex()}")
        number = self.chain.rows + len(self.added) + 1
        entry = seal(number, kind, canonical(document), self.last_hash, self.key)
        append(self.connection, entry)
        self.added.append(Added(entry, document))
        return number

    @property
    def last_hash(self) -> bytes:
        """Hash of the row that the next one follows."""
        return self.added[-1].entry.hash if self.added else self.chain.head


class Session:
    """One process' hold on a ledger. Threads take turns; so do processes, by SQLite's locks."""

    def __init__(self, path: Path, key: Ed25519PrivateKey) -> None:
        self.path = path
        self.sign_with(key)
        self._file = LedgerFile(path)
        self._known: Known | None = None
        self._turn = threading.RLock()

    def sign_with(self, key: Ed25519PrivateKey) -> None:
        """Seal the rows that follow with ``key``."""
        self._key, self.public = key, key.public_key().public_bytes_raw()

    def create(self, first_rows: Callable[[], Sequence[Entry]]) -> None:
        """Make the files and their first rows, unless they are there.

        Raises:
            VerificationFailed: the ledger was deleted while its head is still there.
        """
        with self._turn:
            if not self.path.exists() and is_headed(self.path):
                name = head_path(self.path).name
                raise VerificationFailed(f"{self.path}: the ledger is gone while {name} is still there")
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with HeldHead(self.path, create=not self.path.exists()) as held:
                create(self._file)
                with self._file.transaction() as connection:
                    sound = not structure_problems(connection)
                    if sound and last_row(connection) is None and held.find() == EMPTY_HEAD:
                        for entry in first_rows():
                            append(connection, entry)

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[Writing]:
        """Rows added inside are committed at its end; undone on an exception.

        Args:
            durable: they are on disk then, and the head file knows them. Otherwise they get there with the next
                durable row or with `secure`. The head file never knows a row that is not on disk, or a power cut
                would look like rows cut off.

        Raises:
            VerificationFailed: the ledger is broken.
        """
        with self._turn, HeldHead(self.path) as held:
            with self._file.transaction(durable=durable) as connection:
                known, head = self._catch_up(connection, held.find())
                writing = Writing(known.chain, known.books, self._key, self.public, connection)
                yield writing
                if writing.added and head.image is not None:
                    # on disk before the file changes, or a power cut leaves the digest of a file that is gone
                    held.write(replace(head, image=None), durable=True)
            for row in writing.added:
                known.chain.extend(row.entry)
                known.books.enter(row.entry, row.document)
            if writing.added and durable:
                known.head = held.write(Head(known.chain.rows, known.chain.head))

    def secure(self) -> bytes:
        """Put every row on disk and into the head file; the hash of the last one (32 bytes)."""
        with self._turn, HeldHead(self.path) as held, self._file.transaction() as connection:
            known, head = self._catch_up(connection, held.find())
            if head.rows != known.chain.rows:
                self._file.sync()
                known.head = held.write(Head(known.chain.rows, known.chain.head))
            return known.chain.head

    def close(self) -> None:
        """Let go of the file; the head file then knows its digest. Using the session again reopens it."""
        with self._turn:
            if self._file.is_open and self._known is not None:
                with suppress(OSError, sqlite3.Error, GradtfError):  # all that is lost is the digest
                    self._note_image()
            self._known = None
            self._file.close()

    def _note_image(self) -> None:
        self.secure()
        with HeldHead(self.path) as held, self._file.transaction() as connection:
            known, head = self._catch_up(connection, held.find())
            if head.image is None and head.rows == known.chain.rows:
                held.write(Head(known.chain.rows, known.chain.head, image(connection)), durable=True)

    def _catch_up(self, connection: sqlite3.Connection, head: FoundHead) -> tuple[Known, Head]:
        """Verify what is not verified yet; the state as it is now, and ``head``, which agrees with it."""
        version = self._file.version(connection)
        known, self._known = self._known, None  # rows half followed are never taken for verified ones
        if known is None:
            examined = examine_file(self.path, read_stored(connection), head)
            problems = list(examined.problems)
            known = Known(examined.chain, examined.books, version, head)
        else:
            problems = known.follow(connection) if version != known.version else []
            if head != known.head:
                problems += head_problems(self.path, head, known.chain.rows, lambda row: hash_of(connection, row))
        if problems or not isinstance(head, Head):
            raise VerificationFailed(f"{self.path}: {problems[0]}")
        known.version, known.head = version, head
        self._known = known
        return known, head
