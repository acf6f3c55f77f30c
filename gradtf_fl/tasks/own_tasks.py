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
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from gradtf_fl.config import Section, TaskSection, read_toml, validate
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks.answers import first_line, has_first_line
from gradtf_fl.tasks.reading import MalformedRow
from gradtf_fl.tasks.rouge import scoreable
from gradtf_fl.tasks.rows import Row
from gradtf_fl.tasks.sources import SPLITS, FileSource, HubSource
from gradtf_fl.tasks.text_tasks import Example, Metric, Source, TextTask, one_line, same_text

Piece = tuple[str, str | None]  # literal text, then the placeholder after it


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
    answer_pattern: str | None = None
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

    @field_validator("answer_pattern")
    @classmethod
    def _has_one_group(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        if groups != 1:
            raise ValueError(f"has {groups} groups; one (...) must mark the answer")
        return pattern


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
    return replace(_task(own), source=_source(path, own))


def column_task(name: str, settings: TaskSection) -> TextTask:
    """The task that the templates of ``[task]`` describe: a field's name, or its path, stands in braces.

    Raises:
        ConfigError: a template does not parse, or its answer names no field.
    """
    templates = {"prompt": settings.prompt or "", "answer": settings.answer or ""}
    problems, fields = [], {}
    for key, template in templates.items():
        try:
            found = field_paths(template)
        except ValueError as error:
            problems.append(f"task {name}: {key}: {error}")
            continue
        if key == "answer" and not found:
            problems.append(f"task {name}: answer names no field: {{field}} stands for its value")
        for place in found:
            fields[_identifier(place)] = place
            templates[key] = templates[key].replace(f"{{{place}}}", f"{{{_identifier(place)}}}")
    if problems:
        raise ConfigError(problems)
    fields |= {_identifier(place): place for place in settings.group}
    own = OwnTask(
        name=re.sub(r"[^A-Za-z0-9._-]", "-", name) or "task",
        metric="rouge1" if settings.metric == "rouge1" else "exact_match",
        prompt=templates["prompt"],
        answer=templates["answer"],
        answer_pattern=settings.answer_pattern,
        max_new_tokens=settings.max_new_tokens,
        group=tuple(map(_identifier, settings.group)),
        fields=fields,
    )
    return replace(_task(own), name=name)


def field_paths(template: str) -> list[str]:
    """The fields of a template whose placeholders may be paths (``meta.tags.0``); ValueError where it is none."""
    parsed = string.Formatter().parse(template)
    names = []
    for _, name, spec, conversion in parsed:
        if name is not None:
            if not name or spec or conversion or not all(part for part in name.split(".")):
                raise ValueError(f"{{{name}}}: a placeholder is a field's name or path in braces and nothing else")
            names.append(name)
    return list(dict.fromkeys(names))


def _identifier(place: str) -> str:
    return "field_" + re.sub(r"\W", "_", place)


def _task(own: OwnTask) -> TextTask:
    pattern = re.compile(own.answer_pattern, re.MULTILINE) if own.answer_pattern else None
    return TextTask(
        name=own.name,
        metric=own.metric,
        kind="text",
        convert=_Converter(own, pattern),
        extract=extractor(own.answer_pattern),
        finished=finisher(own.answer_pattern),
        max_new_tokens=own.max_new_tokens,
    )


def pieces_of(template: str) -> list[Piece]:
    """A template as (literal text, placeholder or None) pairs; ``{{`` and ``}}`` stand for braces.

    Raises:
        ValueError: not a template, or a placeholder is more than a name.
    """
    pieces: list[Piece] = []
    for literal, name, spec, conversion in string.Formatter().parse(template):
        if name is not None and (not name.isidentifier() or spec or conversion):
            raise ValueError(f"{{{name}}}: a placeholder is a name in braces and nothing else")
        pieces.append((literal, name))
    return pieces


def placeholders(template: str) -> list[str]:
    """The placeholders of a template, in order, each once."""
    return list(dict.fromkeys(name for _, name in pieces_of(template) if name is not None))


@dataclass(frozen=True)
class _Converter:
    """Raw row to example, by the templates of ``own``."""

    own: OwnTask
    pattern: re.Pattern[str] | None

    def __call__(self, document: Mapping[str, Any]) -> Example:
        values = {name: _value(document, path) for name, path in self.own.fields.items()}
        prompt = _rendered(self.own.prompt, values)
        answer = _rendered(self.own.answer, values)
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


def _value(document: Mapping[str, Any], path: str) -> str:
    value: Any = document
    for part in path.split("."):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, TypeError, ValueError):
            raise MalformedRow(f"has no {path!r}") from None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise MalformedRow(f"{path!r} is neither text nor a number")
    return str(value)


def _rendered(template: str, values: Mapping[str, str]) -> str:
    return "".join(literal + (values[name] if name is not None else "") for literal, name in pieces_of(template))


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
    """What tells that a generated text holds the whole answer: a whole line that matches, or a whole first line."""
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
