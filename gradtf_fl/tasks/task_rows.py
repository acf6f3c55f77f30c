"""Rows of any source, shared out among provider (public), organizations (private) and test.

A source is a folder with a train file and perhaps a test file in a format of `reading`, one file, a plain text file, an
own task's TOML file, one of the paper's data sets, or a data set on the hub. Two forms come out. Prompt and answer: a
text task as `text_tasks` reads it. Plain text (format ``text``): the documents of each side are joined and cut into
windows of this many characters; a row is an empty prompt and a window as its answer, so the loss is on all tokens and
counts per character, which is comparable between tokenizers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from gradtf_fl.config import TaskSection
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks.answers import has_first_line
from gradtf_fl.tasks.columns import value_at
from gradtf_fl.tasks.documents import TEXT_ENDINGS, cut_windows, joined_documents, read_text, split_documents
from gradtf_fl.tasks.own_tasks import extractor, finisher, load_own_task
from gradtf_fl.tasks.paper_datasets import PAPER_TASKS
from gradtf_fl.tasks.persons import of_each, person_of
from gradtf_fl.tasks.reading import ENDINGS, MalformedRow, RawRow, raw_rows
from gradtf_fl.tasks.row_forms import FORM_NAMES, RowReader, form_of
from gradtf_fl.tasks.rows import Row
from gradtf_fl.tasks.sources import FileSource, FolderSource, HubSource, Split
from gradtf_fl.tasks.splits import split_public_private
from gradtf_fl.tasks.text_tasks import Example, Source, TextTask, load_task, same_text
from gradtf_fl.tasks.text_windows import text_task

HELD_OUT = 0.3
"""Without a test file, this share of the rows that are not public is put aside for tests, unless told otherwise."""
JUDGED = 0.1
"""Share of the public rows that no shadow set has."""
_SHAPES = {
    "dialogsum": ("dialogue", "summary"),
    "aqua_rat": ("question", "options", "rationale", "correct"),
    "commonsense_qa": ("question", "choices", "answerKey"),
    "drop": ("passage", "question", "answers_spans"),
    "gsm8k": ("question", "answer"),
}
"""Fields by which the paper's data sets are known under any name."""


@dataclass(frozen=True)
class TaskRows:
    """One source's rows, the three parts without a document in common.

    Attributes:
        name: of the source, without folder and ending.
        judged: public rows, disjoint from ``public``, that the provider judges its work on.
        task: how answers are read out of generated texts; None for windows of plain text.
        sha256: hex, of all rows.
    """

    name: str
    public: tuple[Example, ...]
    judged: tuple[Example, ...]
    private: tuple[Example, ...]
    test: tuple[Example, ...]
    task: TextTask | None
    sha256: str


def source_name(source: str) -> str:
    """What a source is called in tables: its file or folder without ending."""
    name = source.rstrip("/").rpartition("/")[2]
    for ending in (*ENDINGS, *TEXT_ENDINGS, ".toml"):
        if name.endswith(ending) and name != ending:
            return name.removesuffix(ending)
    return name


def read_task_rows(
    source: str, task: TaskSection, by: str | None = None, held_out: float = HELD_OUT, person: str | None = None
) -> TaskRows:
    """Rows of ``source``, a function of files and settings alone; a process reads them once.

    Args:
        source: one of ``task.source``.
        task: how they are read and what share is public.
        by: field whose value is a row's label (see `Example`); None: the source's name.
        held_out: see `HELD_OUT`.
        person: field that says whose a row is. Which rows are public does not hang on it (``task.group`` may).

    Raises:
        ConfigError: no such source, rows that can't be read, or too few documents.
    """
    return _read_once(source, task, by, held_out, person)


@cache
def _read_once(source: str, task: TaskSection, by: str | None, held_out: float, person: str | None) -> TaskRows:
    name, seed = source_name(source), task.split_seed
    found = _Reader(source, name, task, by, person)
    train, test = found.examples("train"), found.examples("test") if found.has_test else []
    public, rest = split_public_private(train, seed, task.public)
    judged: list[Example] = []
    if len({example.group for example in public}) > 1:
        public, judged = split_public_private(public, seed, 1 - JUDGED)
    private, held = (rest, test) if test else split_public_private(rest, seed, 1 - held_out)
    window = task.window if found.as_text else None
    sides = [_windows(part, window, name) for part in (public, judged, private, held)]
    problems = [
        f"task {name}: its {side} part is shorter than one window of {window} characters"
        for side, rows in zip(("public", "judged", "private", "test"), sides, strict=True)
        if not rows and side != "judged"
    ]
    if problems:
        raise ConfigError(problems)
    content = [[(one.row.prompt, one.row.answer) for one in rows] for rows in sides]
    digest = hashlib.sha256(json.dumps(content).encode())
    return TaskRows(name, sides[0], sides[1], sides[2], sides[3], found.task, digest.hexdigest())


class _Reader:
    """Finds out what a source is, and reads its splits."""

    def __init__(self, source: str, name: str, settings: TaskSection, by: str | None, person: str | None) -> None:
        self.name, self.by, self.person, self.settings = name, by, person, settings
        path = Path(source).expanduser()
        documents = [one for one in (path, *(Path(source + end) for end in TEXT_ENDINGS)) if _is_text(one)]
        self.task: TextTask | None = None
        self._text: Path | None = None
        self._source: Source | None = None
        self.has_test = False
        self.max_malformed = 0.01
        if documents:
            if settings.format not in ("auto", "text"):
                raise ConfigError(f"task {name}: {documents[0]} is plain text, which has no rows of {settings.format}")
            if by is not None:
                raise ConfigError(f"task {name}: {documents[0]} is plain text, which has no field {by!r}")
            if person is not None:
                raise ConfigError(f"task {name}: {documents[0]} is plain text, which has no {person!r} (privacy.unit)")
            self._text, self.as_text = documents[0], True
            return
        if source.endswith(".toml"):
            if settings.format == "text":
                raise ConfigError(f"task {name}: an own task is prompts and answers; it can't be read as text")
            self.task, self.as_text = load_own_task(path), False
            self._source, self.has_test = self.task.source, self.task.source is not None
            return
        self._source = self._rows_of(path, source)
        kind = self._kind(self._source)
        self.as_text = settings.format == "text"
        self.task = None if self.as_text else kind
        self._convert = kind

    def examples(self, split: Split) -> list[Example]:
        """Examples of a split; documents where they become windows."""
        if self._text is not None:
            documents = split_documents(read_text(self._text))
            return [Example(Row("", text), (text,), same_text(text), self.name) for text in documents]
        task = self.task or self._convert
        labelled = replace(task, convert=_Labelled(task, self.by, self.name, self.person), source=self._source)
        bad = self.max_malformed if self.person is None else 0.0  # a row that is nobody's is not skipped
        loaded = list(load_task(labelled, split, max_malformed=bad).examples)
        return _one_a_group(loaded, bool(self.settings.group)) if self.as_text else loaded

    def _rows_of(self, path: Path, source: str) -> Source:
        if (path / "state.json").is_file() or path.is_file():
            return FileSource((("train", path),))
        if path.is_dir():
            names = ("test", "validation")
            self.has_test = any((path / f"{split}{end}").is_file() for split in names for end in ENDINGS)
            return FolderSource(path)
        if source in PAPER_TASKS and (hub := PAPER_TASKS[source].source) is not None:
            self.has_test = True
            return hub
        if source.count("/") == 1 and not source.startswith((".", "~", "/")):
            return HubSource(source, None, (("train", "train"),))
        raise ConfigError(
            f"task {self.name}: {source}: no such file or folder, and it is none of "
            f"{', '.join(PAPER_TASKS)} nor OWNER/NAME on the hub"
        )

    def _kind(self, source: Source) -> TextTask:
        """How a raw row becomes an example."""
        settings = self.settings
        if settings.format == "columns":
            self.max_malformed = 0.0
            return own_rows(self.name, settings)
        if self.name in PAPER_TASKS and settings.format in ("auto", "text"):
            return self._paper(self.name)
        first: RawRow | None = next(iter(source.rows("train")), None)
        if first is not None and first.problem:
            raise ConfigError(f"{first.place}: {first.problem}")
        fields = first.document if first is not None and isinstance(first.document, Mapping) else {}
        form = form_of(fields)
        if form is not None:
            self.max_malformed = 0.0  # of own rows none may be malformed, as at an organization
            return own_rows(self.name, settings)
        shape = next((one for one, names in _SHAPES.items() if all(name in fields for name in names)), None)
        if shape is not None and settings.format in ("auto", "text"):
            return self._paper(shape)
        if settings.format == "text" and "text" in fields:
            return text_task(self.name, None)
        raise ConfigError(
            f"task {self.name}: its rows ({', '.join(fields) or 'none'}) have none of the forms {FORM_NAMES}; say "
            "which fields are what (format = 'columns' with the templates prompt and answer), or read them as text "
            "(format = 'text', for which a field \"text\" is required)"
        )

    def _paper(self, shape: str) -> TextTask:
        if self.settings.format == "text":
            return text_task(self.name, shape)
        return _scored(replace(PAPER_TASKS[shape], name=self.name), self.settings)


@dataclass(frozen=True)
class _Labelled:
    """A task's conversion, with the label alongside it."""

    task: TextTask
    by: str | None
    name: str
    person: str | None

    def __call__(self, document: Mapping[str, Any]) -> Example:
        label = self.name
        if self.by is not None:
            if document.get(self.by) is None:
                raise MalformedRow(f"has no {self.by!r}, which is to tell labels apart (by)")
            label = str(document[self.by])
        example = replace(self.task.convert(document), label=label)
        if self.person is None:
            return example
        return replace(example, row=replace(example.row, person=person_of(document, self.person)))


def own_rows(name: str, settings: TaskSection) -> TextTask:
    """Rows in a form of `row_forms`. As text, a row is its prompt and its answer, a line each."""
    as_text, group = settings.format == "text", settings.group
    reader = RowReader(settings.model_copy(update={"format": "auto"}) if as_text else settings)

    def convert(document: Mapping[str, Any]) -> Example:
        row = reader(document)
        shared = "\n".join(value_at(document, field) for field in group) if group else row.prompt or row.answer
        return Example(Row("", row.text) if as_text else row, (row.answer.strip(),), same_text(shared))

    task = TextTask(name, "exact_match", "text", convert, _whole, has_first_line, settings.max_new_tokens)
    return _scored(task, settings)


def _whole(text: str) -> str | None:
    return text.strip() or None


def _never(text: str) -> bool:
    return False


def _scored(task: TextTask, settings: TaskSection) -> TextTask:
    """``task`` with the metric, the answer's pattern and the length that the settings ask for."""
    if settings.metric in ("exact_match", "rouge1"):
        task = replace(task, metric=settings.metric)  # type: ignore[arg-type]
    if settings.answer_pattern is not None:
        pattern = extractor(settings.answer_pattern)
        return replace(task, extract=pattern, finished=finisher(settings.answer_pattern))
    if task.extract is _whole and settings.end:
        return replace(task, finished=_never)  # the model says where it ends
    return task


def _is_text(path: Path) -> bool:
    return path.is_file() and path.name.endswith(TEXT_ENDINGS)


def _windows(examples: Sequence[Example], window: int | None, name: str) -> tuple[Example, ...]:
    if window is None:
        return tuple(examples)
    persons = [example.row.person for example in examples]
    own = of_each(persons) if None not in persons else [range(len(examples))]
    return tuple(
        Example(Row("", piece, person=persons[places[0]]), (piece,), piece, name)
        for places in own
        if places
        for piece in cut_windows(joined_documents([examples[place].row.answer for place in places]), window)
    )


def _one_a_group(examples: Sequence[Example], named: bool) -> list[Example]:
    """The first example of each group: a passage or dialogue that several rows share is read once. Of groups that were
    ``named`` (``task.group``) each text is read once."""

    def key(example: Example) -> tuple[str, str]:
        return example.group, same_text(example.row.answer) if named else ""

    return list({key(example): example for example in reversed(examples)}.values())[::-1]


def first_form(source: str) -> str:
    """The form of a source's first row, by its field ("messages", "prompt", ...); "" where it has none."""
    path = Path(source).expanduser()
    found = FolderSource(path).file("train") if path.is_dir() and not (path / "state.json").is_file() else path
    first = next(iter(raw_rows(found)), None) if found.exists() and not _is_text(found) else None
    fields = first.document if first is not None and isinstance(first.document, Mapping) else {}
    form = form_of(fields)
    return form.fields[0] if form else ""
