"""What a call costs: rows are verified once, nothing is read twice, and the disk is waited for once a row."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradtf_fl.errors import VerificationFailed
from gradtf_fl.privacy import DpEvent, Ledger, read_ledger
from gradtf_fl.privacy.ledger import session
from gradtf_fl.privacy.ledger.chain import Chain
from gradtf_fl.privacy.ledger.head import Head, find_head
from gradtf_fl.privacy.ledger.reading import ledger_rows
from gradtf_fl.privacy.ledger.store import SCHEMA, LedgerFile

EVENT = DpEvent(9.0, 1 / 64, 1)
PAIRS = 40


class Counts:
    """Rows read, signatures checked, waits of our own for the disk (SQLite's one per commit is not seen here)."""

    def __init__(self) -> None:
        self.rows = self.signatures = self.waits = 0


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counts]:
    found = Counts()
    read, check, wait = session.read_entries, Chain._signature_problems, os.fsync

    def reading(*arguments: object) -> object:
        rows = read(*arguments)  # type: ignore[arg-type]
        found.rows += len(rows)
        return rows

    def checking(self: Chain, *arguments: object) -> object:
        found.signatures += 1
        return check(self, *arguments)  # type: ignore[arg-type]

    def waiting(handle: int) -> None:
        found.waits += 1
        wait(handle)

    with monkeypatch.context() as patch:
        patch.setattr(session, "read_entries", reading)
        patch.setattr(Chain, "_signature_problems", checking)
        patch.setattr(os, "fsync", waiting)
        yield found


def pairs(ledger: Ledger, count: int) -> None:
    for round in range(count):
        ledger.settle(ledger.reserve("run", round, 0, EVENT), EVENT)


def test_a_call_does_not_grow_with_the_ledger(ledger: Ledger, counts: Counts) -> None:
    pairs(ledger, PAIRS)
    assert counts.rows == 0  # nobody else added any
    assert counts.signatures == 0  # its own rows it need not check
    assert counts.waits == 0
    assert ledger.spent().prv > 0
    assert counts.signatures == 0


def head_rows(ledger: Ledger) -> int:
    head = find_head(ledger.path)
    assert isinstance(head, Head)
    return head.rows


def test_the_head_file_knows_what_is_on_disk_and_nothing_else(ledger: Ledger, counts: Counts) -> None:
    reservation = ledger.reserve("run", 1, 0, EVENT)
    assert (head_rows(ledger), counts.waits) == (3, 0)  # SQLite waited
    ledger.settle(reservation, EVENT)
    assert (head_rows(ledger), counts.waits) == (3, 0)  # nobody waited
    for _ in range(2):
        assert ledger.head == ledger_rows(ledger.path)[-1].hash
        assert (head_rows(ledger), counts.waits) == (4, 1)  # the advert may name it: we waited, once
    ledger.abort(ledger.reserve("run", 2, 0, EVENT))
    ledger.reserve("run", 3, 0, EVENT)
    assert (head_rows(ledger), counts.waits) == (7, 1)  # with the reservation


def test_a_power_cut_after_a_settlement_leaves_the_reservation_counted(
    ledger: Ledger, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    """On disk for sure: rows as of the last wait. At worst beside them: everything that was written since."""
    first = ledger.reserve("run", 1, 0, DpEvent(9.0, 1 / 64, 50))
    (tmp_path / "after").mkdir()
    for name in ("ledger.sqlite", "ledger.sqlite-wal"):
        shutil.copy(ledger.path.with_name(name), tmp_path / "after" / name)
    ledger.settle(first, EVENT)
    shutil.copy(ledger.path.with_name("ledger.head"), tmp_path / "after")
    left = tmp_path / "after" / "ledger.sqlite"
    assert read_ledger(left).problems == ()
    assert read_ledger(left).content.events == (DpEvent(9.0, 1 / 64, 50),)
    again = Ledger.open(left, identity_key=key, organization="clinic", delta=1e-5, budget=2.0)
    again.settle(first, EVENT)
    assert again.verify() == ()


def test_what_was_used_beyond_the_reservation_is_on_disk(ledger: Ledger) -> None:
    """The one settlement whose loss would count too little."""
    reservation = ledger.reserve("run", 1, 0, EVENT)
    with pytest.raises(VerificationFailed, match="more than the reserved"):
        ledger.settle(reservation, DpEvent(9.0, 1 / 64, 2))
    assert head_rows(ledger) == 4


def test_another_process_rows_are_verified_once(ledger: Ledger, key: Ed25519PrivateKey, counts: Counts) -> None:
    other = Ledger(ledger.path, key)
    pairs(other, 1)  # opening it verifies what is there: 2 rows
    assert counts.signatures == 2
    pairs(ledger, PAIRS)
    assert counts.signatures == 2 + 2  # the other's pair
    assert counts.rows == 3  # and the row before it
    pairs(other, 1)
    assert counts.signatures == 2 + 2 + 2 * PAIRS
    assert len(ledger.events()) == len(other.events()) == PAIRS + 2
    assert ledger.verify() == ()


def test_the_digest_leaves_the_head_before_the_file_changes(ledger: Ledger, counts: Counts) -> None:
    ledger.close()
    head = find_head(ledger.path)
    assert isinstance(head, Head)
    assert head.image is not None
    assert counts.waits == 1
    pairs(ledger, 3)
    assert counts.waits == 2  # once, for taking the digest out; rows wait for SQLite's log alone
    head = find_head(ledger.path)
    assert isinstance(head, Head)
    assert (head.image, head.rows) == (None, 7)
    ledger.close()  # after a settlement that nobody waited for
    head = find_head(ledger.path)
    assert isinstance(head, Head)
    assert (head.image is None, head.rows) == (False, 8)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE entries SET hash = zeroblob(32) WHERE number = 6", "row 6: was cut off or changed"),
        ("DELETE FROM entries WHERE number > 5", "row 6: was cut off or changed"),
        ("CREATE INDEX i ON entries (kind)", "does not belong in a ledger"),
    ],
)
def test_a_lost_end_or_a_changed_schema_stops_an_open_ledger(ledger: Ledger, statement: str, message: str) -> None:
    pairs(ledger, 2)
    assert ledger.head  # on disk, and known to the head file
    tamper(ledger.path, statement)
    with pytest.raises(VerificationFailed, match=message):
        ledger.reserve("run", 9, 0, EVENT)
    with pytest.raises(VerificationFailed):  # and it is not forgotten
        ledger.events()


def test_an_open_ledger_decides_by_what_it_verified(ledger: Ledger, key: Ed25519PrivateKey) -> None:
    """An older row that is edited meanwhile changes nothing here; whoever opens it next finds the edit."""
    pairs(ledger, 2)
    tamper(ledger.path, """UPDATE entries SET body = replace(body, '"steps":1', '"steps":0') WHERE number = 4""")
    ledger.reserve("run", 3, 0, EVENT)
    assert ledger.events() == (EVENT, EVENT, EVENT)
    for use in (Ledger(ledger.path, key).events, lambda: (ledger.close(), ledger.events())):
        with pytest.raises(VerificationFailed, match="row 4: its content does not match its hash"):
            use()
    assert [problem.row for problem in ledger.verify()] == [4]


def tamper(path: Path, statement: str) -> None:
    """Through SQLite, under another connection's nose, with the triggers put back."""
    file = LedgerFile(path)
    with file.transaction() as connection:
        for name in SCHEMA:
            if name != "entries":
                connection.execute(f"DROP TRIGGER {name}")
        connection.execute(statement)
        for name, sql in SCHEMA.items():
            if name != "entries":
                connection.execute(sql)
    file.close()


def test_a_ledger_that_was_replaced_while_open_takes_no_charge(ledger: Ledger, tmp_path: Path) -> None:
    """Charges to a file that has lost its name would be lost with it."""
    pairs(ledger, 1)
    shutil.copy(ledger.path, tmp_path / "restored")
    os.replace(tmp_path / "restored", ledger.path)
    with pytest.raises(VerificationFailed, match="moved or replaced"):
        ledger.reserve("run", 2, 0, EVENT)
    ledger.path.unlink()
    with pytest.raises(VerificationFailed, match="moved or replaced"):
        ledger.events()
    ledger.close()


def test_a_broken_ledger_keeps_the_head_that_shows_it(ledger: Ledger) -> None:
    pairs(ledger, 1)
    assert ledger.head
    before = find_head(ledger.path)
    tamper(ledger.path, "DELETE FROM entries WHERE number > 3")
    ledger.close()
    assert find_head(ledger.path) == before
    assert "rows are cut off" in str(read_ledger(ledger.path).problems[0])


def test_threads_take_turns(ledger: Ledger) -> None:
    threads = [threading.Thread(target=pairs, args=(ledger, 10)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.events()) == 40
    assert ledger.verify() == ()


def test_a_forked_child_gets_a_connection_of_its_own(ledger: Ledger) -> None:
    """SQLite must not be used across a fork: locks, and what a connection believes of them, are a process' own."""
    pairs(ledger, 1)
    file = ledger._session._file
    inherited = file._connection
    child = os.fork()
    if child == 0:
        code = 1
        try:
            pairs(ledger, 2)
            code = 0 if file._connection is not inherited else 2
            ledger.close()
        finally:
            os._exit(code)
    pairs(ledger, 2)
    assert os.waitpid(child, 0)[1] == 0
    pairs(ledger, 1)
    assert len(ledger.events()) == 6
    assert ledger.verify() == ()
    assert len(ledger_rows(ledger.path)) == 2 + 12


def test_a_reader_of_a_busy_ledger_raises_no_alarm(ledger: Ledger) -> None:
    """Rows and head are two files; a reader meets every state between two commits."""
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            pairs(ledger, 1)
            ledger.close()  # puts the digest in, and takes it out again

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(100):
            assert read_ledger(ledger.path).problems == ()
    finally:
        stop.set()
        writer.join()
