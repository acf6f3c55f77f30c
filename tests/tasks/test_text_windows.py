"""Rows of named tasks shared out among public, private and test: windows of plain text, prompts and answers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from gradtf_fl.config import TaskSection
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import TaskRows, read_task_rows
from gradtf_fl.tasks.documents import cut_windows, split_documents
from gradtf_fl.tasks.task_rows import _read_once
from gradtf_fl.tasks.text_windows import TEXT_OF
from tests.benchmark_data import DATA, needs_data

MATHS = ("aqua_rat", "gsm8k")


def write_rows(folder: Path, split: str, documents: list[dict[str, str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, documents)))


def numbered(word: str, count: int) -> list[str]:
    return [" ".join([f"{word}{number:03d}"] * 5) for number in range(count)]


def read(name: str, folder: Path, window: int | None, seed: int = 0) -> TaskRows:
    source = name if name.endswith(".toml") else str(folder / name)
    values = {"format": "text", "window": window} if window else {}
    return read_task_rows(source, TaskSection(**values, split_seed=seed))


def test_windows_are_exact_and_consecutive() -> None:
    assert cut_windows("abcdefgh", 3) == ["abc", "def"]
    assert cut_windows("ab", 3) == []


def test_documents_end_at_marks_or_at_blank_lines() -> None:
    assert split_documents("one\n<|endoftext|>\n two<|endoftext|>") == ["one", "two"]
    paragraphs = [letter * 900 for letter in "abcde"]
    parts = split_documents("\n\n".join(paragraphs))
    assert parts == ["\n\n".join(paragraphs[:3]), "\n\n".join(paragraphs[3:])]


def test_no_document_is_on_two_sides(tmp_path: Path) -> None:
    documents = numbered("w", 60)
    with gzip.open(tmp_path / "story.txt.gz", "wt") as file:
        file.write("<|endoftext|>".join(documents))
    task = read("story", tmp_path, 24, 0)
    parts = {"public": (*task.public, *task.judged), "private": task.private, "test": task.test}
    sides = {name: "".join(one.row.answer for one in part) for name, part in parts.items()}
    found = {name: {word for word in text.replace("\n", " ").split() if len(word) == 4} for name, text in sides.items()}
    assert [len(words) for words in found.values()] == pytest.approx([30, 21, 9], abs=2)
    assert not found["public"] & found["private"]
    assert not found["public"] & found["test"]
    assert not found["private"] & found["test"]
    assert all(one.row.prompt == "" and len(one.row.answer) == 24 for one in task.public)
    assert task == read("story", tmp_path, 24, 0)
    assert task.public != read("story", tmp_path, 24, 1).public


def test_a_test_file_is_the_test_part_and_shared_passages_are_read_once(tmp_path: Path) -> None:
    shared = [{"passage": text} for text in numbered("p", 20) for _ in range(3)]
    write_rows(tmp_path / "drop", "train", shared)
    write_rows(tmp_path / "drop", "test", [{"passage": text} for text in numbered("t", 5)])
    task = read("drop", tmp_path, 29, 0)
    text = "".join(one.row.answer for one in (*task.public, *task.judged, *task.private))
    assert 4.5 <= text.count("p007") <= 5
    assert {one.row.answer[0] for one in task.test} <= set("t0123456789 \n")


def test_prompts_and_answers_keep_their_form(tmp_path: Path) -> None:
    rows = [{"question": text, "answer": "Two.\n#### 2"} for text in numbered("q", 30)]
    write_rows(tmp_path / "gsm8k", "train", rows)
    task = read("gsm8k", tmp_path, None, 0)
    assert (len(task.public), len(task.judged), len(task.private), len(task.test)) == (13, 2, 10, 5)
    assert task.public[0].row.answer == "Two.\nFinal answer: 2\n"
    assert read("gsm8k", tmp_path, 60, 0).public[0].row.answer.startswith("q0")


def test_an_own_task_by_its_toml(tmp_path: Path) -> None:
    write_rows(tmp_path, "train", [{"body": text, "queue": "a"} for text in numbered("r", 12)])
    write_rows(tmp_path, "test", [{"body": text, "queue": "b"} for text in numbered("s", 4)])
    toml = tmp_path / "own.toml"
    toml.write_text(
        'name = "own"\nmetric = "exact_match"\nprompt = "{text}:"\nanswer = "{queue}"\n'
        '[fields]\ntext = "body"\nqueue = "queue"\n[files]\ntrain = "train.jsonl"\ntest = "test.jsonl"\n'
    )
    task = read(str(toml), tmp_path, None, 0)
    assert (len(task.public), len(task.judged), len(task.private), len(task.test)) == (5, 1, 6, 4)
    with pytest.raises(ConfigError, match="can't be read as text"):
        read(str(toml), tmp_path, 20, 0)


def test_changed_rows_change_the_checksum(tmp_path: Path) -> None:
    test_an_own_task_by_its_toml(tmp_path)
    before = read(str(tmp_path / "own.toml"), tmp_path, None, 0).sha256
    write_rows(tmp_path, "train", [{"body": text, "queue": "c"} for text in numbered("r", 12)])
    _read_once.cache_clear()
    assert read(str(tmp_path / "own.toml"), tmp_path, None, 0).sha256 != before


@pytest.mark.parametrize(
    ("name", "window", "named"),
    [
        ("none", 8, "no such file or folder"),
        ("folder", None, "none of the forms"),
        ("folder", 900, "shorter than one window of 900"),
        ("broken", 8, "UTF-8"),
        ("fields", 8, "none of the forms"),
    ],
)
def test_what_is_wrong_is_named(name: str, window: int | None, named: str, tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("a story")
    (tmp_path / "broken.txt").write_bytes(b"\xff\xfe\xfa")
    write_rows(tmp_path / "folder", "train", [{"text": text} for text in numbered("x", 9)])
    write_rows(tmp_path / "fields", "train", [{"body": text} for text in numbered("x", 9)])
    with pytest.raises(ConfigError, match=named):
        read(name, tmp_path, window, 0)


@needs_data
@pytest.mark.parametrize("name", [*MATHS, "text/tinyshakespeare"])
def test_real_text_without_instructions(name: str) -> None:
    task = read(name, DATA, 128, 0)
    assert min(len(task.public), len(task.private), len(task.test)) > 700
    assert not any("Final answer" in one.row.answer or "Solve the problem" in one.row.answer for one in task.public)
    assert name in TEXT_OF or "/" in name
