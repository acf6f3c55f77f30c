"""Own text tasks, described in a TOML file:

    name = "tickets"
    metric = "exact_match"                # or "rouge1"
    prompt = "Ticket: {text}\\nQueue:\\n"
    answer = "{reason}\\nQueue: {queue}"    # what a model is tuned on
    answer_pattern = 'Queue: (.+)'        # optional: group 1 is what is compared
    max_new_tokens = 64
    group = ["text"]                      # optional: rows that share it stay on one side of a split

    [fields]                              # placeholder = the row's field; dots and indices go inside: meta.tags.0
    text = "body"
    reason = "note"
    queue = "queue"

    [files]                               # JSONL or JSONL.gz, relative to this file; or [hub], or --data DIR
    train = "train.jsonl"
    test = "test.jsonl.gz"

    [hub]
    id = "owner/name"
    config = "main"                       # optional
    train = "train"
    test = "validation"

Without ``answer_pattern`` the answer is one line (newlines inside it are folded), and generation ends with the line.
With it the last match counts, and generation ends with the line that holds the first one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from gradtf_fl.config import AnswerPattern, Section, pieces_of, placeholders, read_toml, validate
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks.answers import first_line, has_first_line
from gradtf_fl.tasks.columns import rendered, value_at
from gradtf_fl.tasks.reading import MalformedRow
from gradtf_fl.tasks.rouge import scoreable
from gradtf_fl.tasks.rows import Row
from gradtf_fl.tasks.sources import SPLITS, FileSource, HubSource
from gradtf_fl.tasks.text_tasks import Example, Metric, Source, TextTask, one_line, same_text


class FilesSection(Section):
    """``[files]``: one path for each split, relative to the TOML file."""

    train: str | None = None
    validation: str | None = None
    test: str | None = None


class HubSection(FilesSection):
    """``[hub]``: a data set on the Hugging Face hub, and what it calls each split."""

    id: str = Field(min_length=1)
    config: str | None = None


class OwnTask(Section):
    """The whole file; see the module."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    metric: Metric
    prompt: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    answer_pattern: AnswerPattern = None
    max_new_tokens: int = Field(default=128, ge=1, le=100_000)
    group: tuple[str, ...] = Field(default=(), strict=False)
    fields: dict[str, str] = Field(min_length=1)
    files: FilesSection | None = None
    hub: HubSection | None = None

    @field_validator("prompt", "answer")
    @classmethod
    def _is_template(cls, text: str) -> str:
        pieces_of(text)
        return text


def load_own_task(path: Path) -> TextTask:
    """The task that ``path`` describes.

    Raises:
        ConfigError: every problem of the file, each named by file and key: unknown keys, wrong types, templates and
            patterns that do not parse, placeholders without field, files that are missing.
    """
    values = read_toml(path)
    problems = _cross_problems(path, values)
    try:
        own = validate(OwnTask, values, lambda key: f"{path}: {key}" if key else str(path))
    except ConfigError as error:
        raise ConfigError([*error.problems, *problems]) from None
    if problems:
        raise ConfigError(problems)
    pattern = re.compile(own.answer_pattern, re.MULTILINE) if own.answer_pattern else None
    return TextTask(
        name=own.name,
        metric=own.metric,
        kind="text",
        convert=_Converter(own, pattern),
        extract=extractor(own.answer_pattern),
        finished=finisher(own.answer_pattern),
        max_new_tokens=own.max_new_tokens,
        source=_source(path, own),
    )


@dataclass(frozen=True)
class _Converter:
    """Raw row to example, by the templates of ``own``."""

    own: OwnTask
    pattern: re.Pattern[str] | None

    def __call__(self, document: Mapping[str, Any]) -> Example:
        values = {name: value_at(document, path) for name, path in self.own.fields.items()}
        prompt = rendered(self.own.prompt, values)
        answer = rendered(self.own.answer, values)
        answer = (answer.strip() if self.pattern else one_line(answer)) + "\n"
        if not prompt.strip() or not answer.strip():
            raise MalformedRow("its prompt or answer comes out empty")
        reference = extractor(self.own.answer_pattern)(answer)
        if reference is None:
            raise MalformedRow("answer_pattern finds nothing in its answer")
        if self.own.metric == "rouge1" and not scoreable(reference):
            raise MalformedRow("its answer has no word that ROUGE reads (letters a to z, digits)")
        group = same_text("\n".join(values[name] for name in self.own.group) if self.own.group else prompt)
        return Example(Row(prompt, answer), (reference,), group)


def _cross_problems(path: Path, values: Mapping[str, Any]) -> list[str]:
    """Problems between keys, as far as the keys are of the right type."""
    fields = values.get("fields")
    known = list(fields) if isinstance(fields, dict) else []
    problems = []
    used: list[str] = []
    for key in ("prompt", "answer", "group"):
        names = _names_in(values.get(key))
        used += names
        unknown = [name for name in names if name not in known]
        problems += [
            f"{path}: {key}: {{{name}}} is not one of [fields] ({', '.join(known) or 'none'})" for name in unknown
        ]
    problems += [f"{path}: fields.{name}: no template uses it" for name in known if name not in used]
    if "files" in values and "hub" in values:
        problems.append(f"{path}: [files] and [hub]: only one may be there")
    for key in ("files", "hub"):
        table = values.get(key)
        if isinstance(table, dict) and not any(split in table for split in SPLITS):
            problems.append(f"{path}: {key}: names no split; at least one of {', '.join(SPLITS)}")
    files = values.get("files")
    for split, file in files.items() if isinstance(files, dict) else ():
        if split in SPLITS and isinstance(file, str) and not (path.parent / file).is_file():
            problems.append(f"{path}: files.{split}: {path.parent / file} is not there")
    return problems


def _names_in(value: object) -> list[str]:
    if isinstance(value, list):
        return [item for item in value if isinstance(item, str)]
    try:
        return placeholders(value) if isinstance(value, str) else []
    except ValueError:  # told by the schema
        return []


def extractor(answer_pattern: str | None) -> Callable[[str], str | None]:
    """What finds the answer in a generated text: the last match of the pattern's group, or the first line."""
    if answer_pattern is None:
        return first_line
    pattern = re.compile(answer_pattern, re.MULTILINE)

    def extract(text: str) -> str | None:
        found = [match.strip() for match in pattern.findall(text)]
        return (found[-1] or None) if found else None

    return extract


def finisher(answer_pattern: str | None) -> Callable[[str], bool]:
    """What shows that a generated text holds the whole answer: a whole line that matches, or a whole first line."""
    if answer_pattern is None:
        return has_first_line
    pattern = re.compile(answer_pattern, re.MULTILINE)

    def finished(text: str) -> bool:
        # Whole lines only: a line that is still being written may yet change what matches
        found = pattern.search(text[: text.rfind("\n") + 1])
        return found is not None and bool(found[1].strip())

    return finished


def _source(path: Path, own: OwnTask) -> Source | None:
    section: FilesSection | HubSection | None = own.files or own.hub
    if section is None:
        return None
    named = [(split, getattr(section, split)) for split in SPLITS]
    given = [(split, name) for split, name in named if name is not None]
    if isinstance(section, HubSection):
        return HubSource(section.id, section.config, tuple(given))
    return FileSource(tuple((split, path.parent / name) for split, name in given))
