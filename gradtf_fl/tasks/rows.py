"""Rows of a task: prompt and answer as text, encoded for a model, scored by exact match. `row_forms` reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradtf_fl.errors import ConfigError

if TYPE_CHECKING:
    import torch

IGNORED = -100  # label of a token without loss
MAX_TOKENS = 512
"""Of a row; a longer one is cut."""


@dataclass(frozen=True)
class Row:
    """One example: the model reads ``prompt`` and should continue with ``answer``.

    >>> from gradtf_fl import Row
    >>> Row("The capital of France is", " Paris").answer
    ' Paris'
    """

    prompt: str
    answer: str


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


@dataclass(frozen=True)
class RowCounts:
    """What a tokenizer makes of rows.

    Attributes:
        rows: all of them.
        cut: longer than the most tokens that a row may have.
        empty: without a token in the prompt.
        unscorable: without a token that is scored; such rows are refused.
        duplicate: the same prompt and answer as an earlier row.
    """

    rows: int
    cut: int
    empty: int
    unscorable: int
    duplicate: int


def count_encoded(rows: Sequence[Row], tokenizer: Any, max_tokens: int = MAX_TOKENS) -> RowCounts:
    """How many rows are cut, empty, unscorable or there already, as `encode_rows` would have them."""
    pairs = _token_ids(rows, tokenizer)
    return RowCounts(
        rows=len(rows),
        cut=sum(len(prompt) + len(answer) > max_tokens for prompt, answer in pairs),
        empty=sum(not prompt for prompt, _ in pairs),
        unscorable=sum(not _is_scored(prompt, answer) for prompt, answer in pairs),
        duplicate=len(rows) - len(set(rows)),
    )


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


def write_rows(path: str | Path, rows: Sequence[Row]) -> None:
    """Write rows as JSONL."""
    text = "".join(json.dumps({"prompt": row.prompt, "answer": row.answer}) + "\n" for row in rows)
    Path(path).write_text(text, encoding="utf8")


def encode_rows(rows: Sequence[Row], tokenizer: Any, max_tokens: int = MAX_TOKENS) -> TokenRows:
    """Prompt and answer tokens of each row [N, T], right padding; loss on the answer only.

    Prompt and answer are tokenised apart, so that the border between them is exact. A row longer than
    ``max_tokens`` loses the START of its prompt, never its answer.

    >>> from gradtf_fl import Row, encode_rows, load_model
    >>> rows = encode_rows([Row("[_][_][_]37?58=", "13")], load_model("embedded:tiny")[1])
    >>> int((rows.labels != -100).sum())  # tokens of the answer
    2
    """
    import torch

    found = _token_ids(rows, tokenizer)
    pairs = [(p[-max(1, max_tokens - len(a)) :], a[: max_tokens - 1]) for p, a in found]
    width = max(len(p) + len(a) for p, a in pairs)
    ids = torch.full((len(pairs), width), int(tokenizer.pad_token_id))
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for i, (prompt, answer) in enumerate(pairs):
        end = len(prompt) + len(answer)
        ids[i, :end] = torch.tensor(prompt + answer)
        mask[i, :end] = 1
        labels[i, len(prompt) : end] = ids[i, len(prompt) : end]
    return TokenRows(ids, mask, labels)


def _token_ids(rows: Sequence[Row], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Tokens of each row's prompt and of its answer, all of them."""
    prompts = tokenizer([row.prompt for row in rows])["input_ids"]
    answers = tokenizer([row.answer for row in rows], add_special_tokens=False)["input_ids"]
    return list(zip(prompts, answers, strict=True))


def _is_scored(prompt: Sequence[int], answer: Sequence[int]) -> bool:
    """Whether a token of the answer has one before it, from which a model can predict it."""
    return bool(answer) and len(prompt) + len(answer) > 1


def exact_match(model: Any, rows: TokenRows, batch: int = 512) -> float:
    """Share of rows whose every answer token is the model's greedy choice, given the tokens before it.

    Equals exact match of greedy decoding: the first token that decoding gets wrong is wrong here too.

    Raises:
        ConfigError: see `refuse_unscored`.
    """
    import torch

    refuse_unscored(rows, "rows to score")

    right = 0
    training = model.training
    model.eval()
    with torch.no_grad():
        for start in range(0, len(rows), batch):
            part = rows.take(slice(start, start + batch)).to(model.device)
            logits = model(input_ids=part.input_ids, attention_mask=part.attention_mask, use_cache=False).logits
            labels = part.labels[:, 1:]
            matches = (logits[:, :-1].argmax(-1) == labels) | (labels == IGNORED)
            right += int(matches.all(1).sum())
    model.train(training)
    return right / len(rows)
