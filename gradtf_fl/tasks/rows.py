"""Rows of a task as text and as tokens. `row_forms` reads them, `encoding` makes tokens of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gradtf_fl.errors import ConfigError

if TYPE_CHECKING:
    import torch

IGNORED = -100  # label of a token without loss


class Turn(NamedTuple):
    """One turn of a conversation.

    Attributes:
        role: system, user or assistant.
        content: what is said.
    """

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """One example: the model reads ``prompt`` and should continue with ``answer``.

    Attributes:
        prompt: what the model reads.
        answer: what it should continue with.
        turns: of a row of ``messages``, the whole conversation up to its last assistant turn. Every assistant turn is
            trained, through the tokenizer's chat template. ``answer`` is the last one, ``prompt`` the text before it.
        person: whose row it is, where rows are told apart by that (`persons`); two rows with one text are equal all the
            same.

    >>> from gradtf_fl import Row
    >>> Row("The capital of France is", " Paris").answer
    ' Paris'
    """

    prompt: str
    answer: str
    turns: tuple[Turn, ...] = ()
    person: str | None = field(default=None, compare=False)

    @classmethod
    def of_turns(cls, turns: Sequence[Turn]) -> Row:
        """The row of a conversation that ends with an assistant turn."""
        return cls(joined([turn.content for turn in turns[:-1]]), turns[-1].content, tuple(turns))

    @property
    def text(self) -> str:
        """Prompt and answer as plain text, a line end between them."""
        return joined([self.prompt.removesuffix("\n"), self.answer]).removesuffix("\n")

    def answered(self, answer: str) -> Row:
        """The same question with another (last) answer."""
        turns = (*self.turns[:-1], Turn("assistant", answer)) if self.turns else ()
        return replace(self, answer=answer, turns=turns)


def joined(texts: Sequence[str]) -> str:
    """Texts that are not empty, a line end after each."""
    return "".join(text + "\n" for text in texts if text)


@dataclass(frozen=True)
class TokenRows:
    """Encoded rows: int64 tensors [N, T], right-padded; ``labels`` is -100 on prompt and padding.

    >>> from gradtf_fl import Row, encode_rows, load_model
    >>> rows = encode_rows([Row("[_][_][_]37?58=", "13"), Row("[_][_][_]11?22=", "33")], load_model("embedded:tiny")[1])
    >>> len(rows), len(rows.take([1]))
    (2, 1)
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])

    def take(self, index: Any) -> TokenRows:
        """The rows at ``index`` (slice, list or tensor)."""
        return TokenRows(self.input_ids[index], self.attention_mask[index], self.labels[index])

    def to(self, device: torch.device) -> TokenRows:
        """The same rows on another device."""
        return TokenRows(self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device))

    def answer_labels(self) -> torch.Tensor:
        """Labels [N, t] of the next token, from the first position on at which any row has one."""
        labels = self.labels[:, 1:]
        first = int((labels != IGNORED).any(0).nonzero()[0])
        return labels[:, first:]

    def last_answers(self) -> TokenRows:
        """The same rows with labels on the last answer only: what a conversation is scored by."""
        labelled = self.labels != IGNORED
        begins = labelled.clone()
        begins[:, 1:] &= ~labelled[:, :-1]
        which = begins.cumsum(1)
        last = labelled & (which == which[:, -1:])
        return TokenRows(self.input_ids, self.attention_mask, self.labels.masked_fill(~last, IGNORED))


@dataclass(frozen=True)
class RowCounts:
    """What a tokenizer makes of rows.

    Attributes:
        rows: all of them.
        cut: longer than the most tokens that a row may have.
        cut_answers: of those, rows whose answer loses its end.
        empty: without a token in the prompt.
        unscorable: without a token that is scored; such rows are refused.
        duplicate: the same prompt and answer as an earlier row.
    """

    rows: int
    cut: int
    cut_answers: int
    empty: int
    unscorable: int
    duplicate: int


def refuse_unscored(rows: TokenRows, where: str) -> None:
    """ConfigError, with their number and the first one, when rows have no token that is scored.

    Training on them would learn nothing for its epsilon, and any model would score 1.0 on them.

    Args:
        where: begins the message: the file, or what else the rows are.
    """
    lost = (~(rows.labels[:, 1:] != IGNORED).any(1)).nonzero().flatten().tolist()
    if lost:
        raise ConfigError(
            f"{where}: {len(lost)} of {len(rows)} rows have no token that is scored, for example row {lost[0] + 1}: "
            "the tokenizer has no token for its answer, or its prompt is empty and its answer one token"
        )


def write_rows(path: str | Path, rows: Sequence[Row], person: str | None = None) -> None:
    """Write rows as JSONL that `read_rows` reads back equal: conversations as ``messages``.

    Args:
        person: the field for whose each row is; None writes none.

    Raises:
        ConfigError: some rows are conversations and others are not; a file has one form. ``person`` is a field of rows.
    """
    if person in ("prompt", "answer", "messages"):
        raise ConfigError(
            f"{path}: {person!r} is a field of the rows; the one that says whose they are needs a field of its own"
        )
    if len({bool(row.turns) for row in rows}) > 1:
        raise ConfigError(f"{path}: conversations and rows of prompt and answer can't be in one file")
    text = "".join(json.dumps(_document(row) | ({} if person is None else {person: row.person})) + "\n" for row in rows)
    Path(path).write_text(text, encoding="utf8")


def _document(row: Row) -> dict[str, Any]:
    if row.turns:
        return {"messages": [turn._asdict() for turn in row.turns]}
    return {"prompt": row.prompt, "answer": row.answer}
