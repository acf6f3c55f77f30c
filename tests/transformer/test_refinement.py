"""Refinement: it repairs an unseen rule, leaves a seen one alone, and its loss is the one that it states."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gradtf_fl.adapters.models import load_model
from gradtf_fl.config import HOUSE_RULES_ANSWER_TOKENS, FederationPlan
from gradtf_fl.curation.shadow import as_token_rows, single_task
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import IGNORED, Row, TokenRows, encode_rows, public_rows, read_prompts, write_rows
from gradtf_fl.tasks import house_rules as hr
from gradtf_fl.tasks.decoding import Generated
from gradtf_fl.tasks.federation import tokens_to_rows
from gradtf_fl.training.stacked import PlainRecipe, StackedAdapters, fine_tune_stacked, stack_rows
from gradtf_fl.transformer import GradTransformer, embedded_checkpoint, refinement
from gradtf_fl.transformer.known_tasks import KnownTasks, embedded_tasks
from gradtf_fl.transformer.refinement import (
    Answered,
    RefinementRecipe,
    RefiningGenerator,
    certainty,
    refine,
    refinement_loss,
)

SEEN, UNSEEN = hr.rule_named("bfm"), hr.split_rules()[1][0]
QUICK = RefinementRecipe(steps=30)


def rows_of(rule: hr.Rule, pool: hr.Pool, count: int) -> TokenRows:
    return as_token_rows(single_task(rule).draw(np.random.default_rng([7, rule.index]), count, pool))


@pytest.fixture(scope="module")
def transformer() -> GradTransformer:
    return GradTransformer.load(embedded_checkpoint())


@pytest.fixture(scope="module")
def updates(transformer: GradTransformer) -> Tensor:
    """TinyLM updates [2, L1, n1] of one organization with the seen rule and one with the unseen."""
    tiny = StackedAdapters.load("embedded:tiny", transformer.source.spec)
    rows = stack_rows([rows_of(rule, "private", 512) for rule in (SEEN, UNSEEN)])
    recipe = PlainRecipe(steps=100, batch=32, rate=1e-2)
    return fine_tune_stacked(tiny, rows, 2, recipe, [[1], [2]], [recipe.steps])[0]


@pytest.fixture(scope="module")
def generator(transformer: GradTransformer) -> RefiningGenerator:
    prompts = [row.prompt for row in public_rows("unseen", 384, 5)]
    return RefiningGenerator(transformer, prompts, HOUSE_RULES_ANSWER_TOKENS, QUICK)


def accuracy(transformer: GradTransformer, update: Tensor, rule: hr.Rule) -> float:
    llm = StackedAdapters.load("embedded:llm", transformer.target.spec)
    return float(llm.accuracy(llm.initial + update[None], rows_of(rule, "test", 256)))


def test_an_unseen_rule_is_repaired(
    transformer: GradTransformer, generator: RefiningGenerator, updates: Tensor
) -> None:
    found = generator.refined(updates[1].numpy())
    assert bool(found.taken)
    plain, refined = (accuracy(transformer, made[0], UNSEEN) for made in (found.plain, found.updates))
    assert refined > plain + 0.3
    np.testing.assert_array_equal(found.plain[0].numpy(), transformer.generate(updates[1].numpy()))


def test_a_seen_rule_is_left_as_it_was_generated(
    transformer: GradTransformer, generator: RefiningGenerator, updates: Tensor
) -> None:
    found = generator.refined(updates[0].numpy())
    assert not bool(found.taken)
    assert bool(found.after.isnan())
    assert float(found.before) > QUICK.enough
    assert found.summary()["agreement"] is None
    np.testing.assert_array_equal(generator.generate(updates[0].numpy()), transformer.generate(updates[0].numpy()))


def test_who_agrees_on_half_is_overruled_only_by_a_sure_tinylm(
    monkeypatch: pytest.MonkeyPatch, transformer: GradTransformer, generator: RefiningGenerator, updates: Tensor
) -> None:
    """The same search, with and without an agreement that counts as enough."""
    searches: list[int] = []
    search = refinement._search
    monkeypatch.setattr(refinement, "_search", lambda *given: (searches.append(1), search(*given))[1])
    rows = generator._answered(generator._tiny.initial + updates[1:]).rows
    tokens = encode_rows(rows, generator._llm.tokenizer)
    for sure in (0.5, 0.99):
        for recipe in (replace(QUICK, enough=0.7), replace(QUICK, enough=0.0)):
            refine(transformer, generator._llm, updates[1:], Answered(tokens, torch.tensor([sure])), recipe)
            searches.append(0)
    assert searches == [1, 0, 0, 1, 0, 1, 0]


def test_updates_are_refined_alike_alone_and_side_by_side(
    transformer: GradTransformer, generator: RefiningGenerator, updates: Tensor
) -> None:
    both = [generator._answered(generator._tiny.initial + updates[k : k + 1]).rows for k in range(2)]
    tokens = encode_rows([row for rows in both for row in rows], generator._llm.tokenizer)
    sure = torch.tensor([0.5, 0.5])
    side_by_side = refine(transformer, generator._llm, updates, Answered(tokens, sure), QUICK)
    assert side_by_side.taken.tolist() == [False, True]
    assert torch.equal(side_by_side.updates[0], side_by_side.plain[0])
    alone = refine(
        transformer,
        generator._llm,
        updates[1:],
        Answered(tokens.take(torch.arange(len(both[0]), len(tokens))), sure[1:]),
        QUICK,
    )
    torch.testing.assert_close(side_by_side.updates[1:], alone.updates, atol=1e-3, rtol=0)


def test_certainty_is_the_mean_probability_of_the_answers(generator: RefiningGenerator, updates: Tensor) -> None:
    tiny, theta = generator._tiny, generator._tiny.initial + updates
    rows = encode_rows(generator._answered(theta[1:]).rows[:4], generator._tiny.tokenizer)
    both = stack_rows([rows, rows])
    found = certainty(tiny, theta, both)
    tiny.set(theta[1:])
    with torch.no_grad():
        shares = tiny.model(input_ids=rows.input_ids).logits.softmax(-1)
    digits = [shares[n, at - 1, rows.input_ids[n, at]] for n in range(4) for at in (9, 10)]
    expected = torch.stack(digits).reshape(4, 2).prod(1).mean()
    assert float(found[1]) == pytest.approx(float(expected), rel=1e-4)
    assert float(found[0]) < float(found[1])  # another TinyLM's answers


def test_the_same_prompts_give_the_same_update(generator: RefiningGenerator, updates: Tensor) -> None:
    once, again = (generator.generate(updates[1].numpy()) for _ in range(2))
    np.testing.assert_array_equal(once, again)


def test_the_loss_is_the_one_in_the_text() -> None:
    shares = torch.tensor([[[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], [[0.3, 0.6, 0.1], [0.5, 0.25, 0.25]]])
    labels = torch.tensor([[1, 2], [1, IGNORED]])
    agree = [-np.log(0.2), -np.log(0.8), -np.log(0.6)]
    sure = [-np.log(0.7), -np.log(0.8), -np.log(0.6)]
    expected = 0.3 * np.mean(agree) + 0.7 * np.mean(sure)
    assert float(refinement_loss(shares.log(), labels, 0.7)) == pytest.approx(expected, rel=1e-5)


def test_an_update_of_another_shape_is_refused(generator: RefiningGenerator) -> None:
    with pytest.raises(ConfigError, match="this Grad-Transformer takes"):
        generator.generate(np.zeros((1, 2), np.float32))


def test_too_few_prompts_are_refused(transformer: GradTransformer) -> None:
    with pytest.raises(ConfigError, match="at least 32"):
        RefiningGenerator(transformer, ["1?2="] * 31, 2)


def test_without_answers_the_plain_update_stays(
    transformer: GradTransformer, updates: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TinyLM that ends every prompt at once."""
    generator = RefiningGenerator(transformer, [row.prompt for row in public_rows("same", 32, 1)], 2, QUICK)
    generator._tiny.model.generation_config.eos_token_id = list(range(len(hr.VOCABULARY)))
    found = generator.refined(updates[1].numpy())
    assert not bool(found.taken)
    assert bool(found.before.isnan())
    assert torch.equal(found.updates, found.plain)


def test_prompts_are_named_by_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n\n{"question": "b"}\n{"prompt": ""}\nnot json\n')
    with pytest.raises(ConfigError) as caught:
        read_prompts(file)
    assert [problem.split(":")[0].rsplit(", ", 1)[1] for problem in caught.value.problems] == [
        "line 3",
        "line 4",
        "line 5",
    ]
    write_rows(file, public_rows("mixed", 3, 0))
    assert len(read_prompts(file)) == 3
    with pytest.raises(ConfigError, match="can't be read"):
        read_prompts(tmp_path / "none.jsonl")


def test_public_prompts_show_what_the_federation_shows_and_hide_the_rest() -> None:
    for rules, shown in (("same", 0), ("unseen", 0), ("mixed", 1)):
        prompts = [row.prompt for row in public_rows(rules, 50, 3)]  # type: ignore[arg-type]
        assert {3 - prompt.count(hr.MASK) for prompt in prompts} == {shown}
        assert len(set(prompts)) == 50
        pairs = {tuple(map(int, prompt[prompt.rindex("]") + 1 : -1].split("?"))) for prompt in prompts}
        assert pairs <= set(map(tuple, hr.code_pairs("public").tolist()))


def test_the_provider_of_a_plan_with_prompts_refines(tmp_path: Path, updates: Tensor) -> None:
    from strategies.provider import load_generator

    write_rows(tmp_path / "prompts.jsonl", public_rows("unseen", 64, 5))
    plain, refining = (
        load_generator(FederationPlan(prompts=prompts, answer_tokens=2, out=tmp_path))
        for prompts in (None, tmp_path / "prompts.jsonl")
    )
    assert isinstance(refining, RefiningGenerator)
    assert refining.sha256 != plain.sha256
    assert not np.array_equal(refining.generate(updates[1].numpy()), plain.generate(updates[1].numpy()))


def test_the_command_tells_whether_it_was_taken(tmp_path: Path, updates: Tensor) -> None:
    from gradtf_fl.adapters import AdapterSpec, initial_state, save_adapter
    from gradtf_fl.adapters.models import model_folder
    from gradtf_fl.adapters.update_vectors import BlockLayout, apply_update
    from tests.cli.conftest import gradtf

    initial = initial_state(load_model("embedded:tiny")[0], AdapterSpec())
    state = apply_update(BlockLayout.from_state(initial, True), initial, updates[1].numpy())
    save_adapter(tmp_path / "adapter", state, AdapterSpec(), model_folder("embedded:tiny"))
    write_rows(tmp_path / "prompts.jsonl", public_rows("unseen", 96, 5))
    arguments = ("generate", "--update", tmp_path / "adapter", "--answer-tokens", 2)
    result = gradtf(*arguments, "--prompts", tmp_path / "prompts.jsonl", "--out", tmp_path / "llm", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["refinement"]
    assert found["taken"]
    assert found["agreement"] > found["without"]
    missing = gradtf(*arguments, "--prompts", tmp_path / "none", "--out", tmp_path / "other")
    assert missing.exit_code == 2
    assert "--prompts" in missing.stderr


def test_what_a_tiny_model_ends_the_llm_learns_to_end(
    transformer: GradTransformer, updates: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 64 prompts 60 are answered with one digit and an end, 4 run to the limit."""
    rows = [Row(row.prompt, "") for row in public_rows("same", 64, 1)]
    generator = RefiningGenerator(transformer, rows, 2, QUICK)
    ended, running = Generated((3,), "3", 0, ended=True), Generated((3, 4), "34", 0, ended=False)
    monkeypatch.setattr(refinement, "generate_greedily", lambda *_, **__: [ended] * 60 + [running] * 4)
    answered = generator._answered(generator._tiny.initial + updates[1:2])
    assert (len(answered.rows), answered.end) == (60, True)
    assert {row.answer for row in answered.rows} == {"3"}
    found = generator.refined(updates[1].numpy())
    assert not bool(found.before.isnan())
    monkeypatch.setattr(refinement, "generate_greedily", lambda *_, **__: [ended] * 4 + [running] * 60)
    answered = generator._answered(generator._tiny.initial + updates[1:2])
    assert (len(answered.rows), answered.end) == (64, False)


@pytest.mark.parametrize("end", [True, False])
def test_known_tasks_hear_whether_the_tiny_model_ends(
    transformer: GradTransformer, updates: Tensor, monkeypatch: pytest.MonkeyPatch, end: bool
) -> None:
    """A TinyLM that trained the ends of its answers, asked for more tokens than they have, and one that did not."""
    rows = single_task(SEEN).draw(np.random.default_rng([7, SEEN.index]), 256, "private")
    tiny = StackedAdapters.load("embedded:tiny", transformer.source.spec)
    recipe = PlainRecipe(steps=200, batch=16, rate=2e-2)
    update = fine_tune_stacked(
        tiny, encode_rows(tokens_to_rows(rows), tiny.tokenizer, end=end), 1, recipe, [[1]], [recipe.steps]
    )[0]
    heard = []

    def scores(known: KnownTasks, tiny: Any, update: Any, probes: Any, answers: Any, end: bool) -> Tensor:
        heard.append(end)
        return torch.zeros(len(answers), len(probes))

    monkeypatch.setattr(KnownTasks, "scores", scores)
    monkeypatch.setattr(KnownTasks, "distil", lambda known, chosen, start: start)
    prompts = [row.prompt for row in public_rows("mixed", 128, 5)]
    RefiningGenerator(transformer, prompts, 4, replace(QUICK, steps=2), embedded_tasks()).refined(update[0].numpy())
    assert set(heard) == {end}
