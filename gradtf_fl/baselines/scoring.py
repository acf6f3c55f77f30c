"""Scores of anything that gives logits for rows: exact match, loss per token and loss per character.

All K adapters of a stack are scored in one pass: rows are ordered adapter by adapter, as in training.stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gradtf_fl.config import MAX_TOKENS
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import IGNORED, LOGIT_BYTES, Row, TokenRows, encode_rows

AnswerLogits = Callable[[TokenRows], Tensor]
"""TokenRows of K * R rows -> logits [K * R, t, V] for the positions of `TokenRows.answer_labels`."""


@dataclass(frozen=True)
class Scores:
    """Scores of K organizations, one number each.

    Attributes:
        exact_match: share of rows whose every answer token is the greedy choice, given the tokens before it.
        loss_per_token: nats, all answer tokens of an organization pooled.
        loss_per_character: nats per character of the answer text; comparable between tokenizers.
    """

    exact_match: tuple[float, ...]
    loss_per_token: tuple[float, ...]
    loss_per_character: tuple[float, ...]


def equal_counts(sets: Sequence[Sequence[Any]], what: str) -> int:
    """How many entries each organization has; ConfigError when there are none or counts differ."""
    counts = sorted({len(part) for part in sets})
    if len(counts) != 1 or counts[0] == 0:
        raise ConfigError(f"{what}: every organization needs equally many and at least one, found {counts}")
    return counts[0]


def in_parts(rows: TokenRows, adapters: int, batch: int) -> Iterator[TokenRows]:
    """The same slice of every adapter's rows, at most about ``batch`` rows at a time."""
    per_set = len(rows) // adapters
    numbers = torch.arange(len(rows)).reshape(adapters, per_set)
    size = max(1, batch // adapters)
    for start in range(0, per_set, size):
        yield rows.take(numbers[:, start : start + size].reshape(-1))


@torch.no_grad()
def score_rows(
    logits_of: AnswerLogits,
    test: Sequence[Sequence[Row]],
    tokenizer: Any,
    max_tokens: int = MAX_TOKENS,
    batch: int = 512,
    end: bool = False,
) -> Scores:
    """Score K organizations, each on its own rows ``test[k]`` (equally many).

    Args:
        logits_of: gives logits for rows ordered adapter by adapter.
        tokenizer: the one that ``logits_of`` reads.
        max_tokens: see `tasks.encode_rows`; an answer cut by it still counts all its characters.
        batch: rows of all organizations in one forward pass, fewer where their logits would be large.
        end: see `tasks.encode_rows`.

    Raises ConfigError when organizations have different numbers of rows.
    """
    adapters, per_set = len(test), equal_counts(test, "test rows")
    rows = encode_rows(list(chain.from_iterable(test)), tokenizer, max_tokens, end=end).last_answers()
    batch = max(adapters, min(batch, LOGIT_BYTES // (4 * rows.answer_labels().shape[1] * len(tokenizer))))
    characters = torch.tensor([len(row.answer) for row in chain.from_iterable(test)]).reshape(adapters, per_set).sum(1)
    right, nats, tokens = torch.zeros(adapters), torch.zeros(adapters), torch.zeros(adapters)
    for part in in_parts(rows, adapters, batch):
        labels, logits = part.answer_labels(), logits_of(part).float()
        flat = logits.flatten(0, 1), labels.flatten()  # transposed, the logits would be copied
        losses = functional.cross_entropy(*flat, ignore_index=IGNORED, reduction="none").view(labels.shape)
        matches = ((logits.argmax(-1) == labels) | (labels == IGNORED)).all(1)
        right += matches.reshape(adapters, -1).sum(1)
        nats += losses.reshape(adapters, -1).sum(1)
        tokens += (labels != IGNORED).reshape(adapters, -1).sum(1)
    return Scores(
        tuple((right / per_set).tolist()), tuple((nats / tokens).tolist()), tuple((nats / characters).tolist())
    )
