"""Reading and checking a ledger without changing a byte of it; `audit` and every `Ledger` start here."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from gradtf_fl.errors import ConfigError, VerificationFailed
from gradtf_fl.privacy.ledger.advertised import AdvertisedHeads
from gradtf_fl.privacy.ledger.books import Books, Replay, open_books
from gradtf_fl.privacy.ledger.chain import GENESIS_HASH, Chain, Entry, Problem, follow_all
from gradtf_fl.privacy.ledger.export import Export, looks_like_export, parse_export
from gradtf_fl.privacy.ledger.head import EMPTY_HEAD, FoundHead, Head, find_head, head_path
from gradtf_fl.privacy.ledger.store import Stored, load

NO_HEADS = AdvertisedHeads()
BYTES_CHANGED = Problem(
    0, "its bytes changed since it was last closed, though every row holds: something else wrote to the file"
)
MOST_BYTES = 500_000_000
"""Of a ledger that is read; a million rounds are about 400 MB."""
READS = 20
"""A ledger that is charged at full speed is read again at most this often."""


@dataclass(frozen=True)
class LedgerReading:
    """A ledger as found on disk.

    Attributes:
        content: what its rows add up to.
        head: hash of the last row (32 bytes).
        signature: Ed25519 signature of the last row over its hash (64 bytes).
        rows: how many.
        exported: whether it is an export, not the SQLite file.
        keys: Ed25519 keys (32 bytes) that signed it, the first one first; the last one signs now.
        problems: every break, in row order; what concerns the file as a whole comes last.
    """

    path: Path
    content: Replay
    head: bytes
    signature: bytes
    rows: int
    exported: bool
    keys: tuple[bytes, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Examined:
    """Rows that were followed from the first to the last, and every break on the way."""

    chain: Chain
    books: Books
    problems: tuple[Problem, ...]


def read_ledger(
    path: str | Path,
    *,
    public_keys: Collection[bytes] = (),
    advertised: AdvertisedHeads = NO_HEADS,
    every_signature: bool = True,
) -> LedgerReading:
    """Read and check the ledger at ``path``: a SQLite file with its head file, or an export.

    Args:
        public_keys: keys (32 bytes each), one of which must be among the ledger's; without any, its own are
            believed.
        advertised: heads that organizations once announced; those of this one must lie on the chain.
        every_signature: False reads the last row's and the rotations' only (`chain.follow_all`). That is enough
            to know that the organization's key stands behind every figure.

    Raises:
        ConfigError: the file is missing, or is not a ledger.
        VerificationFailed: so damaged that nothing can be read from it.
    """
    path = Path(path)
    found, head = _load_settled(path)
    if isinstance(found, Export):
        examined = examine(path, found.entries, every_signature=every_signature)
        problems = in_order([*found.problems, *examined.problems])
    else:
        examined = examine_file(path, found, head, every_signature=every_signature)
        problems = examined.problems
    heads = advertised.of(examined.books.genesis.organization)
    strangers = _strangers(examined.chain, found.entries, public_keys, heads)
    return LedgerReading(
        path=path,
        content=examined.books.picture(),
        head=examined.chain.head,
        signature=found.entries[-1].signature,
        rows=len(found.entries),
        exported=isinstance(found, Export),
        keys=tuple(examined.chain.keys),
        problems=in_order([*problems, *strangers]),
    )


def ledger_rows(path: str | Path) -> list[Entry]:
    """The rows as they are, unchecked; for what it raises see `read_ledger`."""
    return _load(Path(path)).entries


def examine_file(path: Path, stored: Stored, head: FoundHead, *, every_signature: bool = True) -> Examined:
    """`examine` of a SQLite file, with its structure, its head file, and its bytes where the head knows them.

    Raises:
        VerificationFailed: not even the first row can be read.
    """
    examined = examine(path, stored.entries, every_signature=every_signature)
    headed = head_problems(path, head, len(stored.entries), lambda row: stored.entries[row - 1].hash)
    problems = in_order([*stored.problems, *examined.problems, *headed])
    if not problems and isinstance(head, Head) and head.image not in (None, stored.image):
        problems = (BYTES_CHANGED,)
    return Examined(examined.chain, examined.books, problems)


def examine(path: Path, entries: Collection[Entry], *, every_signature: bool = True) -> Examined:
    """Every break of the chain and of the rows' meaning; VerificationFailed when the first row can't be read."""
    rows = list(entries)
    try:
        books = open_books(rows)
    except ValueError as error:
        raise VerificationFailed(f"{path}: row 1: {error}") from error
    chain = Chain(books.genesis.public_key)
    problems = follow_all(chain, rows, every_signature=every_signature)
    return Examined(chain, books, in_order([*problems, *books.problems]))


def in_order(problems: Collection[Problem]) -> tuple[Problem, ...]:
    """Each once, by row; those of the file as a whole last, as an edited row is their likely cause."""
    return tuple(sorted(set(problems), key=lambda problem: (problem.row == 0, problem.row, problem.what)))


def head_problems(path: Path, head: FoundHead, rows: int, hash_of: Callable[[int], bytes | None]) -> list[Problem]:
    """Breaks between a head file and a ledger of ``rows`` rows.

    A head behind the chain is a crash before it was renewed (rows are signed); all else is a break.

    Args:
        hash_of: hash of a row by its number, 1..rows.
    """
    name = head_path(path).name
    if isinstance(head, Problem):
        return [head]
    if head is None:
        return [Problem(0, f"{name} is missing", "head")]
    if head.rows > rows:
        return [Problem(rows + 1, f"rows are cut off: {name} knows {head.rows}, {rows} are left", "head")]
    known = hash_of(head.rows) if head.rows else GENESIS_HASH
    return [] if known == head.hash else [Problem(head.rows, f"{name} knows another row", "head")]


def is_headed(path: Path) -> bool:
    """Whether a head file says that a ledger with rows was once here."""
    return find_head(path) not in (None, EMPTY_HEAD)


def _strangers(
    chain: Chain, entries: Collection[Entry], public_keys: Collection[bytes], heads: Collection[bytes]
) -> list[Problem]:
    problems = []
    if public_keys and not set(public_keys) & set(chain.keys):
        problems.append(Problem(1, f"the ledger is signed by another key, {chain.key.hex()}", "key"))
    missing = set(heads) - {GENESIS_HASH} - {entry.hash for entry in entries}
    if missing:
        which = ", ".join(sorted(head.hex()[:16] for head in missing))
        problems.append(Problem(0, f"the advertised head is not on this chain ({which})", "announced heads"))
    return problems


def _load_settled(path: Path) -> tuple[Stored | Export, FoundHead]:
    """Rows and head of one moment, though a writer may be at work.

    Writers change the rows after they took the digest out of the head and before they renew it: a head that is the
    same before and after is not ahead of the rows, and its digest is theirs.
    """
    head = find_head(path)
    for _ in range(READS):
        found, before = _load(path), head
        head = find_head(path)
        if head == before:
            break
    return found, head


def _load(path: Path) -> Stored | Export:
    lost = VerificationFailed(f"{path}: {head_path(path).name} is there, but the ledger is gone or emptied")
    headed = is_headed(path)
    if not path.is_file():
        raise lost if headed else ConfigError(f"ledger {path}: no such file")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise VerificationFailed(
            f"{path}: {size / 1e6:,.0f} MB: no organization's ledger is larger than {MOST_BYTES / 1e6:,.0f} MB"
        )
    try:
        return load(path)
    except ConfigError as error:
        raise lost if headed else ConfigError(f"ledger {path}: {error}") from error
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_NOTADB:
            raise VerificationFailed(f"{path}: the file is damaged ({error})") from error
    if headed:
        raise lost
    content = path.read_bytes()
    if not looks_like_export(content):
        raise ConfigError(f"ledger {path}: neither a privacy ledger nor the export of one")
    return parse_export(path, content)
