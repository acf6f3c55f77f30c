"""What learns from written rows ends its answers where their writer did, and learns as ever where it did not."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gradtf_fl.adapters import AdapterSpec
from gradtf_fl.baselines import (
    HOUSE_RULES_ROWS,
    Case,
    Decoding,
    HalfSplit,
    Pair,
    PublicPrompts,
    SyntheticText,
    WeakLoss,
    continuations,
    run_baseline,
)
from gradtf_fl.baselines.distillation import distil_stacked
from gradtf_fl.baselines.weak_to_strong import _teacher
from gradtf_fl.tasks import Generated, Row, StopRule, WrittenRows, encode_rows, encode_written, end_token
from gradtf_fl.training import StackedAdapters
from gradtf_fl.training.stacked import PlainRecipe, fine_tune_stacked
from tests.baselines.pair_recipes import with_tokenizer
from tests.benchmark_data import MODELS, needs_models

ANSWERS = Decoding(max_new_tokens=6)  # a House Rules answer has two tokens
TINY_RECIPE, LLM_RECIPE = PlainRecipe(steps=200, batch=16, rate=2e-2), PlainRecipe(steps=60, batch=8)
PUBLIC = PublicPrompts(WeakLoss(), LLM_RECIPE, ANSWERS)
HALVES = HalfSplit("w2s", "Burns et al. 2024", WeakLoss(), TINY_RECIPE, LLM_RECIPE, ANSWERS, end=True)


def ended_share(side: StackedAdapters, update: Tensor, prompts: list[str], decoding: Decoding = ANSWERS) -> float:
    """Of the answers of one adapter."""
    own = continuations(side, side.initial + update[None], [prompts], decoding)[0]
    return sum(one.ended for one in own) / len(own)


def end_probability(side: StackedAdapters, update: Tensor, rows: list[Row]) -> float:
    """Mean probability of the end after the answers of ``rows``. The embedded LLM, which never saw an end before, tells
    it from padding by little: it learns either of both."""
    tokens = encode_rows(rows, side.tokenizer, end=True)
    logits = side.answer_logits(side.initial + update[None], tokens).float().softmax(-1)
    last = (tokens.answer_labels() == end_token(side.tokenizer)).nonzero(as_tuple=True)
    return float(logits[last][:, end_token(side.tokenizer)].mean())


@pytest.fixture(scope="module")
def ending(pair: Pair, case: Case) -> Case:
    """The first organization trains the ends of its answers, the second does not."""
    assert case.private is not None
    tokens = [encode_rows(rows, pair.tiny.tokenizer, end=not k) for k, rows in enumerate(case.private)]
    tuned = [fine_tune_stacked(pair.tiny, own, 1, TINY_RECIPE, [[1]], [TINY_RECIPE.steps])[0][0] for own in tokens]
    return replace(case, updates=torch.stack(tuned))


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_the_llm_stops_where_its_tinylm_did(pair: Pair, ending: Case, test_rows: Any, labels: Any) -> None:
    prompts = [row.prompt for row in test_rows[0]]
    assert ended_share(pair.tiny, ending.updates[0], prompts) > 0.9
    assert ended_share(pair.tiny, ending.updates[1], prompts) == 0
    updates = run_baseline(replace(PUBLIC, labels=labels), pair, ending).updates
    assert updates is not None
    rises = [end_probability(pair.llm, update, list(test_rows[0])) for update in (0 * updates[0], *updates)]
    assert rises[0] < 1e-6
    assert rises[1] > 0.3
    assert rises[2] < 1e-6
    alone = run_baseline(
        replace(PUBLIC, labels=labels), pair, replace(ending, updates=ending.updates[:1], private=None)
    ).updates
    assert alone is not None
    torch.testing.assert_close(updates[0], alone[0], atol=1e-5, rtol=1e-4)  # whatever the others do


def test_a_half_that_trains_ends_teaches_them(pair: Pair, case: Case, test_rows: Any) -> None:
    for end in (True, False):
        updates = run_baseline(replace(HALVES, end=end), pair, case).updates
        assert updates is not None
        assert (end_probability(pair.llm, updates[0], list(test_rows[0])) > 0.3) == end


def test_a_written_row_is_ended_where_nothing_follows_it() -> None:
    """What counts as ended, of given texts; how the rows are then learned from is the same for all."""
    assert HOUSE_RULES_ROWS.is_all_of("[_][_][_]12?34=46")
    assert not HOUSE_RULES_ROWS.is_all_of("[_][_][_]12?34=4699")
    method = SyntheticText(HOUSE_RULES_ROWS, LLM_RECIPE)
    row = Row("[_][_][_]12?34=", "46")
    texts = ("12?34=46", "12?34=4699", "12?34=4")
    parsed = [method._parse(Generated((), text, 0, ended)) for text in texts for ended in (True, False)]
    assert parsed == [(row, True), (row, False), (row, False), (row, False), None, None]


@needs_models
def test_windows_of_text_never_end_and_teach_what_they_did() -> None:
    """Eight tokens of a story: bit-equal to training on the same text without ends."""
    real = Pair(
        StackedAdapters.load(str(MODELS / "stories260K"), AdapterSpec()),
        StackedAdapters.load(str(MODELS / "babyllama-tok361-1.0M"), AdapterSpec()),
    )
    prompts = tuple(f"Once upon a time, there was a {what} named" for what in ("girl", "boy", "cat", "dog"))
    recipe = PlainRecipe(steps=6, batch=4, rate=5e-3)
    case = Case(torch.zeros(1, *real.tiny.initial.shape), 0, public_prompts=prompts)
    made = run_baseline(PublicPrompts(WeakLoss(), recipe, Decoding(8)), real, case).updates
    texts = continuations(real.tiny, real.tiny.initial[None], [prompts], Decoding(8))[0]
    assert not any(one.ended for one in texts)
    rows = encode_rows([Row(p, one.text) for p, one in zip(prompts, texts, strict=True)], real.llm.tokenizer)
    plain = distil_stacked(real.llm, rows, 1, WeakLoss(), recipe, [[0, 0x5354524F, 0]])
    assert made is not None
    torch.testing.assert_close(made, plain, atol=0, rtol=0)


@needs_models
def test_ends_cross_tokenizers() -> None:
    """A babyllama learns to end a story after a name, and a larger one, of another vocabulary, learns to stop from
    that: by itself, where it wrote on before."""
    real = Pair(
        StackedAdapters.load(str(MODELS / "babyllama-tok105-0.9M"), AdapterSpec()),
        StackedAdapters.load(str(MODELS / "babyllama-tok361-1.0M"), AdapterSpec()),
    )
    prompts = [f"Once upon a time, there was a {what} named" for what in ("girl", "boy", "cat", "dog", "bird", "fish")]
    recipe = PlainRecipe(steps=60, batch=6, rate=2e-2)

    def tuned(answer: str) -> Tensor:
        rows = encode_rows([Row(prompt, answer) for prompt in prompts], real.tiny.tokenizer, end=True)
        return fine_tune_stacked(real.tiny, rows, 1, recipe, [[1]], [recipe.steps])[0]

    tiny = tuned(" Lily.")
    assert ended_share(real.tiny, tiny[0], prompts, Decoding(12)) == 1
    case = Case(tiny, 0, public_prompts=tuple(prompts))
    updates = run_baseline(PublicPrompts(WeakLoss(), recipe, Decoding(12)), real, case).updates
    assert updates is not None
    assert ended_share(real.llm, torch.zeros_like(updates[0]), prompts, Decoding(24)) == 0
    assert ended_share(real.llm, updates[0], prompts, Decoding(24)) == 1


def test_what_a_task_finds_finished_was_not_ended(pair: Pair) -> None:
    """An end token ends; the limit, and the task's rule at a line end, cut."""

    class Lines:
        eos_token_id, chat_template = 1, None

        def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
            return "".join("\n" if token == 2 else "a" for token in tokens)

    stop = StopRule(pair.tiny.model, Lines(), 4, lambda text: text.startswith("a"))
    for tokens, ended in (([1], True), ([3, 1], True), ([2, 1], True), ([3, 2], False), ([3, 3, 3, 3], False)):
        written: list[int] = []
        assert [stop.add(written, token) for token in tokens] == [False] * (len(tokens) - 1) + [True]
        assert stop.ended(written) == ended


def test_the_rule_wants_most_answers_ended_and_a_token_for_it(pair: Pair) -> None:
    tokenizer = pair.llm.tokenizer
    without = deepcopy(tokenizer)
    without.eos_token = None
    rows = [Row(f"[_]{n}?=", str(n)) for n in range(4)]
    three, two = list(zip(rows, [True, True, False, True], strict=True)), [(row, n < 2) for n, row in enumerate(rows)]
    assert WrittenRows.of(three, tokenizer) == WrittenRows([rows[0], rows[1], rows[3]], True)
    assert WrittenRows.of(two, tokenizer) == WrittenRows(rows)
    assert WrittenRows.of(three, tokenizer, without) == WrittenRows(rows)
    assert WrittenRows.of([], tokenizer) == WrittenRows([])
    both = encode_written([WrittenRows(rows[:1], True), WrittenRows(rows[1:2])], tokenizer)
    assert both.labels[:, -1].tolist() == [end_token(tokenizer), -100]
    assert both.labels[:, -2].tolist() == both.input_ids[:, -2].tolist()


def test_soft_labels_end_by_the_llms_own_token(pair: Pair, ending: Case) -> None:
    """One vocabulary, but the TinyLM ends by another token than the LLM: its certainty to end is the LLM's."""
    tokenizer = deepcopy(pair.llm.tokenizer)
    other = next(token for token in tokenizer.get_vocab().values() if token > end_token(tokenizer))
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(other)
    theta = pair.tiny.initial + ending.updates[:1]
    assert ending.public_prompts is not None
    rows = encode_rows([Row(prompt, "12") for prompt in ending.public_prompts], pair.tiny.tokenizer, end=True)
    plain = _teacher(pair, theta)(rows)
    moved = _teacher(replace(pair, llm=with_tokenizer(pair.llm, tokenizer)), theta)(rows)
    end = end_token(pair.tiny.tokenizer)
    torch.testing.assert_close(moved[..., other], plain[..., other] + plain[..., end])
    assert float(moved[..., end].max()) == 0
    torch.testing.assert_close(moved.sum(-1), plain.sum(-1))
