"""Whatever is changed in a ledger shows: columns, rows, order, length, schema, head, whole files."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradtf_fl.errors import ConfigError, GradtfError, VerificationFailed
from gradtf_fl.privacy import DpEvent, Ledger, read_ledger
from gradtf_fl.privacy.ledger.advertised import AdvertisedHeads
from gradtf_fl.privacy.ledger.chain import seal
from gradtf_fl.privacy.ledger.reading import ledger_rows
from gradtf_fl.privacy.ledger.store import SCHEMA, LedgerFile, append, read_entries

from .conftest import EVENT

ROWS = 7
TRIGGERS = [name for name in SCHEMA if name != "entries"]


@pytest.fixture
def full(ledger: Ledger, key: Ed25519PrivateKey) -> Ledger:
    """genesis, budget, reserve, settle, reserve, abort, budget."""
    ledger.settle(ledger.reserve("run", 1, 0, EVENT), EVENT)
    ledger.abort(ledger.reserve("run", 2, 0, DpEvent(3.0, 1 / 16, 50)))
    return Ledger.open(ledger.path, identity_key=key, organization="clinic", delta=1e-5, budget=3.0)


def caught(path: Path) -> bool:
    try:
        return bool(read_ledger(path).problems)
    except VerificationFailed:
        return True


def attack(ledger: Ledger, into: Path, *statements: str, values: tuple[object, ...] = ()) -> Path:
    """A copy of the ledger's folder, attacked by someone who takes the triggers off and puts them back."""
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(ledger.path.parent, into)
    connection = sqlite3.connect(into / "ledger.sqlite")
    for name in TRIGGERS:
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(statement, values)
    for name in TRIGGERS:
        connection.execute(SCHEMA[name])
    connection.commit()
    connection.close()
    return into / "ledger.sqlite"


def changed(value: object) -> Iterator[object]:
    if isinstance(value, int):
        yield from (value + 1, value + 1000, -value, str(value), value + 0.5)
    elif isinstance(value, bytes):
        yield from (value[:-1] + bytes([value[-1] ^ 1]), value[:-1], b"", value.hex())
    else:
        yield from (f"{value}x", str(value).replace("1", "2", 1) + " ", str(value)[:-1], str(value).encode(), 7)


def test_the_untouched_copy_is_sound(full: Ledger, tmp_path: Path) -> None:
    path = attack(full, tmp_path / "copy")
    assert read_ledger(path).problems == ()
    assert read_ledger(path).rows == ROWS


def test_triggers_stop_whoever_leaves_them_on(full: Ledger) -> None:
    connection = sqlite3.connect(full.path)
    for statement in (
        "UPDATE entries SET body = body || 'x'",
        "DELETE FROM entries WHERE number = 7",
        "INSERT OR REPLACE INTO entries SELECT * FROM entries WHERE number = 3",
        "INSERT INTO entries SELECT 9, kind, body, previous, hash, signature FROM entries WHERE number = 3",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


def test_every_column_of_every_row_is_covered(full: Ledger, tmp_path: Path) -> None:
    connection = sqlite3.connect(full.path)
    columns = [column[1] for column in connection.execute("PRAGMA table_info(entries)")]
    rows = connection.execute("SELECT rowid, * FROM entries").fetchall()
    connection.close()
    assert len(rows) == ROWS
    tried = 0
    for rowid, *row in rows:
        for column, value in zip([*columns, "rowid"], [*row, rowid], strict=True):
            for forged in changed(value):
                if forged == str(value):
                    continue
                statement = f"UPDATE entries SET {column} = ? WHERE rowid = {rowid}"
                try:
                    path = attack(full, tmp_path / "copy", statement, values=(forged,))
                except sqlite3.Error:
                    continue
                tried += 1
                assert caught(path), f"row {rowid}, {column}: {value!r} -> {forged!r}"
    assert tried > 100


@pytest.mark.parametrize("row", range(1, ROWS + 1))
def test_a_deleted_row_shows(full: Ledger, tmp_path: Path, row: int) -> None:
    delete = f"DELETE FROM entries WHERE number = {row}"
    assert caught(attack(full, tmp_path / "copy", delete))
    close_the_gap = [f"UPDATE entries SET number = {n} - 1 WHERE number = {n}" for n in range(row + 1, ROWS + 1)]
    assert caught(attack(full, tmp_path / "copy", delete, *close_the_gap))


@pytest.mark.parametrize("left", range(ROWS))
def test_a_truncated_ledger_shows(full: Ledger, tmp_path: Path, left: int) -> None:
    assert caught(attack(full, tmp_path / "copy", f"DELETE FROM entries WHERE number > {left}"))


def test_swapped_rows_show(full: Ledger, tmp_path: Path) -> None:
    for a in range(1, ROWS):
        swap = [
            f"UPDATE entries SET number = 99 WHERE number = {a}",
            f"UPDATE entries SET number = {a} WHERE number = {a + 1}",
            f"UPDATE entries SET number = {a + 1} WHERE number = 99",
        ]
        assert caught(attack(full, tmp_path / "copy", *swap))


def test_a_row_sealed_by_another_key_shows(full: Ledger, tmp_path: Path) -> None:
    """The forger lowers a charge and re-computes every later hash and signature, with a key of his own."""
    thief = Ed25519PrivateKey.generate()
    connection = sqlite3.connect(full.path)
    rows = connection.execute("SELECT * FROM entries").fetchall()
    connection.close()
    copy = attack(full, tmp_path / "copy", "DELETE FROM entries WHERE number > 2")
    connection = sqlite3.connect(copy)
    previous = rows[1][4]
    for number, kind, body, *_ in rows[2:]:
        entry = seal(number, kind, body.replace('"steps":50', '"steps":1'), previous, thief)
        connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", entry)
        previous = entry.hash
    connection.commit()
    connection.close()
    assert [p.row for p in read_ledger(copy).problems if "signature" in p.what] == [3, 4, 5, 6, 7]


def test_a_ledger_of_another_key_shows_to_who_knows_the_key(
    full: Ledger, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    thief = Ed25519PrivateKey.generate()
    forged = Ledger.open(tmp_path / "f" / "l", identity_key=thief, organization="clinic", delta=1e-5, budget=3.0)
    assert read_ledger(forged.path).problems == ()
    assert read_ledger(forged.path, public_keys=[key.public_key().public_bytes_raw()]).problems
    assert not read_ledger(full.path, public_keys=[key.public_key().public_bytes_raw()]).problems


def test_a_rollback_of_ledger_and_head_shows_to_who_saw_a_later_head(ledger: Ledger, tmp_path: Path) -> None:
    ledger.reserve("run", 1, 0, EVENT)
    shutil.copytree(ledger.path.parent, tmp_path / "old")
    announced_then = ledger.head
    ledger.reserve("run", 2, 0, EVENT)
    rolled_back = tmp_path / "old" / "ledger.sqlite"
    assert not caught(rolled_back)
    assert read_ledger(rolled_back, advertised=AdvertisedHeads.of_one(ledger.head)).problems
    assert not read_ledger(ledger.path, advertised=AdvertisedHeads.of_one(announced_then)).problems


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE more (x)",
        "CREATE VIEW entries_too AS SELECT * FROM entries",
        "CREATE INDEX i ON entries (kind)",
        "ALTER TABLE entries ADD COLUMN x",
        "CREATE TRIGGER quiet AFTER INSERT ON entries BEGIN SELECT 1; END",
    ],
)
def test_a_changed_schema_shows(full: Ledger, tmp_path: Path, statement: str) -> None:
    assert caught(attack(full, tmp_path / "copy", statement))


def test_a_missing_trigger_shows(full: Ledger) -> None:
    connection = sqlite3.connect(full.path)
    connection.execute(f"DROP TRIGGER {TRIGGERS[0]}")
    connection.close()
    assert caught(full.path)


HEADS: list[Callable[[Path], object]] = [
    lambda head: head.unlink(),
    lambda head: head.write_text(""),
    lambda head: head.write_text("{}"),
    lambda head: head.write_bytes(b"\xff\xfe"),
    lambda head: head.write_text(head.read_text().replace('"rows": 7', '"rows": 6')),
    lambda head: head.write_text(head.read_text().replace('"rows": 7', '"rows": 8')),
    lambda head: head.write_text(head.read_text().replace('"rows": 7', '"rows": -7')),
    lambda head: head.write_text('{"rows": 7, "hash": "' + "00" * 32 + '"}\n'),
    lambda head: head.write_text(head.read_text().replace(" \n", "\n")),
    lambda head: head.write_text(head.read_text() + " "),
    lambda head: head.write_text(head.read_text().replace('"rows": 7', '"rows": 07').replace(" \n", "\n")),
]


@pytest.mark.parametrize("change", HEADS)
def test_a_damaged_head_shows(full: Ledger, change: Callable[[Path], object]) -> None:
    change(full.path.with_name("ledger.head"))
    assert caught(full.path)


def test_nobody_starts_afresh_by_deleting_the_ledger(full: Ledger, key: Ed25519PrivateKey) -> None:
    full.path.unlink()
    with pytest.raises(VerificationFailed, match="gone"):
        read_ledger(full.path)
    with pytest.raises(VerificationFailed, match="gone"):
        Ledger.open(full.path, identity_key=key, organization="clinic", delta=1e-5, budget=2.0)
    full.path.touch()
    with pytest.raises(VerificationFailed):
        Ledger.open(full.path, identity_key=key, organization="clinic", delta=1e-5, budget=2.0)
    connection = sqlite3.connect(full.path)
    assert connection.execute("SELECT COUNT(*) FROM entries").fetchone() == (0,)
    connection.close()


def test_a_broken_ledger_takes_no_charge(full: Ledger, tmp_path: Path, key: Ed25519PrivateKey) -> None:
    path = attack(full, tmp_path / "copy", "UPDATE entries SET kind = 'abort' WHERE number = 4")
    for use in (
        lambda: Ledger(path, key).reserve("run", 3, 0, EVENT),
        lambda: Ledger(path, key).spent(),
        lambda: Ledger.open(path, identity_key=key, organization="clinic", delta=1e-5, budget=3.0),
    ):
        with pytest.raises(VerificationFailed, match="row 4: its content does not match its hash"):
            use()


@pytest.mark.parametrize("content", [b"", b"junk\n", b"SQLite format 3\0 but no more"])
def test_what_is_no_ledger_is_called_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.sqlite").write_bytes(content)
    with pytest.raises(GradtfError, match=r"x\.sqlite"):
        read_ledger(tmp_path / "x.sqlite")


def test_junk_is_not_written_over(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    (tmp_path / "x.sqlite").write_bytes(b"junk\n")
    with pytest.raises(VerificationFailed, match="damaged"):
        Ledger.open(tmp_path / "x.sqlite", identity_key=key, organization="clinic", delta=1e-5, budget=3.0)
    assert (tmp_path / "x.sqlite").read_bytes() == b"junk\n"


def test_another_database_is_no_ledger(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "other.sqlite")
    connection.execute("CREATE TABLE notes (x)")
    connection.close()
    with pytest.raises(ConfigError, match="no privacy ledger"):
        read_ledger(tmp_path / "other.sqlite")


def test_rows_of_two_histories_do_not_mix(ledger: Ledger, key: Ed25519PrivateKey, tmp_path: Path) -> None:
    """The owner restores a backup and goes on: both histories are signed and well numbered, yet no splice holds."""
    ledger.reserve("run", 1, 0, EVENT)
    shutil.copytree(ledger.path.parent, tmp_path / "backup")
    cheap, dear = DpEvent(9.0, 1 / 16, 1), EVENT
    Ledger(tmp_path / "backup" / "ledger.sqlite", key).reserve("run", 2, 0, cheap)
    ledger.reserve("run", 2, 0, dear)
    ledger.reserve("run", 3, 0, cheap)
    connection = sqlite3.connect(tmp_path / "backup" / "ledger.sqlite")
    forked = connection.execute("SELECT body, previous, hash, signature FROM entries WHERE number = 4").fetchone()
    connection.close()
    splice = "UPDATE entries SET body = ?, previous = ?, hash = ?, signature = ? WHERE number = 4"
    path = attack(ledger, tmp_path / "copy", splice, values=forked)
    assert [str(problem) for problem in read_ledger(path).problems] == ["row 5: does not follow the row before it"]


def test_a_signed_row_must_make_sense(ledger: Ledger, key: Ed25519PrivateKey) -> None:
    """Even the key's owner can't settle twice, settle what was never reserved, or invent kinds of rows."""
    settled = '{"noise":"","q":0.1,"reservation":3,"sigma":1.0,"steps":0}'
    ledger.settle(ledger.reserve("run", 1, 0, EVENT), EVENT)
    reserved = ledger_rows(ledger.path)[2].body
    assert '"dataset":"train"' in reserved
    for kind, body in (
        ("settle", settled),
        ("settle", settled.replace("3", "2")),
        ("refund", settled),
        ("reserve", "{}"),
        ("reserve", reserved.replace("train", "unknown")),
        ("budget", '{"budget":"all"}'),
        ("settle", "[" * 100_000),
    ):
        with LedgerFile(ledger.path).transaction() as connection:
            entries = read_entries(connection, 1, [])
            append(connection, seal(len(entries) + 1, kind, body, entries[-1].hash, key))
        problems = read_ledger(ledger.path).problems
        assert problems[-1].row == len(entries) + 1
        assert "makes no sense" in problems[-1].what
    assert read_ledger(ledger.path).content.events == (EVENT,)
