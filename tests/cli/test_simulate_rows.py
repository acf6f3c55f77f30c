"""What ``gradtf simulate`` refuses of an own task: one message, exit 2, and ``--out`` as it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from gradtf_fl.simulation import setup
from tests.cli.conftest import gradtf

ROWS = [{"prompt": f"{i:03d}?", "answer": f"{i % 7}{i % 5}", "ward": str(i % 4)} for i in range(120)]
LETTERS = [{"prompt": f"Ward {i}, bed 4? ", "answer": "occupied"} for i in range(60)]
PLAIN = ["--no-transformer", "--organizations", "3", "--rounds", "1", "--steps", "2", "--batch", "4", "--rows", "0"]


def jsonl(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def with_test(folder: Path, text: str) -> Path:
    jsonl(folder / "train.jsonl", ROWS)
    (folder / "test.jsonl").write_text(text)
    return folder


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, list[object]]:
    good = jsonl(tmp_path / "good.jsonl", ROWS)
    letters = jsonl(tmp_path / "letters.jsonl", LETTERS)
    some = jsonl(tmp_path / "some.jsonl", [*ROWS, *LETTERS[:3]])
    long = jsonl(tmp_path / "long.jsonl", [{"prompt": "12?" * 40 + str(i), "answer": "46"} for i in range(60)])
    (tmp_path / "binary.jsonl").write_bytes(b"\x00\xff" * 50)
    (tmp_path / "broken.json").write_text('[{"prompt": "1", "answer": "2"}, {')
    no_ward = jsonl(tmp_path / "no_ward.jsonl", [*ROWS, {"prompt": "1?", "answer": "2"}])
    surrogate = with_test(tmp_path / "surrogate", '{"prompt": "12?", "answer": "\\ud83d"}\n')
    no_test = with_test(tmp_path / "no_test", "")
    wards = ["--partition", "natural", "--by", "ward"]
    return {
        "letters": ["--task", letters],
        "some letters": ["--task", some],
        "long": ["--task", long],
        "binary in the middle": ["--task", good, "--task", tmp_path / "binary.jsonl", "--task", long],
        "an array that breaks off": ["--task", tmp_path / "broken.json"],
        "no such file": ["--task", good, "--task", tmp_path / "nothing.jsonl"],
        "the same source twice": ["--task", good, "--task", good],
        "a copy of a source": ["--task", good, "--task", jsonl(tmp_path / "copy.jsonl", ROWS)],
        "two sources of one name": ["--task", good, "--task", jsonl(tmp_path / "more" / "good.jsonl", ROWS[1:])],
        "a row without its label": ["--task", no_ward, *wards],
        "too few labels": ["--task", good, *wards, "--organizations", 5],
        "a lone surrogate in the test file": ["--task", surrogate],
        "an empty test file": ["--task", no_test],
        "a batch above the rows": ["--task", good, "--batch", 100],
    }


SAID = {
    "letters": "train rows of org-1 for embedded:tiny: 8 of 8 rows have no token that is scored",
    "some letters": "rows have no token that is scored, for example row ",
    "long": "for embedded:tiny: 8 of 8 rows are longer than the model's 64 positions",
    "binary in the middle": "binary.jsonl, line 1: not UTF-8",
    "an array that breaks off": "broken.json, line 1: the array's next element is not JSON",
    "no such file": "nothing.jsonl: no such file or folder",
    "the same source twice": "good.jsonl",
    "a copy of a source": "copy.jsonl hold the same rows; name one of them",
    "two sources of one name": "more/good.jsonl are both called good; rename one of them",
    "a row without its label": "no_ward.jsonl, line 121: has no 'ward', which is to tell labels apart",
    "too few labels": "ward has 4 values, and 5 organizations are required",
    "a lone surrogate in the test file": "test.jsonl, line 1: holds half a character",
    "an empty test file": "its test split has no rows",
    "a batch above the rows": "an organization needs 100 (the batch)",
}


@pytest.mark.parametrize("what", SAID)
def test_rows_that_no_round_can_use_are_refused_before_one(
    what: str, sources: dict[str, list[object]], tmp_path: Path
) -> None:
    result = gradtf("simulate", *PLAIN, *sources[what], "--out", tmp_path / "run")
    assert result.exit_code == 2, result.stderr
    assert SAID[what] in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "run").exists()


def test_every_part_and_model_is_named_once(sources: dict[str, list[object]], tmp_path: Path) -> None:
    said = gradtf("simulate", *PLAIN, *sources["letters"]).stderr
    found = [line for line in said.splitlines() if "no token" in line]
    assert [line.split(" rows of")[0] for line in found] == ["gradtf: train", "gradtf: test"]
    assert all("(2 more organizations can't use theirs)" in line for line in found)


def test_a_folder_that_was_there_stays_and_is_empty(
    sources: dict[str, list[object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(setup, "replace_file", full)  # with keys and rows of org-1 written
    run = tmp_path / "run"
    run.mkdir()
    result = gradtf("simulate", *PLAIN, "--rows", 16, "--out", run)
    assert result.exit_code != 0
    assert "No space left" in result.stderr
    assert list(run.iterdir()) == []
