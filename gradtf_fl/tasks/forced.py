"""Scores of a model's answers given the tokens before them (teacher forcing): nothing is generated.

Full logits of a batch are rows x tokens x vocabulary: 512 rows of 512 tokens of a vocabulary of 150,000 are 157 GB. So
logits are made from the first answer's position on, of as many rows as fit into `LOGIT_BYTES`, shortest rows first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradtf_fl.tasks.rows import IGNORED, TokenRows, refuse_unscored

if TYPE_CHECKING:
    from torch import Tensor

LOGIT_BYTES = 256_000_000  # of a batch, as float32; one row may be larger
BATCH_TOKENS = 16_384  # of a batch, padding included
BATCH_ROWS = 512


@dataclass(frozen=True)
class AnswerScores:
    """Scores of the (last) answers of rows.

    Attributes:
        exact_match: share of rows whose every answer token is the greedy choice, given the tokens before it.
        nats: loss of all answer tokens together, the trained end included.
    """

    exact_match: float
    nats: float


def exact_match(model: Any, rows: TokenRows) -> float:
    """Share of rows whose every answer token is the model's greedy choice, given the tokens before it.

    Equals exact match of greedy decoding: the first token that decoding gets wrong is wrong here too. A conversation is
    scored by its last answer.

    Args:
        model: a causal LM of transformers; put into eval mode, and back. Rows go to its device.

    Raises:
        ConfigError: see `refuse_unscored`.
    """
    right = 0
    for logits, labels in _answer_logits(model, rows):
        right += int(((logits.argmax(-1) == labels) | (labels == IGNORED)).all(1).sum())
    return right / len(rows)


def answer_scores(model: Any, rows: TokenRows) -> AnswerScores:
    """Exact match and loss in one pass; as `exact_match`."""
    from torch.nn import functional

    right, nats = 0, 0.0
    for logits, labels in _answer_logits(model, rows):
        right += int(((logits.argmax(-1) == labels) | (labels == IGNORED)).all(1).sum())
        for row, wanted in zip(logits, labels, strict=True):  # a row at a time: no second copy of the batch
            nats += float(functional.cross_entropy(row.float(), wanted, ignore_index=IGNORED, reduction="sum"))
    return AnswerScores(right / len(rows), nats)


def _answer_logits(model: Any, rows: TokenRows) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits [n, t, V] and labels [n, t] of the next token, batch by batch, on the model's device."""
    import torch

    rows = rows.last_answers()
    refuse_unscored(rows, "rows to score")
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for part in _batches(rows, _vocabulary(model)):
                part = part.to(model.device)
                labels = part.answer_labels()
                logits = model(
                    input_ids=part.input_ids,
                    attention_mask=part.attention_mask,
                    use_cache=False,
                    logits_to_keep=labels.shape[1] + 1,
                ).logits
                yield logits[:, -labels.shape[1] - 1 : -1], labels
    finally:
        model.train(training)


def _batches(rows: TokenRows, vocabulary: int) -> Iterator[TokenRows]:
    """All rows, shortest first, each batch as wide as its longest row and within the bounds."""
    lengths = rows.attention_mask.sum(1)
    firsts = (rows.labels != IGNORED).int().argmax(1)  # of an answer, at least 1: rows are scored
    order = lengths.argsort(stable=True)
    places, start = order.tolist(), 0
    length, first = lengths.tolist(), firsts.tolist()
    while start < len(places):
        stop, earliest = start, length[places[start]]
        while stop < len(places):
            width, earliest = length[places[stop]], min(earliest, first[places[stop]])
            count = stop - start + 1
            kept = count * (width - earliest + 1) * vocabulary * 4
            if count > 1 and (count > BATCH_ROWS or count * width > BATCH_TOKENS or kept > LOGIT_BYTES):
                break
            stop += 1
        part = rows.take(order[start:stop])
        width = length[places[stop - 1]]
        yield TokenRows(part.input_ids[:, :width], part.attention_mask[:, :width], part.labels[:, :width])
        start = stop


def _vocabulary(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)
