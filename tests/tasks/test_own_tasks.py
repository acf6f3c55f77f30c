"""Own tasks by TOML: what the templates make of rows, and every problem of a description at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import FolderSource, Row, load_own_task, load_task
from gradtf_fl.tasks.own_tasks import pieces_of
from gradtf_fl.tasks.scoring import score_text
from gradtf_fl.tasks.sources import HubSource

TICKETS = r"""
name = "tickets"
metric = "exact_match"
prompt = "Ticket: {text} {{keep}}\nQueue:\n"
answer = "{reason}\nQueue: {queue}"
answer_pattern = 'Queue: (.+)'
max_new_tokens = 32
group = ["text"]

[fields]
text = "body.text"
reason = "notes.1"
queue = "queue"

[files]
train = "rows.jsonl"
"""
ROW = '{"body": {"text": "It broke"}, "notes": ["x", "Hardware\\nit is"], "queue": 7}\n'
ONE_LINE = """
name = "headlines"
metric = "rouge1"
prompt = "{text}\\n"
answer = "{title}"
[fields]
text = "text"
title = "title"
"""


def described(tmp_path: Path, text: str, rows: str = ROW) -> Path:
    (tmp_path / "rows.jsonl").write_text(rows)
    (tmp_path / "task.toml").write_text(text)
    return tmp_path / "task.toml"


def test_templates_make_prompt_answer_and_reference(tmp_path: Path) -> None:
    task = load_own_task(described(tmp_path, TICKETS))
    (example,) = load_task(task, "train").examples
    assert example.row == Row("Ticket: It broke {keep}\nQueue:\n", "Hardware\nit is\nQueue: 7\n")
    assert example.references == ("7",)
    assert example.group == "it broke"
    assert (task.name, task.metric, task.max_new_tokens) == ("tickets", "exact_match", 32)


def test_the_pattern_says_what_counts_and_when_generation_stops(tmp_path: Path) -> None:
    task = load_own_task(described(tmp_path, TICKETS))
    assert score_text(task, "Queue: 6\nno\nQueue: 7.0", ("7",)) == 1.0
    assert score_text(task, "Queue: 6", ("7",)) == 0.0
    assert score_text(task, "7", ("7",)) is None
    assert not task.finished("because\nQueue: 7")
    assert task.finished("because\nQueue: 7\n")
    assert not task.finished("because\n")


def test_without_a_pattern_the_answer_is_one_line(tmp_path: Path) -> None:
    task = load_own_task(described(tmp_path, ONE_LINE, '{"text": "Long", "title": "Two\\n words "}\n'))
    (example,) = load_task(task, "train", FolderSource(tmp_path_with(tmp_path))).examples
    assert example.row.answer == "Two words\n"
    assert example.references == ("Two words",)
    assert example.group == "long"
    assert score_text(task, "\nTwo words more\nignored", ("Two words",)) == pytest.approx(0.8)
    assert task.finished("\nTwo\n")
    assert not task.finished("\nTwo")


def tmp_path_with(tmp_path: Path) -> Path:
    """The folder of rows.jsonl under the name that a folder source looks for."""
    (tmp_path / "rows.jsonl").rename(tmp_path / "train.jsonl")
    return tmp_path


def test_a_task_without_source_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task headlines: .*--data DIR"):
        load_task(load_own_task(described(tmp_path, ONE_LINE)), "train")


def test_a_hub_data_set_is_named_with_its_splits(tmp_path: Path) -> None:
    hub = '[hub]\nid = "owner/name"\nconfig = "main"\ntrain = "a"\ntest = "b"\n'
    task = load_own_task(described(tmp_path, ONE_LINE + hub))
    assert task.source == HubSource("owner/name", "main", (("train", "a"), ("test", "b")))


def test_a_split_without_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file is named for the test split, only for train"):
        load_task(load_own_task(described(tmp_path, TICKETS)), "test")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"body": {"text": "x"}, "notes": ["a"], "queue": 7}', "has no 'notes.1'"),
        ('{"body": "x", "notes": ["a"], "queue": 7}', "has no 'body.text'"),
        ('{"body": {"text": "x"}, "notes": ["a", "b"], "queue": true}', "'queue' is neither text nor a number"),
        ('{"body": {"text": "x"}, "notes": ["a", "b"], "queue": ""}', "answer_pattern finds nothing in its answer"),
    ],
)
def test_a_malformed_row_says_why(row: str, reason: str, tmp_path: Path) -> None:
    task = load_own_task(described(tmp_path, TICKETS, ROW + row + "\n"))
    assert load_task(task, "train", max_malformed=0.5).skipped_rows[0].endswith(f"rows.jsonl, line 2: {reason}")


@pytest.mark.parametrize(
    ("row", "reason"),
    [('{"text": "x", "title": "  "}', "comes out empty"), ('{"text": "x", "title": "Привет"}', "ROUGE reads")],
)
def test_a_summary_that_cannot_be_scored_is_malformed(row: str, reason: str, tmp_path: Path) -> None:
    task = load_own_task(described(tmp_path, ONE_LINE, row + '\n{"text": "x", "title": "y"}\n'))
    loaded = load_task(task, "train", FolderSource(tmp_path_with(tmp_path)), max_malformed=0.5)
    assert reason in loaded.skipped_rows[0]


def test_all_problems_are_told_at_once_with_file_and_key(tmp_path: Path) -> None:
    text = """
name = "bad name"
metric = "bleu"
prompt = "{text} {nothing}"
answer = "{text!r}"
answer_pattern = "(a)(b)"
max_new_tokens = 0
group = ["missing"]
typo = 1
[fields]
text = "text"
idle = "idle"
[files]
train = "gone.jsonl"
[hub]
id = "owner/name"
"""
    path = described(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_own_task(path)
    told = "\n".join(caught.value.problems)
    assert all(problem.startswith(f"{path}: ") for problem in caught.value.problems)
    for wanted in (
        "name: String should match",
        "metric: Input should be 'exact_match' or 'rouge1', not 'bleu'",
        "prompt: {nothing} is not one of [fields] (text, idle)",
        "answer: {text}: a placeholder is a name in braces and nothing else",
        "answer_pattern: has 2 groups",
        "max_new_tokens: Input should be greater than or equal to 1, not 0",
        "group: {missing} is not one of [fields]",
        "typo: is not a known key",
        "fields.idle: no template uses it",
        f"files.train: {tmp_path / 'gone.jsonl'} is not there",
        "[files] and [hub]: only one may be there",
        "hub: names no split",
    ):
        assert f"{path}: {wanted}" in told
    assert len(caught.value.problems) == 12


@pytest.mark.parametrize("change", ["no fields", "files names no split", "bad pattern", "fields is text"])
def test_single_problems(change: str, tmp_path: Path) -> None:
    text = {
        "no fields": TICKETS.partition("[fields]")[0],
        "files names no split": TICKETS.replace('train = "rows.jsonl"', ""),
        "bad pattern": TICKETS.replace("(.+)", "(.+"),
        "fields is text": TICKETS.partition("[fields]")[0] + 'fields = "text"\n',
    }[change]
    expected = {
        "no fields": "fields: Field required",
        "files names no split": "files: names no split; at least one of train, validation, test",
        "bad pattern": "answer_pattern: not a regular expression",
        "fields is text": "fields: Input should be a valid dictionary",
    }[change]
    path = described(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_own_task(path)
    assert f"{path}: {expected}" in "\n".join(caught.value.problems)


@pytest.mark.parametrize("template", ["{}", "{a.b}", "{a[0]}", "{a:>3}", "{a!s}", "{0}", "{", "a}"])
def test_a_placeholder_is_a_name_and_nothing_else(template: str) -> None:
    with pytest.raises(ValueError, match=r"placeholder|encountered|expected"):
        pieces_of(template)
