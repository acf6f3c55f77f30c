"""Agreement tuning: which answers count as alike, who is tuned, who stays, and what it is good for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from gradtf_fl.adapters import AdapterSpec
from gradtf_fl.curation.shadow import as_token_rows, single_task
from gradtf_fl.tasks import TokenRows
from gradtf_fl.tasks import house_rules as hr
from gradtf_fl.training import PlainRecipe, StackedAdapters, fine_tune_stacked
from gradtf_fl.transformer.agreement import AgreementRecipe, compare, tune_on_agreement

RULE = hr.rule_named("bfm")


def rows_of(pool: hr.Pool, count: int, seed: int = 7) -> TokenRows:
    return as_token_rows(single_task(RULE).draw(np.random.default_rng([seed]), count, pool))


@pytest.fixture(scope="module")
def llm() -> StackedAdapters:
    return StackedAdapters.load("embedded:llm", AdapterSpec())


@pytest.fixture(scope="module")
def half_tuned(llm: StackedAdapters) -> Tensor:
    """An LLM update [1, L2, n2] that has begun to learn the rule."""
    recipe = PlainRecipe(steps=40, batch=32, rate=1e-2)
    return fine_tune_stacked(llm, rows_of("public", 256), 1, recipe, [[1]], [recipe.steps])[0]


@pytest.fixture(scope="module")
def answered() -> TokenRows:
    """Prompts with a teacher's answers, of which every third is wrong in its last digit."""
    rows = rows_of("public", 384, 8)
    labels, ids = rows.labels.clone(), rows.input_ids.clone()
    wrong = torch.arange(len(rows)) % 3 == 0
    last = (labels != -100).int().cumsum(1).argmax(1)
    digits = [hr.TOKEN_ID[str(digit)] for digit in range(10)]
    for n in wrong.nonzero().flatten().tolist():
        at = int(last[n])
        other = digits[(digits.index(int(ids[n, at])) + 1) % 10] if int(ids[n, at]) in digits else digits[0]
        labels[n, at] = ids[n, at] = other
    return TokenRows(ids, rows.attention_mask, labels)


def test_an_answer_is_alike_when_every_token_is(llm: StackedAdapters, half_tuned: Tensor, answered: TokenRows) -> None:
    found = compare(llm, half_tuned, answered)
    with torch.no_grad():
        logits = llm.answer_logits(llm.initial + half_tuned, answered)
    labels = answered.answer_labels()
    sure, apart = [], []
    for n in range(len(answered)):
        asked = labels[n] != -100
        best = logits[n][asked].log_softmax(-1).max(-1)
        alike = bool((best.indices == labels[n][asked]).all())
        assert bool(found.alike[0, n]) == alike
        sure.append(float(best.values.sum().exp()))
        apart.append(not alike)
    mean = sum(s for s, other in zip(sure, apart, strict=True) if other) / sum(apart)
    assert float(found.certainty[0]) == pytest.approx(mean, rel=1e-4)
    assert float(found.agreement[0]) == pytest.approx(1 - sum(apart) / len(apart))


def test_wrong_answers_of_the_tinylm_are_not_learned(
    llm: StackedAdapters, half_tuned: Tensor, answered: TokenRows
) -> None:
    """Beside it the same steps on all answers, which is what weak-to-strong does."""
    test = rows_of("test", 256)
    recipe = AgreementRecipe()
    tuned = tune_on_agreement(llm, half_tuned, answered, recipe)
    on_all = fine_tune_stacked(llm, answered, 1, recipe.tuning, [[0, 0]], [recipe.tuning.steps], start=half_tuned)[0]
    before, ours, weak = (float(llm.accuracy(llm.initial + one, test)) for one in (half_tuned, tuned, on_all))
    assert before < 0.9
    assert ours > max(before, weak) + 0.05


@pytest.mark.parametrize("change", [{"least": 385}, {"certain": 0.0}])
def test_who_agrees_too_rarely_or_is_certain_stays(
    llm: StackedAdapters, half_tuned: Tensor, answered: TokenRows, change: dict[str, float]
) -> None:
    recipe = replace(AgreementRecipe(), **change)  # type: ignore[arg-type]
    assert torch.equal(tune_on_agreement(llm, half_tuned, answered, recipe), half_tuned)


def test_each_update_is_tuned_on_its_own_prompts(llm: StackedAdapters, half_tuned: Tensor, answered: TokenRows) -> None:
    half = len(answered) // 2
    recipe = replace(AgreementRecipe(), least=16, tuning=replace(AgreementRecipe().tuning, steps=5))
    both = tune_on_agreement(llm, half_tuned.repeat(2, 1, 1), answered, recipe)
    parts = [answered.take(torch.arange(k * half, (k + 1) * half)) for k in range(2)]
    alone = [tune_on_agreement(llm, half_tuned, part, recipe)[0] for part in parts]
    torch.testing.assert_close(both, torch.stack(alone), atol=1e-4, rtol=0)
    assert not torch.allclose(both[0], both[1])
