"""Thousands of tamperings at random, by kind: `gradtf audit verify` ends with 5 on every one."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradtf_fl.cli.main import cli
from gradtf_fl.privacy import DpEvent, Ledger, SkellamEvent
from gradtf_fl.privacy.ledger.export import export_text
from gradtf_fl.privacy.ledger.reading import ledger_rows
from gradtf_fl.privacy.ledger.store import SCHEMA

from .conftest import EVENT

FAST, ALL = 200, 2000
TRIGGERS = [name for name in SCHEMA if name != "entries"]
COLUMNS = ("number", "kind", "body", "previous", "hash", "signature")


@dataclass(frozen=True)
class Original:
    """A sound ledger (``now``), the folder as it was some rows earlier (``then``), an export, and the last head."""

    now: Path
    then: Path
    export: str
    rows: int
    head: str


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    folder = tmp_path_factory.mktemp("original")
    path, key = folder / "now" / "ledger.sqlite", Ed25519PrivateKey.generate()
    budgets = {"train": 50.0, "2025": 9.0}
    with Ledger.open(path, identity_key=key, organization="clinic", delta=1e-5, budget=budgets) as ledger:
        ledger.settle(ledger.reserve("run", 1, 0, EVENT), EVENT)
        sums = SkellamEvent(variance=4e8, l2=2e4, l1=6e5, releases=1, noisers=4)
        ledger.abort(ledger.reserve("run", 2, 0, DpEvent(3.0, 1 / 16, 50), dataset="2025", client_level=sums))
        ledger.rotate(Ed25519PrivateKey.generate())
        ledger.close()
        shutil.copytree(path.parent, folder / "then")
        for round in range(3, 8):
            ledger.settle(ledger.reserve("run", round, 0, EVENT, dataset="2025" if round % 2 else "train"), EVENT)
        head = ledger.head.hex()
    rows = ledger_rows(path)
    return Original(path.parent, folder / "then", export_text(rows), len(rows), head)


def flip(path: Path, rng: random.Random) -> str:
    """Any other value for any byte."""
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    content[place] ^= rng.randrange(1, 256)
    path.write_bytes(content)
    return f"{path.name}, byte {place} of {len(content)}"


def with_sql(path: Path, *statements: str, values: tuple[object, ...] = ()) -> None:
    """By someone who takes the triggers off and puts them back."""
    connection = sqlite3.connect(path)
    for name in TRIGGERS:
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(statement, values)
    for name in TRIGGERS:
        connection.execute(SCHEMA[name])
    connection.commit()
    connection.close()


def flip_file(folder: Path, original: Original, rng: random.Random) -> str:
    return flip(folder / "ledger.sqlite", rng)


def flip_head(folder: Path, original: Original, rng: random.Random) -> str:
    return flip(folder / "ledger.head", rng)


def flip_column(folder: Path, original: Original, rng: random.Random) -> str:
    """One byte of one column of one row, as SQLite itself would write it."""
    row, column = rng.randrange(1, original.rows + 1), rng.choice(COLUMNS[1:])
    connection = sqlite3.connect(folder / "ledger.sqlite")
    (value,) = connection.execute(f"SELECT {column} FROM entries WHERE number = {row}").fetchone()
    connection.close()
    raw = bytearray(value if isinstance(value, bytes) else value.encode())
    place = rng.randrange(len(raw))
    raw[place] ^= 1 << rng.randrange(7)
    changed = bytes(raw) if isinstance(value, bytes) else raw.decode("ascii")
    with_sql(folder / "ledger.sqlite", f"UPDATE entries SET {column} = ? WHERE number = {row}", values=(changed,))
    return f"row {row}, {column}, byte {place}"


def remove_row(folder: Path, original: Original, rng: random.Random) -> str:
    row, close_gap = rng.randrange(1, original.rows + 1), rng.random() < 0.5
    gap = [f"UPDATE entries SET number = {n} - 1 WHERE number = {n}" for n in range(row + 1, original.rows + 1)]
    with_sql(folder / "ledger.sqlite", f"DELETE FROM entries WHERE number = {row}", *(gap if close_gap else []))
    return f"row {row} removed, gap closed: {close_gap}"


def swap_rows(folder: Path, original: Original, rng: random.Random) -> str:
    a, b = rng.sample(range(1, original.rows + 1), 2)
    steps = [f"UPDATE entries SET number = {to} WHERE number = {of}" for of, to in ((a, 99), (b, a), (99, b))]
    with_sql(folder / "ledger.sqlite", *steps)
    return f"rows {a} and {b} swapped"


def cut_rows(folder: Path, original: Original, rng: random.Random) -> str:
    left = rng.randrange(original.rows)
    with_sql(folder / "ledger.sqlite", f"DELETE FROM entries WHERE number > {left}")
    return f"{left} rows left"


def cut_file(folder: Path, original: Original, rng: random.Random) -> str:
    path = folder / rng.choice(["ledger.sqlite", "ledger.head"])
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])
    return f"{path.name} cut off"


def roll_back(folder: Path, original: Original, rng: random.Random) -> str:
    """Ledger and head as they once were, or cut to any length with a head that fits: --head tells."""
    if rng.random() < 0.3:
        shutil.rmtree(folder)
        shutil.copytree(original.then, folder)
        return "the older copy"
    left = rng.randrange(1, original.rows)
    with_sql(folder / "ledger.sqlite", f"DELETE FROM entries WHERE number > {left}")
    digest = ledger_rows(folder / "ledger.sqlite")[-1].hash.hex()
    (folder / "ledger.head").write_text(f'{{"rows": {left}, "hash": "{digest}"}}\n')
    return f"{left} rows and their head"


def damage_export(folder: Path, original: Original, rng: random.Random) -> str:
    """A byte, a line, the order, the length of the portable form."""
    shutil.rmtree(folder)
    folder.mkdir()
    path, lines = folder / "ledger.jsonl", original.export.splitlines(keepends=True)
    how = rng.choice(["byte", "byte", "line", "swap", "cut", "roll back"])
    if how == "line":
        del lines[rng.randrange(1, len(lines))]
    elif how == "swap":
        a, b = rng.sample(range(1, len(lines)), 2)
        lines[a], lines[b] = lines[b], lines[a]
    text = "".join(lines)
    if how == "cut":
        text = text[: rng.randrange(len(text))]
    elif how == "roll back":
        text = export_text(ledger_rows(original.now / "ledger.sqlite")[: rng.randrange(1, original.rows)])
    path.write_text(text)
    return f"export, {how} {flip(path, rng) if how == 'byte' else ''}"


Tampering = Callable[[Path, Original, random.Random], str]
KINDS: tuple[Tampering, ...] = (
    flip_file,
    flip_file,
    flip_head,
    flip_column,
    remove_row,
    swap_rows,
    cut_rows,
    cut_file,
    roll_back,
    damage_export,
)


def verify(folder: Path, head: str) -> int:
    (path,) = [*folder.glob("*.sqlite"), *folder.glob("*.jsonl")]
    return CliRunner().invoke(cli, ["audit", "verify", "--ledger", str(path), "--head", head]).exit_code


def tamper(original: Original, folder: Path, count: int, seed: int) -> None:
    rng = random.Random(seed)
    missed = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(original.now, folder)
        what = kind(folder, original, rng)
        code = verify(folder, original.head)
        if code != 5:
            missed.append(f"{kind.__name__}: {what}: exit {code}")
    assert missed == []


def test_the_untouched_ledger_and_its_export_pass(original: Original, tmp_path: Path) -> None:
    shutil.copytree(original.now, tmp_path / "copy")
    assert verify(tmp_path / "copy", original.head) == 0
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "ledger.jsonl").write_text(original.export)
    assert verify(tmp_path / "export", original.head) == 0
    older = ledger_rows(original.then / "ledger.sqlite")[-1].hash.hex()
    assert verify(original.then, older) == 0, "a rollback is sound to who knows no later head"


def test_200_tamperings(original: Original, tmp_path: Path) -> None:
    tamper(original, tmp_path / "copy", FAST, seed=1)


@pytest.mark.slow
def test_2000_tamperings(original: Original, tmp_path: Path) -> None:
    tamper(original, tmp_path / "copy", ALL, seed=2)
