"""What a text task is: raw rows become prompts, answers and references, generated text becomes an answer to score.

Six tasks of the paper are in `paper_datasets`, own ones are described in TOML (`own_tasks`). `load_task` reads either
and reports what it skipped; `scoring` generates and scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks.answers import AnswerKind
from gradtf_fl.tasks.reading import MOST_NAMED, MalformedRow, named
from gradtf_fl.tasks.rows import Row
from gradtf_fl.tasks.sources import FolderSource, Split

Metric = Literal["exact_match", "rouge1"]

MAX_MALFORMED = 0.01  # share of rows that may be skipped


@dataclass(frozen=True)
class Example:
    """One example of a text task.

    Attributes:
        row: what a model is tuned on: prompt, and answer with the reasoning before the final answer. The answer ends
            with a newline, so that a tuned model knows how to stop.
        references: what counts as right, at least one: final answers, or summaries.
        group: examples with one group share text (a passage, a dialogue, a question) and stay on one side of a split.
        label: what organizations differ in: see `partitions`.
    """

    row: Row
    references: tuple[str, ...]
    group: str
    label: str = ""


class Source(Protocol):
    """Where raw rows come from; see `sources`."""

    def rows(self, split: Split) -> Any:
        """An iterable of `RawRow`."""


@dataclass(frozen=True)
class TextTask:
    """How raw rows become examples, and generated text an answer.

    Attributes:
        name: as the command line has it.
        metric: ``exact_match`` of the final answer (see `answers.matches` for ``kind``), or ``rouge1``: F-measure.
        kind: what a final answer is; not used by ``rouge1``.
        convert: raw row to example; raises `MalformedRow`.
        extract: the answer in a generated text, None without one.
        finished: whether generation may stop, asked after each newline.
        max_new_tokens: where generation stops at the latest, unless told otherwise.
        source: where rows come from when no folder is given.
    """

    name: str
    metric: Metric
    kind: AnswerKind
    convert: Callable[[Mapping[str, Any]], Example]
    extract: Callable[[str], str | None]
    finished: Callable[[str], bool]
    max_new_tokens: int
    source: Source | None = None


@dataclass(frozen=True)
class LoadedTask:
    """A task's examples, and what was left out.

    Attributes:
        skipped: number of malformed rows.
        skipped_rows: the first ten of them, each ``PLACE: REASON``.
    """

    task: TextTask
    split: Split
    examples: tuple[Example, ...]
    skipped: int
    skipped_rows: tuple[str, ...]

    @property
    def rows(self) -> list[Row]:
        """Prompt and answer of each example, for tuning."""
        return [example.row for example in self.examples]


def load_task(
    task: TextTask,
    split: Split,
    data: FolderSource | None = None,
    max_malformed: float = MAX_MALFORMED,
) -> LoadedTask:
    """Examples of ``split``, from ``data`` or else from the task's own source.

    Args:
        max_malformed: share of malformed rows that are skipped; above it the whole source is refused.

    Raises:
        ConfigError: nothing to read, no good row, or too many malformed ones (the first ten are named).
    """
    source: Source | None = data or task.source
    if source is None:
        raise ConfigError(f"task {task.name}: it names no files and no data set on the hub; give a folder (--data DIR)")
    examples: list[Example] = []
    problems: list[str] = []
    for raw in source.rows(split):
        try:
            examples.append(task.convert(raw.fields()))
        except MalformedRow as reason:
            problems.append(f"{raw.place}: {reason}")
    total = len(examples) + len(problems)
    if not total:
        raise ConfigError(f"task {task.name}: its {split} split has no rows")
    if not examples or len(problems) > max_malformed * total:
        allowed = f"task {task.name}: {len(problems)} of {total} rows are malformed, at most {max_malformed:.2%} may be"
        raise ConfigError([*named(problems), allowed])
    return LoadedTask(task, split, tuple(examples), len(problems), tuple(problems[:MOST_NAMED]))


def text_field(document: Mapping[str, Any], name: str) -> str:
    """Field ``name``, stripped; MalformedRow where it is missing, not text, or blank."""
    if name not in document:
        raise MalformedRow(f"has no {name!r}")
    value = document[name]
    if not isinstance(value, str):
        raise MalformedRow(f"{name!r} is not text")
    if not value.strip():
        raise MalformedRow(f"{name!r} is empty")
    return value.strip()


def text_list(document: Mapping[str, Any], name: str, where: str = "") -> list[str]:
    """Field ``name`` as a list of texts; MalformedRow where it is missing or anything else."""
    shown = where + name
    if name not in document:
        raise MalformedRow(f"has no {shown!r}")
    value = document[name]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise MalformedRow(f"{shown!r} is not a list of texts")
    return value


def same_text(text: str) -> str:
    """``text`` as a group: case and spacing do not tell two passages apart."""
    return " ".join(text.casefold().split())


def one_line(text: str) -> str:
    """``text`` with every run of blanks and newlines folded to one space."""
    return " ".join(text.split())
