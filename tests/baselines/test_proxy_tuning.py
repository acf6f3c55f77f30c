"""Proxy tuning: identity where nothing is tuned, the sum by hand, and two vocabularies refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch

from gradtf_fl.adapters import AdapterSpec
from gradtf_fl.baselines import Case, Pair, ProxyTuning, run_baseline
from gradtf_fl.baselines.interface import outcome_of_updates
from gradtf_fl.baselines.vocabulary import vocabulary_problems
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import Row, encode_rows
from gradtf_fl.training import StackedAdapters
from tests.baselines.pair_recipes import with_tokenizer
from tests.benchmark_data import MODELS, needs_models

Rows = tuple[tuple[Row, ...], ...]


def test_an_untuned_tinylm_leaves_the_llm_as_it_is(pair: Pair, case: Case, test_rows: Rows) -> None:
    untuned = replace(case, updates=torch.zeros_like(case.updates))
    base = outcome_of_updates(pair, torch.zeros(2, *pair.llm.initial.shape))
    assert run_baseline(ProxyTuning(), pair, untuned).score(test_rows) == base.score(test_rows)


def test_logits_are_llm_plus_the_tinylms_shift(pair: Pair, case: Case, test_rows: Rows) -> None:
    tokens = encode_rows(list(chain.from_iterable(test_rows)), pair.llm.tokenizer)
    outcome = run_baseline(ProxyTuning(), pair, case)
    parts = []
    for side, theta in (
        (pair.llm, pair.llm.initial.expand(2, -1, -1)),
        (pair.tiny, pair.tiny.initial + case.updates),
        (pair.tiny, pair.tiny.initial.expand(2, -1, -1)),
    ):
        side.set(theta)
        width = tokens.answer_labels().shape[1]
        parts.append(side.model(input_ids=tokens.input_ids[:, :-1]).logits[:, -width:])
    torch.testing.assert_close(outcome.logits(tokens), parts[0] + parts[1] - parts[2], atol=1e-4, rtol=1e-4)
    assert outcome.updates is None


def test_it_takes_the_tinylms_skill_to_the_llm(pair: Pair, case: Case, test_rows: Rows) -> None:
    made = run_baseline(ProxyTuning(), pair, case).score(test_rows)
    base = outcome_of_updates(pair, torch.zeros(2, *pair.llm.initial.shape)).score(test_rows)
    assert sum(made.loss_per_token) < 0.7 * sum(base.loss_per_token)


class Renamed:
    """A tokenizer whose vocabulary differs in one entry."""

    def __init__(self, vocabulary: dict[str, int]) -> None:
        self._vocabulary = vocabulary

    def get_vocab(self) -> dict[str, int]:
        return self._vocabulary


def with_vocabulary(pair: Pair, change: dict[str, int], gone: str = "") -> Pair:
    vocabulary = {**pair.llm.tokenizer.get_vocab(), **change}
    vocabulary.pop(gone, None)
    return replace(pair, tiny=with_tokenizer(pair.tiny, Renamed(vocabulary)))


@pytest.mark.parametrize(
    ("change", "gone", "words"),
    [
        ({"new": 27}, "[m]", "2 tokens have another id or none"),
        ({"0": 3, "1": 2}, "", "2 tokens have another id or none on one side, e.g. '0' (3 and 2)"),
        ({"new": 28}, "", "the TinyLM's logits have 28 columns, its tokenizer's largest id is 28"),
    ],
)
def test_two_vocabularies_are_refused(pair: Pair, case: Case, change: dict[str, int], gone: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run_baseline(ProxyTuning(), with_vocabulary(pair, change, gone), case)
    assert all(problem.startswith("proxy tuning needs one vocabulary") for problem in caught.value.problems)
    assert words in str(caught.value)


def test_padding_columns_past_the_last_token_may_differ(pair: Pair, case: Case, test_rows: Rows) -> None:
    """As Qwen2.5-3B's and 7B's do. The padded model answers with 28 + 4 columns, whose last four are large."""

    class Padded(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.inner(x), x.new_full((*x.shape[:-1], 4), 1e4)], dim=-1)

    wanted = run_baseline(ProxyTuning(), pair, case).score(test_rows)
    padded = Pair(pair.tiny, StackedAdapters.load("embedded:llm", AdapterSpec()))
    model: Any = padded.llm.model
    model.lm_head = Padded(model.lm_head)
    model.get_output_embeddings = lambda: torch.nn.Linear(96, 32)
    assert vocabulary_problems(padded) == []
    assert run_baseline(ProxyTuning(), padded, case).score(test_rows) == wanted


@needs_models
def test_real_tokenizers_that_differ_are_refused() -> None:
    spec = AdapterSpec()
    real = Pair(
        StackedAdapters.load(str(MODELS / "stories260K"), spec),
        StackedAdapters.load(str(MODELS / "babyllama-tok361-1.0M"), spec),
    )
    with pytest.raises(ConfigError, match="the TinyLM has 512 tokens, the LLM 361"):
        run_baseline(ProxyTuning(), real, Case(torch.zeros(1, *real.tiny.initial.shape), 0))


def test_scores_by_hand(pair: Pair, test_rows: Rows) -> None:
    outcome = outcome_of_updates(pair, torch.zeros(2, *pair.llm.initial.shape))
    scores = outcome.score(test_rows)
    for k, own in enumerate(test_rows):
        tokens = encode_rows(list(own), pair.llm.tokenizer)
        logits = pair.llm.answer_logits(pair.llm.initial[None], tokens)
        nats = -torch.log_softmax(logits, -1).gather(2, tokens.answer_labels()[..., None]).sum()
        right = (logits.argmax(-1) == tokens.answer_labels()).all(1).float().mean()
        assert scores.loss_per_token[k] == pytest.approx(float(nats) / (2 * len(own)), rel=1e-4)
        assert scores.loss_per_character[k] == pytest.approx(scores.loss_per_token[k], rel=1e-4)  # a digit is a token
        assert scores.exact_match[k] == pytest.approx(float(right))
    with pytest.raises(ConfigError, match="equally many"):
        outcome.score([test_rows[0], test_rows[1][:5]])
