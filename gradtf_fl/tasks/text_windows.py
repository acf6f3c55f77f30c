"""What is text in the rows of named data sets. `documents` cuts it into windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from gradtf_fl.tasks.paper_datasets import PAPER_TASKS
from gradtf_fl.tasks.reading import MalformedRow
from gradtf_fl.tasks.rows import Row
from gradtf_fl.tasks.text_tasks import Example, TextTask, same_text, text_field, text_list


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
