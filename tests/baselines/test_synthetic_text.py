"""Decoding by a stack, and synthetic rows."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch

from gradtf_fl.adapters import AdapterSpec
from gradtf_fl.baselines import (
    HOUSE_RULES_ROWS,
    Case,
    Decoding,
    Pair,
    RowShape,
    SyntheticText,
    continuations,
    run_baseline,
    with_prompt_loss,
)
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import IGNORED, Row, encode_rows
from gradtf_fl.training import StackedAdapters
from gradtf_fl.training.stacked import PlainRecipe, fine_tune_stacked
from tests.baselines.pair_recipes import LLM_RECIPE
from tests.benchmark_data import MODELS, needs_models

SAMPLED = Decoding(max_new_tokens=8, temperature=1.0)


def texts(*arguments: Any, **options: Any) -> list[list[str]]:
    return [[one.text for one in own] for own in continuations(*arguments, **options)]


def test_greedy_text_equals_the_models_own_generation(pair: Pair, case: Case) -> None:
    assert case.private is not None
    prompts = [row.prompt for row in case.private[0][:10]]
    theta = pair.tiny.initial + case.updates
    stacked = texts(pair.tiny, theta, [prompts, prompts], Decoding(2), batch=6)
    pair.tiny.set(theta[:1])
    for prompt, text in zip(prompts, stacked[0], strict=True):
        ids = pair.tiny.tokenizer(prompt, return_tensors="pt")["input_ids"]
        new = pair.tiny.model.generate(ids, max_new_tokens=2, do_sample=False)[0, ids.shape[1] :]
        assert pair.tiny.tokenizer.decode(new) == text
    assert stacked[0] != stacked[1]  # two rules


@needs_models
def test_prompts_of_many_lengths_and_texts_with_spaces() -> None:
    side = StackedAdapters.load(str(MODELS / "stories260K"), AdapterSpec())
    theta = side.initial[None]
    prompts = ["Once upon a time,", "Lily", "One day, a big dog ran to the park and saw"]
    together = texts(side, theta, [prompts], Decoding(10))[0]
    for prompt, text in zip(prompts, together, strict=True):
        ids = side.tokenizer(prompt, return_tensors="pt")["input_ids"]
        whole = side.model.generate(ids, max_new_tokens=10, do_sample=False)[0]
        assert side.tokenizer.decode(whole, skip_special_tokens=True) == prompt + text
    # the text ends at a token with a newline where the task says that it is finished
    story = ["Once upon a time, there was a girl.\n"]
    longer = texts(side, theta, [story], Decoding(200))[0][0]
    cut = texts(side, theta, [story], Decoding(200, finished=lambda text: True))[0][0]
    assert "\n" in longer.rstrip("\n")
    assert cut.endswith("\n")
    assert longer.startswith(cut)
    assert "\n" not in cut[:-1]


def test_samples_belong_to_the_organizations_own_seed(pair: Pair, case: Case) -> None:
    theta, start = pair.tiny.initial + case.updates, [["[_][_][_]"] * 20] * 2
    two = texts(pair.tiny, theta, start, SAMPLED, [5])
    assert two == texts(pair.tiny, theta, start, SAMPLED, [5])
    assert two != texts(pair.tiny, theta, start, SAMPLED, [6])
    assert two[0] == texts(pair.tiny, theta[:1], start[:1], SAMPLED, [5])[0]
    same = texts(pair.tiny, theta[:1].repeat(2, 1, 1), start, SAMPLED, [5])
    assert same[0] != same[1]  # one adapter, two organizations: two seeds


def test_temperature_sharpens(pair: Pair, case: Case) -> None:
    theta, start = pair.tiny.initial + case.updates[:1], [["[_][_][_]"] * 60]
    kinds = [
        len(set(texts(pair.tiny, theta[:1], start, replace(SAMPLED, temperature=t), [1])[0])) for t in (0.0, 0.2, 1.0)
    ]
    assert kinds[0] == 1
    assert kinds[0] < kinds[1] < kinds[2]


def test_an_empty_prompt_needs_a_token_to_begin_with(pair: Pair) -> None:
    with pytest.raises(ConfigError, match="no begin-of-text token"):
        texts(pair.tiny, pair.tiny.initial[None], [[""]], SAMPLED)


def test_rows_are_parsed_from_text_and_other_text_is_dropped() -> None:
    assert HOUSE_RULES_ROWS.parse("[_][_][_]12?34=46") == Row("[_][_][_]12?34=", "46")
    assert HOUSE_RULES_ROWS.parse("[_][f][_]12?34=4699") == Row("[_][f][_]12?34=", "46")
    for text in ("[_][_][_]12?34=4", "[_][_][_]1?234=46", "12?34=46", "x[_][_][_]12?34=46"):
        assert HOUSE_RULES_ROWS.parse(text) is None
    assert RowShape("", "(?P<prompt>.*?:)(?P<answer>.*)").parse("Q:") is None
    for pattern in ("(?P<prompt>.*)", "(?P<prompt>.*)(?P<answer>.*"):
        with pytest.raises(ConfigError):
            RowShape("", pattern)


def test_prompt_loss_covers_every_real_token(pair: Pair) -> None:
    rows = encode_rows([Row("[_]", "1"), Row("[_][_][_]", "12")], pair.tiny.tokenizer)
    labels = with_prompt_loss(rows).labels
    assert (labels[1] == rows.input_ids[1]).all()
    assert labels[0].tolist() == [*rows.input_ids[0, :2].tolist(), IGNORED, IGNORED, IGNORED]


def test_synthetic_rows_tune_the_llm(pair: Pair, case: Case) -> None:
    assert case.private is not None
    few = [rows[:4] for rows in case.private]  # four rows by heart: a TinyLM that writes rows, whatever they say
    tokens = with_prompt_loss(encode_rows(list(chain.from_iterable(few)), pair.tiny.tokenizer))
    recipe = PlainRecipe(steps=250, batch=4, rate=5e-2)
    writers = fine_tune_stacked(pair.tiny, tokens, 2, recipe, [[1], [2]], [recipe.steps])[0]
    whole = replace(case, text_updates=writers)
    method = SyntheticText(HOUSE_RULES_ROWS, LLM_RECIPE, rows=60, decoding=SAMPLED, whole_rows=True)
    outcome, again = run_baseline(method, pair, whole), run_baseline(method, pair, whole)
    assert outcome.updates is not None
    assert again.updates is not None
    torch.testing.assert_close(outcome.updates, again.updates, atol=0, rtol=0)
    assert 0.1 < outcome.notes["row_share"] <= 1
    assert 0 < outcome.notes["distinct_share"] < 1
    assert all(float(update.abs().max()) > 1e-3 for update in outcome.updates)
    assert not method.private_rows_leave
    with pytest.raises(ConfigError, match="no TinyLM updates tuned on whole rows"):
        run_baseline(method, pair, case)


def test_a_tinylm_tuned_on_answers_writes_no_house_rules_row(pair: Pair, case: Case) -> None:
    outcome = run_baseline(SyntheticText(HOUSE_RULES_ROWS, LLM_RECIPE, 50, SAMPLED), pair, case)
    assert outcome.updates is not None
    assert outcome.notes["row_share"] == 0
    assert float(outcome.updates.abs().max()) == 0
