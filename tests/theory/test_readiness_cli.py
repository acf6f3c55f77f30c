"""``gradtf readiness``: what it prints, what it never prints, what it writes, and what it refuses."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gradtf_fl.cli import main
from gradtf_fl.cli import readiness as verb
from gradtf_fl.tasks import Row, write_rows
from gradtf_fl.theory import KEEP_LOCAL
from tests.theory.test_readiness import FRUIT, TOOLS, text_rows


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    private, public = tmp_path / "private.jsonl", tmp_path / "public.jsonl"
    write_rows(private, [*text_rows(TOOLS, 60, 0), Row("secret \x1b[31mtool", "red")])
    write_rows(public, text_rows(FRUIT, 60, 1))
    return private, public


def readiness(*arguments: object) -> Result:
    return CliRunner().invoke(main.cli, ["readiness", *map(str, arguments)])


def test_prints_the_verdict_and_no_word_of_a_row(files: tuple[Path, Path]) -> None:
    result = readiness("--private", files[0], "--public", files[1])
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("far: ")
    assert "compared: 61 of your 61 rows with 60 of 60 public ones" in result.stdout
    assert "rows without a near public row: " in result.stdout
    assert "AUC 1.000" in result.stdout
    assert result.stdout.splitlines()[-1] == KEEP_LOCAL
    assert "tool" not in result.stdout
    assert "fruit" not in result.stdout
    assert sorted(path.name for path in files[0].parent.iterdir()) == ["private.jsonl", "public.jsonl"]


def test_near_rows(files: tuple[Path, Path], tmp_path: Path) -> None:
    write_rows(tmp_path / "more.jsonl", text_rows(FRUIT, 200, 200))
    write_rows(tmp_path / "mine.jsonl", text_rows(FRUIT, 200, 100))
    result = readiness("--private", tmp_path / "mine.jsonl", "--public", tmp_path / "more.jsonl")
    assert result.stdout.startswith("near: ")
    assert "at least 0.00 nats" in result.stdout


def test_json_is_the_only_output_and_equals_the_file(files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "kept.json"
    previous = os.umask(0)
    try:
        result = readiness("--private", files[0], "--public", files[1], "--json", "--out", out)
    finally:
        os.umask(previous)
    document = json.loads(result.stdout)
    assert document == json.loads(out.read_text())
    assert document["verdict"] == "far"
    assert document["keep_local"] == KEEP_LOCAL
    assert document["rows"]["private"] == 61
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert "tool" not in result.stdout


def test_an_older_file_with_another_mode_is_replaced(files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "kept.json"
    out.write_text("old")
    out.chmod(0o644)
    assert readiness("--private", files[0], "--public", files[1], "--out", out).exit_code == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert json.loads(out.read_text())["verdict"] == "far"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.json", "private.jsonl", "public.jsonl"]


def test_rows_go_to_a_terminal_only(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--private", files[0], "--public", files[1], "--show-rows")
    refused = readiness(*arguments)
    assert refused.exit_code == 2
    assert "must be a terminal" in refused.stderr
    assert readiness(*arguments, "--json").exit_code == 2
    monkeypatch.setattr(verb, "_on_a_terminal", lambda: True)
    shown = readiness(*arguments)
    assert shown.exit_code == 0
    assert sum(line.startswith("  row ") for line in shown.stdout.splitlines()) == verb.SHOWN_ROWS
    assert "tool" in shown.stdout
    assert readiness(*arguments, "--json").exit_code == 2


def test_control_characters_of_a_row_stay_away_from_the_terminal() -> None:
    shown = verb._printable(Row("secret \x1b[31mtool\x9b2J\nnext \u202e", "red" * 200))
    assert shown.isprintable()
    assert len(shown) <= verb.SHOWN_CHARACTERS + 4


def test_all_problems_are_named_at_once(files: tuple[Path, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a"}\n')
    result = readiness("--private", tmp_path / "none.jsonl", "--public", broken)
    assert result.exit_code == 2
    assert [line.split()[1] for line in result.stderr.splitlines()] == ["--private:", "--public:"]
    few = readiness("--private", files[0], "--public", files[1], "--out", tmp_path / "no" / "folder")
    assert few.exit_code == 2
    assert "--out" in few.stderr


def test_too_few_rows_exit_2(files: tuple[Path, Path], tmp_path: Path) -> None:
    write_rows(tmp_path / "few.jsonl", text_rows(FRUIT, 10, 2))
    result = readiness("--private", tmp_path / "few.jsonl", "--public", files[1])
    assert result.exit_code == 2
    assert "10 different rows" in result.stderr


def test_loads_no_torch(files: tuple[Path, Path]) -> None:
    program = (
        "import sys; from gradtf_fl.cli.readiness import readiness; "
        f"readiness(['--private', {str(files[0])!r}, '--public', {str(files[1])!r}], standalone_mode=False); "
        "heavy = {'torch', 'transformers', 'opacus', 'sklearn', 'scipy'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def rewritten(path: Path, form: Callable[[Row], dict[str, object]], rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(form(row)) + "\n" for row in rows))
    return path


def as_chat(row: Row) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.answer}]}


def test_every_form_of_the_same_rows_has_the_same_figures(tmp_path: Path) -> None:
    rows = text_rows(FRUIT, 60, 0)
    public = tmp_path / "public.jsonl"
    write_rows(public, rows[:30] + text_rows(FRUIT, 60, 1))
    chats = rewritten(tmp_path / "chats.jsonl", as_chat, rows)
    columns = rewritten(tmp_path / "columns.jsonl", lambda row: {"q": row.prompt, "a": row.answer}, rows)
    write_rows(tmp_path / "plain.jsonl", rows)
    templates = ("--prompt", "{q}", "--answer", "{a}")
    said = [
        readiness("--private", path, "--public", public, *options)
        for path, options in ((tmp_path / "plain.jsonl", ()), (chats, ()), (columns, templates))
    ]
    assert [result.exit_code for result in said] == [0, 0, 0], [result.stderr for result in said]
    assert len({result.stdout for result in said}) == 1
    assert "30 of yours are public rows word for word" in said[0].stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--private: data {}, line 1: has none of the forms"),
        (("--prompt", "{q}"), "columns need two templates; answer is missing"),
        (("--prompt", "{question}", "--answer", "{a}"), "--private: data {}, line 1: has no 'question'"),
        (("--format", "messages"), "--private: data {}: format is messages"),
    ],
)
def test_columns_without_their_templates_exit_2(
    files: tuple[Path, Path], tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    path = rewritten(
        tmp_path / "columns.jsonl", lambda row: {"q": row.prompt, "a": row.answer}, text_rows(FRUIT, 60, 0)
    )
    result = readiness("--private", path, "--public", files[1], *options)
    assert result.exit_code == 2
    assert said.format(path) in result.stderr
    assert result.stdout == ""
