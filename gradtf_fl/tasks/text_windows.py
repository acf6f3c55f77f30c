"""Plain text as rows: documents, and windows of so many characters."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks.paper_datasets import PAPER_TASKS
from gradtf_fl.tasks.reading import MalformedRow
from gradtf_fl.tasks.rows import Row
from gradtf_fl.tasks.text_tasks import Example, TextTask, same_text, text_field, text_list

STORY_END = "<|endoftext|>"
"""Between the documents of a text file; a file without it is cut at blank lines."""
PART_CHARACTERS = 2000
"""Such a part is at least this long, so that neighbouring windows mostly stay on one side of a split."""
TEXT_ENDINGS = (".txt", ".txt.gz")


def cut_windows(text: str, window: int) -> list[str]:
    """``text`` in consecutive pieces of exactly ``window`` characters; what is left at its end is dropped."""
    return [text[start : start + window] for start in range(0, len(text) - window + 1, window)]


def split_documents(text: str) -> list[str]:
    """A text file's documents: between `STORY_END` marks, or parts of `PART_CHARACTERS` that end at a blank line."""
    if STORY_END in text:
        return [part.strip() for part in text.split(STORY_END) if part.strip()]
    documents, part = [], ""
    for paragraph in text.split("\n\n"):
        part += paragraph + "\n\n"
        if len(part) >= PART_CHARACTERS:
            documents.append(part.strip())
            part = ""
    return documents + ([part.strip()] if part.strip() else [])


def read_text(path: Path) -> str:
    """A text file's whole text; ConfigError when it is not UTF-8 or can't be read."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ConfigError(f"data {path}: can't be read as UTF-8 text ({error})") from error


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


def text_task(name: str, shape: str | None) -> TextTask:
    """Rows as plain text, without the instructions that prompts begin with.

    Args:
        name: of the task.
        shape: which of the paper's data sets the rows look like; None for rows with a field "text".
    """
    parts = TEXT_OF[shape] if shape is not None else (_field("text"),)

    def convert(document: Mapping[str, Any]) -> Example:
        texts = [part(document) for part in parts]
        whole = "\n".join(texts)
        return Example(Row("", whole), (whole,), same_text(texts[0]))

    return replace(PAPER_TASKS["gsm8k"], name=name, convert=convert, source=None)
