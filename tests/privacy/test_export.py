"""The portable form: verified and reported without the ledger, imported bit for bit; and heads kept elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradtf_fl.cli.audit.audit import audit
from gradtf_fl.errors import ConfigError, GradtfError, VerificationFailed
from gradtf_fl.privacy import DpEvent, Ledger, read_ledger
from gradtf_fl.privacy.ledger.advertised import read_heads
from gradtf_fl.privacy.ledger.export import import_ledger
from gradtf_fl.privacy.ledger.reading import ledger_rows
from gradtf_fl.reports.audit import report_ledger

from .conftest import EVENT


def run(*arguments: object) -> Result:
    return CliRunner().invoke(audit, [str(argument) for argument in arguments])


def failure(*arguments: object) -> GradtfError:
    error = run(*arguments).exception
    assert isinstance(error, GradtfError), error
    return error


@pytest.fixture
def full(ledger: Ledger) -> Ledger:
    """Rows of every kind, a key handed over, closed."""
    ledger.settle(ledger.reserve("run", 1, 0, EVENT), EVENT)
    ledger.rotate(Ed25519PrivateKey.generate())
    ledger.reserve("run", 2, 0, EVENT, note='a "note" with \u00fc')
    ledger.close()
    return ledger


@pytest.fixture
def exported(full: Ledger, tmp_path: Path) -> Path:
    out = tmp_path / "clinic.jsonl"
    result = run("export", "--ledger", full.path, "--out", out)
    assert (result.exit_code, result.stdout) == (0, "")
    return out


def test_it_stands_for_the_ledger(full: Ledger, exported: Path) -> None:
    ours, theirs = read_ledger(full.path), read_ledger(exported)
    assert theirs.problems == ()
    assert (theirs.content, theirs.head, theirs.keys) == (ours.content, ours.head, ours.keys)
    (one,), (other,) = report_ledger(full.path), report_ledger(exported)
    assert one.to_json() | {"ledger": ""} == other.to_json() | {"ledger": ""}
    assert run("verify", exported, "--head", ours.head.hex()).exit_code == 0
    assert exported.read_text().isascii()


def test_a_round_trip_is_bit_exact_and_the_import_goes_on(full: Ledger, exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "other" / "ledger.sqlite"
    assert run("import", exported, "--ledger", copy).exit_code == 0
    assert ledger_rows(copy) == ledger_rows(full.path)
    assert read_ledger(copy).problems == ()
    assert run("export", "--ledger", copy.parent).stdout == exported.read_text()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in copy.parent.iterdir()}
    assert modes == {"ledger.sqlite": 0o600, "ledger.head": 0o600}
    key = Ed25519PrivateKey.generate()
    with Ledger(full.path, full._session._key) as original:
        original.rotate(key)
    assert failure("verify", copy, "--head", original.head.hex()).exit_code == 5
    with Ledger(copy, full._session._key) as imported:
        imported.reserve("run", 3, 0, DpEvent(9.0, 1 / 16, 1))
        assert imported.verify() == ()


@pytest.mark.parametrize("taken", ["ledger.sqlite", "ledger.head"])
def test_an_import_overwrites_nothing(exported: Path, tmp_path: Path, taken: str) -> None:
    target = tmp_path / "new" / "ledger.sqlite"
    target.parent.mkdir()
    (target.parent / taken).write_text("mine")
    error = failure("import", exported, "--ledger", target)
    assert isinstance(error, ConfigError)
    assert "never overwritten" in str(error)
    assert [path.name for path in target.parent.iterdir()] == [taken]
    assert (target.parent / taken).read_text() == "mine"


def test_an_import_that_loses_a_race_overwrites_nothing(full: Ledger, tmp_path: Path) -> None:
    rows, target = ledger_rows(full.path), tmp_path / "race" / "ledger.sqlite"

    class Rival(list):  # type: ignore[type-arg]
        """Rows whose reading gives somebody else the time to put a ledger there."""

        def __iter__(self):  # type: ignore[no-untyped-def]
            yield from rows
            target.write_text("mine")

    with pytest.raises(FileExistsError):
        import_ledger(Rival(rows), target)
    assert target.read_text() == "mine"
    assert not list(target.parent.glob("*.new*"))


def test_a_broken_ledger_is_neither_exported_nor_imported(full: Ledger, exported: Path, tmp_path: Path) -> None:
    lines = exported.read_text().splitlines(keepends=True)
    lines[3] = lines[3].replace("50", "51", 1)
    exported.write_text("".join(lines))
    error = failure("import", exported, "--ledger", tmp_path / "new" / "ledger.sqlite")
    assert str(error).startswith(f"{exported}: row 3: its content does not match its hash")
    assert error.exit_code == 5
    assert not (tmp_path / "new").exists()
    full.path.with_name("ledger.head").unlink()
    assert failure("export", "--ledger", full.path, "--out", tmp_path / "no.jsonl").exit_code == 5
    assert not (tmp_path / "no.jsonl").exists()


DAMAGES = {
    "a line less at the end": lambda lines: lines[:-1],
    "and the first line mended": lambda lines: [lines[0].replace('"rows":6', '"rows":5'), *lines[1:-1]],
    "only the first line": lambda lines: lines[:1],
    "no last newline": lambda lines: [*lines[:-1], lines[-1].rstrip("\n")],
    "a space": lambda lines: [*lines[:2], lines[2].replace(":", ": ", 1), *lines[3:]],
    "an empty line": lambda lines: [*lines, "\n"],
    "a field more": lambda lines: [*lines[:2], lines[2].replace("{", '{"a":1,', 1), *lines[3:]],
    "a number as text": lambda lines: [*lines[:2], lines[2].replace('"number":2', '"number":"2"'), *lines[3:]],
    "no JSON": lambda lines: [*lines[:2], "junk\n", *lines[3:]],
    "too deep": lambda lines: [*lines[:2], "[" * 100_000 + "\n", *lines[3:]],
    "twice the first row": lambda lines: [*lines[:2], lines[1], *lines[2:]],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_export_shows(exported: Path, damage: str) -> None:
    lines = exported.read_text().splitlines(keepends=True)
    assert len(lines) == 7
    exported.write_text("".join(DAMAGES[damage](lines)))
    assert failure("verify", exported).exit_code == 5


def test_what_is_no_export_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("# a read-me\n")
    error = failure("verify", tmp_path / "x")
    assert isinstance(error, ConfigError)
    assert "neither a privacy ledger nor the export" in str(error)


def test_another_machine_needs_nothing_but_the_file(exported: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    shutil.copy(exported, there / "clinic.jsonl")
    command = [sys.executable, "-m", "gradtf_fl.cli.main", "audit", "verify", "--json", str(there / "clinic.jsonl")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=there, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ledgers"][0]["rows"] == 6
    assert [path.name for path in there.iterdir()] == ["clinic.jsonl"]


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Ledgers of two organizations, each with an older copy beside it (folders ``then``)."""
    paths = []
    for name in ("clinic", "bank of many words"):
        path = tmp_path / name / "ledger.sqlite"
        key = Ed25519PrivateKey.generate()
        with Ledger.open(path, identity_key=key, organization=name, delta=1e-5, budget=2.0) as ledger:
            ledger.reserve("run", 1, 0, EVENT)
        shutil.copytree(path.parent, path.parent / "then")
        with Ledger(path, key) as ledger:
            ledger.reserve("run", 2, 0, EVENT)
        paths.append(path)
    return paths


def test_a_file_of_heads_finds_a_rollback_of_ledger_and_head(two: list[Path], tmp_path: Path) -> None:
    heads = tmp_path / "heads.txt"
    lines = [f"{path.parent.name}   {read_ledger(path).head.hex()}  # May" for path in two]
    heads.write_text("\n".join(["# heads", "", *lines, f"{'a third'} {'ab' * 32}"]))
    sound = run("verify", *two, "--heads", heads)
    assert sound.exit_code == 0
    assert sound.stdout.count("1 announced heads on the chain") == 2
    rolled_back = two[1].parent / "then" / "ledger.sqlite"
    assert run("verify", rolled_back).exit_code == 0
    error = failure("verify", two[0], rolled_back, "--heads", heads)
    assert error.exit_code == 5
    assert str(error).startswith(f"{rolled_back}: the advertised head is not on this chain")


@pytest.mark.parametrize("verb", [("verify", "--json"), ("report", "--json")])
def test_what_an_audit_printed_is_a_file_of_heads(two: list[Path], tmp_path: Path, verb: tuple[str, str]) -> None:
    kept = tmp_path / "last-month.json"
    kept.write_text(run(verb[0], *two, verb[1]).stdout)
    assert run("verify", *two, "--heads", kept).exit_code == 0
    rolled_back = [path.parent / "then" / "ledger.sqlite" for path in two]
    error = failure("verify", *rolled_back, "--heads", kept)
    assert str(error).count("not on this chain") == 2


def test_a_head_without_a_name_belongs_to_one_ledger(two: list[Path], tmp_path: Path) -> None:
    heads = tmp_path / "heads.txt"
    heads.write_text(read_ledger(two[0]).head.hex())
    assert run("verify", two[0], "--heads", heads).exit_code == 0
    assert "one at a time" in str(failure("verify", *two, "--heads", heads))
    assert failure("verify", two[1], "--heads", heads).exit_code == 5


@pytest.mark.parametrize(
    ("content", "problems"),
    [
        ("clinic abcd\nbank xyz\n", 2),
        ("", 1),
        ("{", 1),
        ('{"ledgers": [{"organization": "clinic"}]}', 1),
        ('{"ledgers": [{"organization": "clinic", "head": 7}]}', 1),
        ("{" + "[" * 100_000, 1),
    ],
)
def test_bad_files_of_heads_are_refused(tmp_path: Path, content: str, problems: int) -> None:
    (tmp_path / "heads").write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_heads(tmp_path / "heads")
    assert len(caught.value.problems) == problems
    with pytest.raises(ConfigError, match="cannot be read"):
        read_heads(tmp_path / "none")


def test_the_bytes_of_a_file_at_rest_are_known(full: Ledger) -> None:
    """Any byte that holds no row: SQLite reads over it, the digest in the head file does not."""
    content = full.path.read_bytes()
    free = content.rindex(b"\0" * 64) + 32
    full.path.write_bytes(content[:free] + b"x" + content[free + 1 :])
    (problem,) = read_ledger(full.path).problems
    assert "bytes changed since it was last closed" in problem.what
    with pytest.raises(VerificationFailed, match="bytes changed"):
        full.reserve("run", 3, 0, EVENT)
    full.close()
    full.path.write_bytes(content + b"\0")
    assert read_ledger(full.path).problems[0].what == "the file is longer or shorter than its pages"


def test_a_file_that_another_tool_rewrote_is_saved_by_its_export(full: Ledger, tmp_path: Path) -> None:
    connection = sqlite3.connect(full.path)
    connection.execute("PRAGMA page_size = 8192")
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.execute("VACUUM")
    connection.close()
    assert failure("verify", full.path).exit_code == 5
    out, copy = tmp_path / "saved.jsonl", tmp_path / "new" / "ledger.sqlite"
    assert run("export", "--ledger", full.path, "--out", out).exit_code == 0
    assert run("import", out, "--ledger", copy).exit_code == 0
    assert run("verify", copy).exit_code == 0
