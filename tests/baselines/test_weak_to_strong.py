"""W2S, Conf, VisSup and public W2S on the embedded pair, and on a real pair with two tokenizers."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest
import torch

from gradtf_fl.adapters import AdapterSpec
from gradtf_fl.baselines import (
    AdaptiveLoss,
    Case,
    ConfidenceLoss,
    Decoding,
    HalfSplit,
    Pair,
    PublicPrompts,
    WeakLoss,
    run_baseline,
)
from gradtf_fl.baselines.decoding import continuations
from gradtf_fl.baselines.distillation import distil_stacked
from gradtf_fl.baselines.interface import outcome_of_updates
from gradtf_fl.baselines.weak_to_strong import tune_on_written_rows
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import Row, WrittenRows, encode_rows
from gradtf_fl.training import StackedAdapters
from gradtf_fl.training.stacked import PlainRecipe, fine_tune_stacked
from tests.baselines.pair_recipes import LLM_RECIPE, TINY_RECIPE, with_tokenizer
from tests.benchmark_data import MODELS, needs_models

Rows = tuple[tuple[Row, ...], ...]
ANSWERS = Decoding(max_new_tokens=2)
W2S = HalfSplit("w2s", "Burns et al. 2024", WeakLoss(), TINY_RECIPE, LLM_RECIPE, ANSWERS)
PUBLIC = PublicPrompts(WeakLoss(), LLM_RECIPE, ANSWERS)


def test_hard_labels_train_exactly_as_plain_fine_tuning_does(pair: Pair, case: Case) -> None:
    assert case.private is not None
    tokens = encode_rows(list(chain.from_iterable(case.private)), pair.llm.tokenizer)
    seeds = [[1], [2]]
    plain = fine_tune_stacked(pair.llm, tokens, 2, LLM_RECIPE, seeds, [LLM_RECIPE.steps])[0]
    ours = distil_stacked(pair.llm, tokens, 2, WeakLoss(), LLM_RECIPE, seeds)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("objective", "labels"),
    [
        (WeakLoss(), "hard"),
        (ConfidenceLoss(), "soft"),
        (AdaptiveLoss(), "hard"),
        pytest.param(WeakLoss(), "soft", marks=pytest.mark.slow),
        pytest.param(ConfidenceLoss(), "hard", marks=pytest.mark.slow),
        pytest.param(AdaptiveLoss(), "soft", marks=pytest.mark.slow),
    ],
)
def test_each_method_learns_the_rule_and_is_deterministic(
    pair: Pair, case: Case, test_rows: Rows, objective: WeakLoss, labels: str
) -> None:
    method = replace(W2S, objective=objective, labels=labels)  # type: ignore[arg-type]
    outcome = run_baseline(method, pair, case)
    again = run_baseline(method, pair, case)
    other = run_baseline(method, pair, replace(case, seed=1))
    assert outcome.updates is not None
    assert again.updates is not None
    assert other.updates is not None
    torch.testing.assert_close(outcome.updates, again.updates, atol=0, rtol=0)
    assert float((outcome.updates - other.updates).abs().max()) > 1e-3
    base = outcome_of_updates(pair, torch.zeros_like(outcome.updates)).score(test_rows)
    made = outcome.score(test_rows)
    assert all(b < 0.8 * a for a, b in zip(base.loss_per_token, made.loss_per_token, strict=True))


def test_objectives_and_kinds_of_labels_differ(pair: Pair, case: Case) -> None:
    made = []
    for objective, labels in (
        (WeakLoss(), "hard"),
        (WeakLoss(), "soft"),
        (ConfidenceLoss(), "hard"),
        (AdaptiveLoss(), "hard"),
    ):
        updates = run_baseline(replace(W2S, objective=objective, labels=labels), pair, case).updates  # type: ignore[arg-type]
        assert updates is not None
        made.append(updates)
    assert all(float((a - b).abs().max()) > 1e-3 for i, a in enumerate(made) for b in made[:i])


def test_true_answers_of_the_second_half_are_never_read(pair: Pair, case: Case) -> None:
    """The halves are told apart by destroying answers: those of the labelled half change nothing."""
    assert case.private is not None
    wanted = run_baseline(W2S, pair, case).updates
    assert wanted is not None
    changed = 0
    for number in range(0, len(case.private[0]), 16):
        rows = list(case.private[0])
        rows[number] = Row(rows[number].prompt, "00" if rows[number].answer != "00" else "11")
        updates = run_baseline(W2S, pair, replace(case, private=(tuple(rows), case.private[1]))).updates
        assert updates is not None
        torch.testing.assert_close(updates[1], wanted[1], atol=1e-5, rtol=1e-4)
        changed += not torch.equal(updates[0], wanted[0])
    assert 0 < changed < 8


def test_public_w2s_needs_no_private_row(pair: Pair, case: Case) -> None:
    updates = run_baseline(PUBLIC, pair, case).updates
    alone = PUBLIC.run(pair, replace(case, private=None)).updates
    assert updates is not None
    assert alone is not None
    torch.testing.assert_close(updates, alone, atol=0, rtol=0)
    assert not PUBLIC.private_rows_leave
    assert W2S.private_rows_leave
    with pytest.raises(ConfigError, match="needs public prompts"):
        run_baseline(PUBLIC, pair, replace(case, public_prompts=None))
    with pytest.raises(ConfigError, match="needs private rows"):
        run_baseline(W2S, pair, replace(case, private=None))


def test_a_baseline_that_says_no_row_leaves_sees_none(pair: Pair, case: Case) -> None:
    with pytest.raises(ConfigError, match="none left the organizations"):
        run_baseline(replace(W2S, private_rows_leave=False), pair, case)
    with pytest.raises(ConfigError, match=r"updates are \(4, 768\), this pair's are \(2, 256\)"):
        run_baseline(PUBLIC, pair, replace(case, updates=torch.zeros(2, 4, 768)))


def test_an_organization_without_usable_rows_keeps_the_llm(pair: Pair, case: Case) -> None:
    assert case.private is not None
    nothing = WrittenRows([])
    updates = tune_on_written_rows(pair, [WrittenRows(case.private[0][:8]), nothing], WeakLoss(), LLM_RECIPE, 0)
    assert float(updates[0].abs().max()) > 1e-3
    assert float(updates[1].abs().max()) == 0
    assert float(tune_on_written_rows(pair, [nothing] * 2, WeakLoss(), LLM_RECIPE, 0).abs().max()) == 0


def test_soft_labels_of_two_vocabularies_are_refused(pair: Pair, case: Case) -> None:
    class Other:
        def get_vocab(self) -> dict[str, int]:
            return {"a": 0}

    other = replace(pair, tiny=with_tokenizer(pair.tiny, Other()))
    with pytest.raises(ConfigError, match="soft labels needs one vocabulary"):
        run_baseline(replace(PUBLIC, labels="soft"), other, case)


@needs_models
def test_hard_labels_cross_tokenizers() -> None:
    """stories260K (512 pieces) labels as text, babyllama (361 characters) learns from it."""
    spec = AdapterSpec()
    real = Pair(
        StackedAdapters.load(str(MODELS / "stories260K"), spec),
        StackedAdapters.load(str(MODELS / "babyllama-tok361-1.0M"), spec),
    )
    prompts = tuple(f"Once upon a time, there was a {what} named" for what in ("girl", "boy", "cat", "dog"))
    recipe = PlainRecipe(steps=6, batch=4, rate=5e-3)
    case = Case(torch.zeros(1, *real.tiny.initial.shape), 0, public_prompts=prompts)
    outcome = run_baseline(PublicPrompts(WeakLoss(), recipe, Decoding(8)), real, case)
    assert dict(outcome.notes) == {"soft_labels": 0.0, "answered_share": 1.0}
    answers = continuations(real.tiny, real.tiny.initial[None], [prompts], Decoding(8))[0]
    rows = [tuple(Row(p, a.text) for p, a in zip(prompts, answers, strict=True))]
    assert outcome.updates is not None
    base = outcome_of_updates(real, torch.zeros_like(outcome.updates))
    assert outcome.score(rows).loss_per_character[0] < base.score(rows).loss_per_character[0]
