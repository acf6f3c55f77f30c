"""Exact match and loss of answers: the plain figures, whatever the batches, and bounded logits."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from gradtf_fl.tasks import IGNORED, Row, TokenRows, Turn, answer_scores, encode_rows, exact_match, forced
from tests.tasks.tokenizers_kit import CHATML, byte_tokenizer


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config)


def some_rows(model: Any, count: int) -> TokenRows:
    """Rows of many lengths; half of the answers are the model's own greedy ones."""
    tokenizer, draw = byte_tokenizer(), random.Random(0)
    rows = encode_rows([Row("q" * draw.randint(1, 60), "a" * draw.randint(1, 9)) for _ in range(count)], tokenizer)
    for place in range(0, count, 2):
        for at in (rows.labels[place] != IGNORED).nonzero().flatten().tolist():
            with torch.no_grad():
                token = int(model(rows.input_ids[place : place + 1, :at]).logits[0, -1].argmax())
            rows.input_ids[place, at] = rows.labels[place, at] = token
    return rows


def plainly(model: Any, rows: TokenRows) -> tuple[float, float]:
    """The same from full logits of all rows at once."""
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits[:, :-1]
    labels = rows.labels[:, 1:]
    right = ((logits.argmax(-1) == labels) | (labels == IGNORED)).all(1).float().mean()
    return float(right), float(functional.cross_entropy(logits.transpose(1, 2), labels, reduction="sum"))


def test_bounds_change_no_figure(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = some_rows(model, 40)
    right, nats = plainly(model, rows)
    assert 0.4 < right < 1
    kept: list[int] = []
    forward = model.forward

    def watched(**given: Any) -> Any:
        output = forward(**given)
        kept.append(output.logits.numel() * 4)
        return output

    monkeypatch.setattr(model, "forward", watched)
    model.train()
    for limit in (forced.LOGIT_BYTES, 60_000, 1):
        kept.clear()
        monkeypatch.setattr(forced, "LOGIT_BYTES", limit)
        scores = answer_scores(model, rows)
        assert scores.exact_match == exact_match(model, rows) == right
        assert scores.nats == pytest.approx(nats, rel=1e-5)
        assert max(kept) <= max(limit, 300 * 4 * 11)  # one row: nine tokens of an answer and their neighbours
        assert len(kept) == (2 if limit > 1e6 else 80 if limit == 1 else len(kept))
    assert model.training


def test_a_conversation_is_scored_by_its_last_answer(model: Any) -> None:
    tokenizer = byte_tokenizer(CHATML)
    turns = [Turn(role, text) for text in ("abc", "de") for role in ("user", "assistant")]
    whole = encode_rows([Row.of_turns(turns)], tokenizer, end=True)
    alone = whole.last_answers()
    assert int((whole.labels != IGNORED).sum()) == 4 + 3
    assert int((alone.labels != IGNORED).sum()) == 3
    assert answer_scores(model, whole) == answer_scores(model, alone)
    assert answer_scores(model, whole).nats == pytest.approx(plainly(model, alone)[1], rel=1e-5)
