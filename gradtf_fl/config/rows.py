"""How a file's rows become tokens: the same words in ``federation.toml`` and ``organization.toml``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from gradtf_fl.config.base import Section
from gradtf_fl.config.templates import placeholders

Format = Literal["auto", "prompt-answer", "instruction", "messages", "columns", "text"]
MAX_TOKENS = 512
WINDOW = 128


class RowFormat(Section):
    """How rows are read and encoded. All who take part in a federation must have it alike.

    Attributes:
        format: what the fields of a row are: auto (told by the first row), prompt-answer, instruction, messages
            (through the tokenizer's chat template), columns (by the templates below) or text (windows of plain text).
        max_tokens: tokens of a row, prompt and answer; a longer one loses the start of its prompt.
        end: whether the answer's end is trained: an end-of-turn or end-of-sequence token; false for answers of one
            length. A window of text has no end.
        window: characters of a window of text.
        prompt: of columns, the template of a prompt: fields stand in braces, nested ones by dots: {meta.title}.
        answer: of columns, the template of an answer.
        max_cut: share of rows that may be longer than max_tokens; above it the file is refused.
    """

    format: Format = "auto"
    max_tokens: Annotated[int, Field(ge=2, le=10_000_000)] = MAX_TOKENS
    end: bool = True
    window: Annotated[int, Field(ge=1, le=10_000_000)] = WINDOW
    prompt: str | None = None
    answer: str | None = None
    max_cut: Annotated[float, Field(ge=0, le=1)] = 0.25

    def without_templates(self) -> Self:
        """The same for rows that have a form of their own."""
        return self.model_copy(update={"prompt": None, "answer": None})

    @field_validator("prompt", "answer")
    @classmethod
    def _is_template(cls, text: str | None) -> str | None:
        if text is not None and not placeholders(text, paths=True):
            raise ValueError("a template without a field in braces: every row would be the same")
        return text

    @model_validator(mode="after")
    def _templates_fit(self) -> Self:
        given = [name for name in ("prompt", "answer") if getattr(self, name) is not None]
        if self.format == "columns" or (self.format == "auto" and given):
            missing = [name for name in ("prompt", "answer") if name not in given]
            if missing:
                raise ValueError(f"columns need two templates; {' and '.join(missing)} is missing")
        elif given:
            raise ValueError(f"{' and '.join(given)}: only for format = columns, not for {self.format}")
        return self
