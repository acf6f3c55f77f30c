"""A member's protocol state between two messages: one SQLite file, mode 0600.

In deployment every Flower message starts a new process, and Flower's own context is lost when the SuperNode
restarts, so whatever a stage leaves for the next one lies here: the last (round, attempt), its start and the plan of
each run, the secure-aggregation state, the update vector until it is masked, its masked pieces where there are several,
the members of the sums taken part in, the beacon of each run, and how many beacons this organization has helped to
draw. Vector and pieces lie in rows of a few megabytes, read one at a time.
A stage's new state is committed before its reply can leave. Deleted pages are overwritten with zeros
(``secure_delete``); what the file system keeps beyond that is out of reach.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gradtf_fl.flower.refusals import Refused
from gradtf_fl.round_messages import Refusal
from gradtf_fl.secagg import Floats, TakenSum, Vector, chunks_of

BUSY_SECONDS = 60.0
KEY = 32  # bytes of an identity key
ROW = 1 << 20  # coordinates of an update vector in one row
KEPT_SUMS = 1000  # the newest ones, with which a new sum is compared

_SCHEMA = """
CREATE TABLE IF NOT EXISTS last_round (
    run_id TEXT PRIMARY KEY, round INTEGER NOT NULL, attempt INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS attempts (
    run_id TEXT PRIMARY KEY, round INTEGER NOT NULL, claimed INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS open_round (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    run_id TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL,
    protocol BLOB NOT NULL, weight REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS vector (number INTEGER PRIMARY KEY, coordinates BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS masked (number INTEGER PRIMARY KEY, message BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS trained (
    one INTEGER PRIMARY KEY CHECK (one = 1), run_id TEXT NOT NULL, round INTEGER NOT NULL, training BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS begun (
    one INTEGER PRIMARY KEY CHECK (one = 1), run_id TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS start_of_round (run_id TEXT PRIMARY KEY, round INTEGER NOT NULL, start BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS plan_of_run (run_id TEXT PRIMARY KEY, plan TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sums (
    number INTEGER PRIMARY KEY, start BLOB NOT NULL, roster BLOB NOT NULL, members BLOB NOT NULL,
    UNIQUE (start, roster, members)
);
CREATE TABLE IF NOT EXISTS rosters (hash BLOB PRIMARY KEY, keys BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS beacon_of_run (
    run_id TEXT PRIMARY KEY, beacon BLOB NOT NULL, sample INTEGER NOT NULL, groups INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS drawn (one INTEGER PRIMARY KEY CHECK (one = 1), beacons INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS last_masked (run_id TEXT PRIMARY KEY, round INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class RoundKey:
    """Which round a stage belongs to; ``(round, attempt)`` only ever grows within a run."""

    run_id: str
    round: int
    attempt: int


@dataclass(frozen=True)
class StoredVector:
    """The update vector's rows, read one by one and again whenever it is iterated over; inside its transaction only."""

    database: sqlite3.Connection

    def __iter__(self) -> Iterator[Floats]:
        for (row,) in self.database.execute("SELECT coordinates FROM vector ORDER BY number"):
            yield np.frombuffer(row, dtype="<f4")


class StoredPieces(MutableMapping[int, bytes]):
    """The rows of the masked pieces; inside their transaction only."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __getitem__(self, number: int) -> bytes:
        row = self._database.execute("SELECT message FROM masked WHERE number = ?", (number,)).fetchone()
        if row is None:
            raise KeyError(number)
        return bytes(row[0])

    def __setitem__(self, number: int, message: bytes) -> None:
        self._database.execute("INSERT OR REPLACE INTO masked VALUES (?, ?)", (number, message))

    def __delitem__(self, number: int) -> None:
        if not self._database.execute("DELETE FROM masked WHERE number = ?", (number,)).rowcount:
            raise KeyError(number)

    def __iter__(self) -> Iterator[int]:
        return iter([number for (number,) in self._database.execute("SELECT number FROM masked ORDER BY number")])

    def __len__(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM masked").fetchone()[0])

    def __contains__(self, number: object) -> bool:
        return self._database.execute("SELECT 1 FROM masked WHERE number = ?", (number,)).fetchone() is not None

    def clear(self) -> None:
        self._database.execute("DELETE FROM masked")


@dataclass
class OpenRound:
    """The round in progress. A stage changes the fields; `MemberStore.stage` writes them back.

    Attributes:
        protocol: state of the secure-aggregation client.
        vector: the update vector, None once it is masked. To `MemberStore.open` None means: what `claim` found.
        weight: this organization's weight in the mean.
        pieces: of the masked vector, by number, where it has several.
        earlier: the sums that this organization has signed for, in this or any other run.
        signed: the sum that this stage signs for; kept with the others.
        masked: whether this stage masks an update: the organization's last use in its run.
        drawn: beacons that this organization has helped to draw, this stage's vote included.
    """

    key: RoundKey
    protocol: bytes
    vector: Vector | None
    weight: float
    pieces: MutableMapping[int, bytes] = field(default_factory=dict)
    finished: bool = False
    earlier: Callable[[], list[TakenSum]] = list
    signed: TakenSum | None = None
    masked: bool = False
    drawn: int = 0


@dataclass(frozen=True)
class Sampling:
    """How the rounds of a run choose their members: the same from its first round to its last.

    Attributes:
        beacon: 32 bytes; zeros in a run of the whole roster.
        sample: organizations a round; 0 in a run of the whole roster.
        groups: groups that they are split into.
    """

    beacon: bytes
    sample: int
    groups: int


class MemberStore:
    """The file. Each operation is one transaction; two processes are serialised by SQLite.

    Args:
        durable: wait for the disk at every commit, so that a power cut cannot bring back a used state. A killed
            process never can. Simulations do without: the disk's latency would be most of their time.
    """

    schema: str = _SCHEMA

    def __init__(self, path: Path, durable: bool = True) -> None:
        self.path, self.durable = path, durable
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        os.chmod(path, 0o600)
        with self._transaction() as database:
            for statement in self.schema.split(";"):
                database.execute(statement)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        database = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            database.execute("PRAGMA secure_delete = ON")
            database.execute(f"PRAGMA synchronous = {'FULL' if self.durable else 'OFF'}")
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")
        finally:
            database.close()

    def last_round(self, run_id: str) -> tuple[int, int]:
        """The highest (round, attempt) ever claimed in ``run_id``; (0, -1) for a new run. One whose process died before
        it could answer is not yet used up: just below it, then."""
        with self._transaction() as database:
            return _last(database, run_id)

    def attempts(self, run_id: str, round_number: int) -> int:
        """How often the round was claimed, whatever numbers the server gave to its attempts; 0 for an earlier round."""
        with self._transaction() as database:
            return _claimed(database, run_id, round_number)

    def claim(self, key: RoundKey, plan: str, training: bytes, most: int | None = None, start: bytes = b"") -> bool:
        """Take (round, attempt) and forget the state of any earlier one.

        It is used up once it is answered or refused (`give_up`). Where the process died in between, nothing of it left,
        and the same one may be claimed again.

        Args:
            plan: of the run; the first one of a run is pinned, but for more rounds.
            training: SHA-256 of all that decides what is trained in this round, whatever the attempt.
            most: claims that one round may have, None for any number.
            start: hash of the model that the round starts from; the first one of a round is pinned.

        Returns:
            Whether an update lies here that an earlier attempt at this round trained, from the same, and never masked.
            It was in no sum: masking it now releases it for the first time. `open` without a vector takes it.

        Raises:
            Refused: with ``stale`` when it is not above the last one, whoever took that; with ``policy`` for another
                plan than the run's first, or when the round had its ``most`` claims; with ``model_hash`` for another
                start than its first.
        """
        with self._transaction() as database:
            last = _last(database, key.run_id)
            if (key.round, key.attempt) <= last:
                raise Refused(Refusal.STALE, f"round {key.round}.{key.attempt} is not above {last[0]}.{last[1]}")
            claimed = _claimed(database, key.run_id, key.round)
            if most is not None and claimed >= most:
                raise Refused(Refusal.POLICY, f"round {key.round} had {claimed} attempts here, [policy] has {most}")
            pinned = database.execute("SELECT plan FROM plan_of_run WHERE run_id = ?", (key.run_id,)).fetchone()
            if pinned is not None and not self.goes_on(pinned[0], plan):
                raise Refused(Refusal.POLICY, f"the plan is another one than this run began with ({pinned[0]})")
            begins = database.execute(
                "SELECT start FROM start_of_round WHERE run_id = ? AND round = ?", (key.run_id, key.round)
            ).fetchone()
            if begins is not None and begins[0] != start:
                raise Refused(Refusal.MODEL_HASH, f"an earlier attempt at round {key.round} started from another model")
            database.execute("INSERT OR REPLACE INTO start_of_round VALUES (?, ?, ?)", (key.run_id, key.round, start))
            database.execute("INSERT OR REPLACE INTO plan_of_run VALUES (?, ?)", (key.run_id, plan))
            database.execute("INSERT OR REPLACE INTO last_round VALUES (?, ?, ?)", (key.run_id, key.round, key.attempt))
            database.execute("INSERT OR REPLACE INTO attempts VALUES (?, ?, ?)", (key.run_id, key.round, claimed + 1))
            kept = _trained(database, key, training)
            _forget(database, but_vector=kept)
            if not kept:
                database.execute("DELETE FROM trained")
            database.execute("INSERT OR REPLACE INTO begun VALUES (1, ?, ?, ?)", (key.run_id, key.round, key.attempt))
            return kept

    def claim_draw(self, key: RoundKey) -> None:
        """Take an attempt at round 0, in which nothing is trained, and forget the state of any earlier round.

        Raises:
            Refused: with ``stale`` when it is not above the last one.
        """
        with self._transaction() as database:
            last = _last(database, key.run_id)
            if (key.round, key.attempt) <= last:
                raise Refused(Refusal.STALE, f"round {key.round}.{key.attempt} is not above {last[0]}.{last[1]}")
            database.execute("INSERT OR REPLACE INTO last_round VALUES (?, ?, ?)", (key.run_id, key.round, key.attempt))
            _forget(database)
            database.execute("DELETE FROM trained")
            database.execute("INSERT OR REPLACE INTO begun VALUES (1, ?, ?, ?)", (key.run_id, key.round, key.attempt))

    def drawn(self) -> int:
        """Beacons that this organization has helped to draw, over all runs."""
        with self._transaction() as database:
            return _drawn(database)

    def sampling(self, run_id: str) -> Sampling | None:
        """How the run chooses the members of its rounds, as its first round here did; None before that."""
        with self._transaction() as database:
            row = database.execute(
                "SELECT beacon, sample, groups FROM beacon_of_run WHERE run_id = ?", (run_id,)
            ).fetchone()
        return None if row is None else Sampling(bytes(row[0]), int(row[1]), int(row[2]))

    def pin_sampling(self, run_id: str, sampling: Sampling) -> None:
        """All later rounds of the run choose their members so, whatever another process pins now."""
        row = run_id, sampling.beacon, sampling.sample, sampling.groups
        with self._transaction() as database:
            database.execute("INSERT OR IGNORE INTO beacon_of_run VALUES (?, ?, ?, ?)", row)

    def last_masked(self, run_id: str) -> int | None:
        """The last round of the run for which this organization masked an update; None for none."""
        with self._transaction() as database:
            row = database.execute("SELECT round FROM last_masked WHERE run_id = ?", (run_id,)).fetchone()
        return None if row is None else int(row[0])

    def give_up(self, key: RoundKey) -> None:
        """The claimed attempt is refused: it is used up."""
        with self._transaction() as database:
            if _begun(database) == key:
                database.execute("DELETE FROM begun")

    def take_back(self, key: RoundKey) -> None:
        """Of a simulation alone: its process died with all that this attempt sent, so it may be claimed once more."""
        with self._transaction() as database:
            row = database.execute("SELECT round, attempt FROM last_round WHERE run_id = ?", (key.run_id,)).fetchone()
            if row is None or (int(row[0]), int(row[1])) != (key.round, key.attempt):
                return
            database.execute("INSERT OR REPLACE INTO begun VALUES (1, ?, ?, ?)", (key.run_id, key.round, key.attempt))
            database.execute(
                "UPDATE attempts SET claimed = ? WHERE run_id = ? AND round = ?", (key.attempt, key.run_id, key.round)
            )

    def goes_on(self, pinned: str, plan: str) -> bool:
        """Whether a run that began with the plan ``pinned`` may continue with ``plan``: only with the same."""
        return plan == pinned

    def open(
        self, opened: OpenRound, training: bytes, also: Callable[[sqlite3.Connection], None] | None = None
    ) -> None:
        """Keep the state of the round just begun.

        Args:
            training: as `claim` has it.
            also: keeps more in the same transaction.

        Raises:
            Refused: with ``stale`` when a later round was claimed meanwhile, or another process opened this one, or
                took the update that `claim` found.
        """
        key = opened.key
        with self._transaction() as database:
            if _begun(database) != key:
                raise Refused(Refusal.STALE, "another round was claimed while this one was trained, or this one opened")
            if opened.vector is not None:
                database.execute("DELETE FROM vector")
                for number, row in enumerate(chunks_of(opened.vector, ROW)):
                    row = np.ascontiguousarray(row, dtype="<f4")
                    database.execute("INSERT INTO vector VALUES (?, ?)", (number, row.data.cast("B")))
            elif not _trained(database, key, training):
                raise Refused(Refusal.STALE, "the update of the earlier attempt is not there any more")
            database.execute(
                "INSERT OR REPLACE INTO open_round (one, run_id, round, attempt, protocol, weight)"
                " VALUES (1, ?, ?, ?, ?, ?)",
                (key.run_id, key.round, key.attempt, opened.protocol, opened.weight),
            )
            database.execute("INSERT OR REPLACE INTO trained VALUES (1, ?, ?, ?)", (key.run_id, key.round, training))
            database.execute("DELETE FROM begun")
            if also is not None:
                also(database)

    def sums(self) -> list[TakenSum]:
        """The sums that this organization has signed for, oldest first; the newest `KEPT_SUMS`."""
        with self._transaction() as database:
            return _sums(database)

    @contextmanager
    def stage(self, round_number: int, attempt: int) -> Iterator[OpenRound]:
        """The open round for one stage: yielded under the write lock, written back when the body ends well.

        With ``finished`` set the keys are deleted; so they are when the body raises, for a refusal is
        final: a server must not try the same stage with another message.

        Raises:
            Refused: with ``stale`` when (round, attempt) is not the open one.
        """
        with self._transaction() as database:
            row = database.execute(
                "SELECT run_id, round, attempt, protocol, weight, EXISTS (SELECT 1 FROM vector) FROM open_round"
            ).fetchone()
            if row is None or (row[1], row[2]) != (round_number, attempt):
                raise Refused(Refusal.STALE, f"round {round_number}.{attempt} is not open")
            vector = StoredVector(database) if row[5] else None
            opened = OpenRound(
                RoundKey(row[0], row[1], row[2]),
                row[3],
                vector,
                row[4],
                StoredPieces(database),
                earlier=lambda: _sums(database),
            )
            opened.drawn = before = _drawn(database)
            try:
                yield opened
            except BaseException:
                _forget(database)
                database.execute("COMMIT")
                database.execute("BEGIN")
                raise
            if opened.signed is not None:
                _keep(database, opened.signed)
            if opened.masked:
                database.execute(
                    "INSERT OR REPLACE INTO last_masked VALUES (?, ?)", (opened.key.run_id, opened.key.round)
                )
            if opened.drawn != before:
                database.execute("INSERT OR REPLACE INTO drawn VALUES (1, ?)", (opened.drawn,))
            if opened.finished:
                _forget(database)
                return
            database.execute("UPDATE open_round SET protocol = ?", (opened.protocol,))
            if vector is not None and opened.vector is None:
                database.execute("DELETE FROM vector")


def _last(database: sqlite3.Connection, run_id: str) -> tuple[int, int]:
    row = database.execute("SELECT round, attempt FROM last_round WHERE run_id = ?", (run_id,)).fetchone()
    if row is None:
        return 0, -1
    unanswered = _begun(database) == RoundKey(run_id, int(row[0]), int(row[1]))
    return int(row[0]), int(row[1]) - unanswered


def _forget(database: sqlite3.Connection, but_vector: bool = False) -> None:
    """Delete the open round, its vector and its masked pieces."""
    for table in ("open_round", "masked") if but_vector else ("open_round", "masked", "vector"):
        database.execute(f"DELETE FROM {table}")


def _trained(database: sqlite3.Connection, key: RoundKey, training: bytes) -> bool:
    """Whether the vector that lies here was trained for this round from the same, and never masked."""
    wanted = "SELECT 1 FROM trained WHERE run_id = ? AND round = ? AND training = ? AND EXISTS (SELECT 1 FROM vector)"
    return database.execute(wanted, (key.run_id, key.round, training)).fetchone() is not None


def _claimed(database: sqlite3.Connection, run_id: str, round_number: int) -> int:
    row = database.execute(
        "SELECT claimed FROM attempts WHERE run_id = ? AND round = ?", (run_id, round_number)
    ).fetchone()
    return int(row[0]) if row else 0


def _drawn(database: sqlite3.Connection) -> int:
    row = database.execute("SELECT beacons FROM drawn").fetchone()
    return int(row[0]) if row else 0


def _begun(database: sqlite3.Connection) -> RoundKey | None:
    """The attempt that was claimed and neither answered nor refused."""
    row = database.execute("SELECT run_id, round, attempt FROM begun").fetchone()
    return None if row is None else RoundKey(row[0], int(row[1]), int(row[2]))


def _sums(database: sqlite3.Connection) -> list[TakenSum]:
    rows = database.execute("SELECT start, roster, members FROM sums ORDER BY number").fetchall()
    rosters = {name: _split(keys) for name, keys in database.execute("SELECT hash, keys FROM rosters")}
    return [TakenSum(start, rosters.get(name, _split(keys)), _split(keys)) for start, name, keys in rows]


def _split(keys: bytes) -> frozenset[bytes]:
    return frozenset(keys[at : at + KEY] for at in range(0, len(keys), KEY))


def _keep(database: sqlite3.Connection, taken: TakenSum) -> None:
    roster = b"".join(sorted(taken.roster))
    name = hashlib.sha256(roster).digest()
    database.execute("INSERT OR IGNORE INTO rosters VALUES (?, ?)", (name, roster))
    row = taken.start, name, b"".join(sorted(taken.members))
    database.execute("INSERT OR REPLACE INTO sums (start, roster, members) VALUES (?, ?, ?)", row)
    newest = "SELECT number FROM sums ORDER BY number DESC LIMIT ?"
    database.execute(f"DELETE FROM sums WHERE number NOT IN ({newest})", (KEPT_SUMS,))
