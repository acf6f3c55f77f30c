"""Reading text tasks: files, folders, the hub, malformed rows, and the public/private split."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import Example, FolderSource, Row, TextTask, load_task, split_public_private
from gradtf_fl.tasks.answers import first_line, has_first_line
from gradtf_fl.tasks.sources import HubSource
from gradtf_fl.tasks.text_tasks import same_text, text_field


def convert(document: Mapping[str, Any]) -> Example:
    question, answer = text_field(document, "q"), text_field(document, "a")
    return Example(Row(question, answer + "\n"), (answer,), same_text(question))


def task(source: HubSource | None = None) -> TextTask:
    return TextTask("toy", "exact_match", "text", convert, first_line, has_first_line, 8, source)


def lines(count: int, bad: Mapping[int, str] | None = None) -> str:
    """``count`` lines from 1 on, some replaced by bad ones."""
    good = (json.dumps({"q": f"question {n}", "a": f"answer {n}"}) for n in range(1, count + 1))
    return "".join((bad or {}).get(number, line) + "\n" for number, line in enumerate(good, 1))


def test_rows_come_from_plain_and_gzipped_files(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("\ufeff" + lines(3) + "\n  \n", encoding="utf8")
    with gzip.open(tmp_path / "test.jsonl.gz", "wt", encoding="utf8") as file:
        file.write('{"q": "one\u2028line", "a": "é"}\n')
    train = load_task(task(), "train", FolderSource(tmp_path))
    assert [row.prompt for row in train.rows] == ["question 1", "question 2", "question 3"]
    assert (train.skipped, train.skipped_rows) == (0, ())
    test = load_task(task(), "test", FolderSource(tmp_path))
    assert test.rows == [Row("one\u2028line", "é\n")]
    assert test.examples[0].references == ("é",)


def test_a_folder_without_test_file_gives_validation_rows(tmp_path: Path) -> None:
    (tmp_path / "validation.jsonl").write_text(lines(2))
    assert len(load_task(task(), "test", FolderSource(tmp_path)).rows) == 2
    with pytest.raises(ConfigError, match=r"neither train\.jsonl nor train\.jsonl\.gz"):
        load_task(task(), "train", FolderSource(tmp_path))


BAD = {
    2: '{"q": "x"',
    3: '["q", "a"]',
    5: '{"q": "x"}',
    7: '{"q": "x", "a": 3}',
    8: '{"q": " ", "a": "x"}',
}
REASONS = {2: "not JSON", 3: "not an object with fields", 5: "has no 'a'", 7: "'a' is not text", 8: "'q' is empty"}


def test_malformed_rows_are_skipped_and_named_up_to_the_share(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(lines(100, BAD))
    loaded = load_task(task(), "train", FolderSource(tmp_path), max_malformed=0.05)
    assert (len(loaded.rows), loaded.skipped) == (95, 5)
    place = f"data {tmp_path / 'train.jsonl'}, line"
    assert loaded.skipped_rows == tuple(f"{place} {number}: {REASONS[number]}" for number in BAD)


def test_more_malformed_rows_are_refused_with_the_first_ten_named(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(lines(100, {n: "{" for n in range(21, 33)}))
    with pytest.raises(ConfigError) as caught:
        load_task(task(), "train", FolderSource(tmp_path), max_malformed=0.11)
    *named, more, summary = caught.value.problems
    assert [problem.partition("line ")[2] for problem in named] == [f"{n}: not JSON" for n in range(21, 31)]
    assert more == "... and 2 more"
    assert summary == "task toy: 12 of 100 rows are malformed, at most 11.00% may be"


def test_one_percent_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(lines(100, {4: "{"}))
    assert load_task(task(), "train", FolderSource(tmp_path)).skipped == 1
    path.write_text(lines(99, {4: "{"}))
    with pytest.raises(ConfigError, match="1 of 99 rows"):
        load_task(task(), "train", FolderSource(tmp_path))


def test_a_line_that_is_not_utf8_is_one_malformed_row(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(lines(1).encode() + b'{"q": "\xff", "a": "x"}\n')
    loaded = load_task(task(), "train", FolderSource(tmp_path), max_malformed=0.5)
    assert loaded.skipped_rows[0].endswith("line 2: not UTF-8")


def test_rows_that_are_all_malformed_are_refused_at_any_share(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{\n")
    with pytest.raises(ConfigError, match="1 of 1 rows"):
        load_task(task(), "train", FolderSource(tmp_path), max_malformed=1.0)


@pytest.mark.parametrize("what", ["no folder", "no rows", "twice", "truncated", "not gzip", "no source"])
def test_a_source_that_cannot_be_read_is_refused(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "none" if what == "no folder" else tmp_path
    data = gzip.compress(lines(50).encode())
    if what in ("no rows", "twice"):
        (tmp_path / "train.jsonl").write_text("")
    if what in ("twice", "truncated", "not gzip"):
        content = {"twice": data, "truncated": data[:-20], "not gzip": b"{}\n"}[what]
        (tmp_path / "train.jsonl.gz").write_bytes(content)
    expected = {
        "no folder": "no such folder",
        "no rows": "its train split has no rows",
        "twice": r"both train\.jsonl and train\.jsonl\.gz",
        "truncated": "can't be read to its end",
        "not gzip": "can't be read to its end",
        "no source": "--data DIR",
    }
    with pytest.raises(ConfigError, match=expected[what]):
        load_task(task(), "train", None if what == "no source" else FolderSource(folder))


HUB = HubSource("owner/name", "main", (("train", "train"), ("test", "validation")))


def test_rows_come_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(path: str, config: str | None, *, split: str) -> list[dict[str, object]]:
        asked.append((path, config, split))
        return [{"q": "x", "a": "y", "more": 1}, {"q": "x"}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    loaded = load_task(task(HUB), "test", max_malformed=0.5)
    assert asked == [("owner/name", "main", "validation")]
    assert loaded.rows == [Row("x", "y\n")]
    assert loaded.skipped_rows == ("data owner/name validation, row 2: has no 'a'",)
    with pytest.raises(ConfigError, match="no validation split is known, only train, test"):
        load_task(task(HUB), "validation")


def test_an_unreachable_hub_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach it\nand a traceback")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(ConfigError) as caught:
        load_task(task(HUB), "train")
    (problem,) = caught.value.problems
    assert problem.startswith("data owner/name: can't be had from the hub (Couldn't reach it); give a local folder")
    assert "train.jsonl.gz" in problem
    assert "--data DIR" in problem


def test_a_folder_goes_before_the_tasks_own_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        pytest.fail("the hub was asked")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    (tmp_path / "train.jsonl").write_text(lines(1))
    assert len(load_task(task(HUB), "train", FolderSource(tmp_path)).rows) == 1


def grouped(sizes: list[int]) -> list[Example]:
    """Groups of ``sizes`` rows, their rows interleaved."""
    made = [(n, g) for g, size in enumerate(sizes) for n in range(size)]
    return [Example(Row(f"{g}/{n}", "x"), ("x",), str(g)) for n, g in sorted(made)]


@given(st.lists(st.integers(1, 5), min_size=2, max_size=20), st.integers(0, 5), st.sampled_from([0.25, 0.5, 0.8]))
def test_a_split_is_disjoint_complete_and_never_cuts_a_group(sizes: list[int], seed: int, share: float) -> None:
    examples = grouped(sizes)
    public, private = split_public_private(examples, seed, share)
    assert sorted(public + private, key=examples.index) == examples
    assert not {e.group for e in public} & {e.group for e in private}
    assert [examples.index(e) for e in public] == sorted(examples.index(e) for e in public)
    assert abs(len(public) - share * len(examples)) <= max(sizes)


def test_a_split_depends_on_the_seed_alone() -> None:
    examples = grouped([2] * 40)
    first, again, other = (split_public_private(examples, seed)[0] for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len(first) == 40


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to split"):
        split_public_private(grouped([4]), 0)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        split_public_private(grouped([1, 1]), 0, 1.0)


def test_case_and_spacing_do_not_make_two_groups() -> None:
    assert same_text("A  Passage\n here") == same_text("a passage here")
