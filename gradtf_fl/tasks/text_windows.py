"""Rows of any named task, shared out among provider (public), organizations (private) and test.

Two forms. Prompt and answer: a text task as `text_tasks` reads it. Plain text (with ``window``): the documents of each
side are joined and cut into windows of so many characters; a row is an empty prompt and a window as its answer, so
the loss is on all tokens and counts per character, which is comparable between tokenizers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks.documents import TEXT_ENDINGS, cut_windows, joined_documents, read_text, split_documents
from gradtf_fl.tasks.own_tasks import load_own_task
from gradtf_fl.tasks.paper_datasets import PAPER_TASKS
from gradtf_fl.tasks.reading import MalformedRow
from gradtf_fl.tasks.row_forms import FORM_NAMES, RowReader, form_of
from gradtf_fl.tasks.rows import Row
from gradtf_fl.tasks.sources import ENDINGS, FolderSource, Split
from gradtf_fl.tasks.splits import split_public_private
from gradtf_fl.tasks.text_tasks import Example, LoadedTask, TextTask, load_task, same_text, text_field, text_list

PUBLIC_SHARE, PRIVATE_SHARE = 0.5, 0.7
"""Half of the documents are public. Without a test file, the other half is .7 private and .3 test."""


@dataclass(frozen=True)
class TaskRows:
    """One task's rows, the three parts without a document in common.

    Attributes:
        name: as it was asked for. sha256: hex, of all rows.
    """

    name: str
    public: tuple[Row, ...]
    private: tuple[Row, ...]
    test: tuple[Row, ...]
    sha256: str


@cache
def read_task_rows(name: str, data: Path, window: int | None, seed: int) -> TaskRows:
    """Rows of task ``name``, a function of files and seed alone.

    Args:
        name: a folder in ``data`` that holds a train file in a format of `reading`, a text file there
            (``text/shakespeare`` for text/shakespeare.txt or .txt.gz), or an own task's TOML file.
        window: characters of a window of plain text; None for prompts and answers.
        seed: of the split into public and private documents.

    Raises:
        ConfigError: no such task, a text file without ``window``, rows that can't be read, or too few documents.
    """
    train, test = _examples(name, data, window is not None)
    public, rest = split_public_private(train, seed, PUBLIC_SHARE)
    private, held = (rest, test) if test else split_public_private(rest, seed, PRIVATE_SHARE)
    sides = [_rows(part, window) for part in (public, private, held)]
    problems = [
        f"task {name}: its {side} part is shorter than one window of {window} characters"
        for side, rows in zip(("public", "private", "test"), sides, strict=True)
        if not rows
    ]
    if problems:
        raise ConfigError(problems)
    digest = hashlib.sha256(json.dumps([[(row.prompt, row.answer) for row in rows] for rows in sides]).encode())
    return TaskRows(name, sides[0], sides[1], sides[2], digest.hexdigest())


def _examples(name: str, data: Path, as_text: bool) -> tuple[list[Example], list[Example]]:
    """(training examples, test examples: none where there is no test file)."""
    text_files = [data / f"{name}{ending}" for ending in TEXT_ENDINGS if (data / f"{name}{ending}").is_file()]
    if text_files:
        if not as_text:
            raise ConfigError(f"task {name}: {text_files[0]} is plain text; say how long its windows are (--window N)")
        documents = split_documents(read_text(text_files[0]))
        return [Example(Row("", text), (text,), same_text(text)) for text in documents], []
    if name.endswith(".toml"):
        if as_text:
            raise ConfigError(f"task {name}: an own task is prompts and answers; it can't be read as text (--window)")
        task = load_own_task(Path(name))
        return list(load_task(task, "train").examples), list(load_task(task, "test").examples)
    folder = FolderSource(data / name)
    if not folder.folder.is_dir():
        raise ConfigError(f"task {name}: {data} holds neither a folder {name} nor {name}.txt or {name}.txt.gz")
    with_test = any((data / name / f"{split}{end}").is_file() for split in ("test", "validation") for end in ENDINGS)
    asked: tuple[Split, ...] = ("train", "test") if with_test else ("train",)
    splits = [_loaded(name, split, folder, as_text) for split in asked]
    found = [_one_a_group(loaded.examples) if as_text else list(loaded.examples) for loaded in splits]
    return found[0], found[1] if with_test else []


def _loaded(name: str, split: Split, folder: FolderSource, as_text: bool) -> LoadedTask:
    """One split of a folder. Of own rows none may be malformed, as at an organization."""
    if name in PAPER_TASKS:
        return load_task(_text_of(name, TEXT_OF[name]) if as_text else PAPER_TASKS[name], split, folder)
    first = next(iter(folder.rows(split)), None)
    if first is not None and isinstance(first.document, Mapping) and form_of(first.document):
        return load_task(_own_rows(name, as_text), split, folder, max_malformed=0)
    if not as_text:
        raise ConfigError(
            f"task {name}: not one of {', '.join(PAPER_TASKS)}, and its rows have none of the forms "
            f"{FORM_NAMES}; describe it in a TOML file, or read it as text (--window N)"
        )
    return load_task(_text_of(name, (_field("text"),)), split, folder)


def _own_rows(name: str, as_text: bool) -> TextTask:
    """Rows in a form of `row_forms`. As text, a row is its prompt and its answer, a line each."""
    reader = RowReader()

    def convert(document: Mapping[str, Any]) -> Example:
        row = reader(document)
        return Example(Row("", row.text) if as_text else row, (row.answer,), same_text(row.prompt or row.answer))

    return replace(PAPER_TASKS["gsm8k"], name=name, convert=convert, source=None)


def _rows(examples: Sequence[Example], window: int | None) -> tuple[Row, ...]:
    if window is None:
        return tuple(example.row for example in examples)
    text = joined_documents([example.row.answer for example in examples])
    return tuple(Row("", piece) for piece in cut_windows(text, window))


def _one_a_group(examples: Sequence[Example]) -> list[Example]:
    """The first example of each group: a passage or dialogue that several rows share is read once."""
    return list({example.group: example for example in reversed(examples)}.values())[::-1]


def _choices(document: Mapping[str, Any]) -> str:
    choices = document.get("choices")
    if not isinstance(choices, Mapping):
        raise MalformedRow("'choices' is not an object with 'text'")
    return ", ".join(text_list(choices, "text", "choices."))


def _field(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda document: text_field(document, name)


TEXT_OF: dict[str, tuple[Callable[[Mapping[str, Any]], str], ...]] = {
    "aqua_rat": (_field("question"), _field("rationale")),
    "gsm8k": (_field("question"), _field("answer")),
    "commonsense_qa": (_field("question"), _choices),
    "drop": (_field("passage"),),
    "samsum": (_field("dialogue"), _field("summary")),
    "dialogsum": (_field("dialogue"), _field("summary")),
}
"""What is text in a row of the paper's data sets, the first part being what rows of one group share. Other folders
have rows in a form of `row_forms`, or a field "text"."""


def _text_of(name: str, parts: Sequence[Callable[[Mapping[str, Any]], str]]) -> TextTask:
    """The task ``name`` as plain text, without the instructions that its prompts begin with."""

    def convert(document: Mapping[str, Any]) -> Example:
        texts = [part(document) for part in parts]
        whole = "\n".join(texts)
        return Example(Row("", whole), (whole,), same_text(texts[0]))

    return replace(PAPER_TASKS["gsm8k"], name=name, convert=convert, source=None)
