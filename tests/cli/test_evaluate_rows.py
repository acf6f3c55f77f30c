"""``gradtf evaluate`` on a file of rows: one reader for all formats, and no score for nothing."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gradtf_fl.tasks import Row, write_rows
from tests.cli.conftest import gradtf

ROWS = [Row(f"[_][_][_]{number:02d}?{99 - number:02d}=", f"{number:02d}") for number in range(80)]
DOCUMENTS = [{"prompt": row.prompt, "answer": row.answer} for row in ROWS]
TEXT = "".join(json.dumps(document) + "\n" for document in DOCUMENTS)
CSV = "prompt,answer\n" + "".join(f'{row.prompt},"{row.answer}"\n' for row in ROWS)
CHATS = [
    {"messages": [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.answer}]}
    for row in ROWS
]
FILES: dict[str, Callable[[Path], object]] = {
    "bom.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode()),
    "g.jsonl.gz": lambda path: path.write_bytes(gzip.compress(TEXT.encode())),
    "crlf.jsonl": lambda path: path.write_bytes(TEXT.replace("\n", "\r\n").encode()),
    "blank.jsonl": lambda path: path.write_bytes(TEXT.encode() + b"\xc2\xa0\n"),
    "array.json": lambda path: path.write_text(json.dumps(DOCUMENTS)),
    "rows.csv": lambda path: path.write_text(CSV),
    "chat.jsonl": lambda path: path.write_text("".join(json.dumps(chat) + "\n" for chat in CHATS)),
}


def test_every_format_of_the_same_rows_has_one_score(tmp_path: Path) -> None:
    write_rows(tmp_path / "plain.jsonl", ROWS)
    scores = {}
    for name, write in {"plain.jsonl": lambda path: None, **FILES}.items():
        write(tmp_path / name)
        result = gradtf("evaluate", "--model", "embedded:llm", "--task", tmp_path / name, "--json")
        assert result.exit_code == 0, result.stderr
        document = json.loads(result.stdout)
        scores[name] = (document["rows"], document["exact_match"])
    assert set(scores.values()) == {scores["plain.jsonl"]}
    assert scores["plain.jsonl"][0] == 80
    assert scores["plain.jsonl"][1] < 1


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        ([Row("", str(number)) for number in range(10)], "10 of 10"),
        ([Row("Name the capital of France: ", "Paris")], "1 of 1"),
    ],
)
def test_rows_that_no_model_can_be_scored_on_are_refused(rows: list[Row], count: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", rows)
    result = gradtf("evaluate", "--model", "embedded:llm", "--task", tmp_path / "rows.jsonl", "--json")
    assert result.exit_code == 2
    assert f"data {tmp_path / 'rows.jsonl'}: {count} rows have no token that is scored" in result.stderr
    assert result.stdout == ""


def evaluated(task: Path, *options: object) -> dict[str, object]:
    result = gradtf("evaluate", "--model", "embedded:tiny", "--task", task, "--json", *options)
    assert result.exit_code == 0, result.stderr
    document: dict[str, object] = json.loads(result.stdout)
    return document


def test_how_rows_become_tokens_can_be_said(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"q": row.prompt, "a": row.answer}) + "\n" for row in ROWS))
    columns = ("--prompt", "{q}", "--answer", "{a}")
    plain = evaluated(path, *columns)
    assert (plain["format"], plain["rows"], plain["cut_rows"]) == ("columns", 80, 0)
    ended = evaluated(path, *columns, "--end")
    assert ended["exact_match"] == 0  # this model's answers never end
    assert float(str(ended["loss_per_character"])) > float(str(plain["loss_per_character"]))
    cut = evaluated(path, *columns, "--max-tokens", 10, "--max-cut", 1)
    assert cut["cut_rows"] == 80
    result = gradtf("evaluate", "--model", "embedded:tiny", "--task", path, *columns, "--max-tokens", 10)
    assert result.exit_code == 2
    assert "80 of 80 rows are longer than max_tokens = 10" in result.stderr


def test_options_of_files_are_refused_elsewhere() -> None:
    result = gradtf("evaluate", "--model", "embedded:tiny", "--task", "house-rules:afk", "--max-tokens", 9, "--end")
    assert result.exit_code == 2
    assert "--max-tokens, --end: only for files of rows, which house-rules:afk is not" in result.stderr
