"""The empirical audit against the real trainer and against broken ones: who is caught, by what, and who is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gradtf_fl.errors import ConfigError, VerificationFailed
from gradtf_fl.privacy import epsilon_prv
from gradtf_fl.round_messages import MAX_CLIP
from gradtf_fl.training import dp_sgd, row_losses
from gradtf_fl.training.audit_plan import AuditPlan
from gradtf_fl.training.dp_sgd import train_dp
from gradtf_fl.training.empirical_audit import AuditResult, likelihood_ratio, play, run_audit
from gradtf_fl.training.sensitivity import Sensitivity, measure_sensitivity

SMALL: dict[str, Any] = {"gradient_canaries": 240, "row_canaries": 24, "rows": 8, "steps": 10, "batch": 136}
"""Enough to catch a noiseless trainer that claims epsilon 1."""


def audit(train: Callable[..., Any] = train_dp, epsilon: float = 1.0, seed: int = 1, **changes: Any) -> AuditResult:
    return run_audit(AuditPlan.make(epsilon=epsilon, seed=seed, **{**SMALL, **changes}), lambda *_: None, train)


def noiseless(*rows: Any, sigma: float, **options: Any) -> Any:
    """Claims ``sigma`` and adds nothing."""
    return train_dp(*rows, sigma=0.0, **options)


def unclipped(*rows: Any, sigma: float, clip: float, **options: Any) -> Any:
    """The noise is as claimed, the rows are not clipped."""
    wider = min(clip * 1e3, MAX_CLIP)
    return train_dp(*rows, sigma=sigma * clip / wider, clip=wider, **options)


def faint(*rows: Any, sigma: float, **options: Any) -> Any:
    """A tenth of the noise."""
    return train_dp(*rows, sigma=sigma / 10, **options)


def longer(*rows: Any, steps: int, **options: Any) -> Any:
    """Two steps more than are accounted for."""
    return train_dp(*rows, steps=steps + 2, **options)


def silent(*rows: Any, **options: Any) -> None:
    """Trains nothing at all."""


def batch_mean(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Transformers' loss: the mean over all label tokens of the batch, here as one number for each row."""
    targets = labels[:, 1:]
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), targets, reduction="none")
    return losses.sum(dim=1) * len(labels) / (targets != -100).sum().clamp(min=1)


@pytest.fixture(scope="module")
def honest() -> AuditResult:
    return audit()


def test_the_right_trainer_passes_and_its_control_is_caught(honest: AuditResult) -> None:
    assert honest.problems == []
    assert honest.audit.lower_bound < honest.plan.claimed_epsilon
    assert honest.audit.refuting == []
    assert "steps" in honest.control.refuting
    assert honest.control.lower_bound > 4
    assert honest.sensitivity.coupling < 1e-5
    assert honest.sensitivity.largest == pytest.approx(1, abs=1e-4)


def test_coins_are_fair_fresh_and_recorded(honest: AuditResult) -> None:
    for run in (honest.audit, honest.control):
        assert 90 < run.gradient_coins.sum() < 150  # 240 coins: 120 +- 4 sd
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(run.to_json()["gradient_coins"]), np.uint8))
        assert np.array_equal(bits[:240].astype(bool), run.gradient_coins)
    assert not np.array_equal(honest.audit.gradient_coins, honest.control.gradient_coins)


def test_guesses_are_as_many_as_the_plan_says(honest: AuditResult) -> None:
    made = {name: (score.guesses.canaries, score.guesses.made) for name, score in honest.audit.scores.items()}
    assert made == {"steps": (240, 192), "update": (240, 192), "loss": (24, 12)}


def test_a_seed_replays_an_audit(honest: AuditResult) -> None:
    assert audit().to_json() == honest.to_json()


@pytest.mark.parametrize("train", [noiseless, unclipped, faint])
def test_leaking_trainers_are_caught_by_guesses(train: Callable[..., Any]) -> None:
    result = audit(train)
    assert "steps" in result.audit.refuting
    assert result.audit.lower_bound > result.plan.claimed_epsilon + 1
    assert any("proves epsilon above" in problem for problem in result.problems)
    assert any("changes the clipped sum by 4.000 C" in problem for problem in result.problems) == (train is unclipped)


def test_steps_that_are_not_accounted_for_are_counted() -> None:
    assert "the trainer took 12 steps, 10 are accounted for" in audit(longer).problems


def test_without_a_seed_the_trainer_runs_as_deployed() -> None:
    seeds = []

    def spy(*rows: Any, seed: int | None, **options: Any) -> Any:
        seeds.append(seed)
        return train_dp(*rows, seed=seed, **options)

    plan = AuditPlan.make(epsilon=1.0, **SMALL)
    play(plan, plan.sigma, plan.seed, spy, lambda _: None)
    assert seeds == [None]


def test_a_batch_mean_loss_is_reported_by_sensitivity_and_not_seen_by_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A canary's own part stays clipped, so guesses find nothing: why the audit does not rest on them alone."""
    monkeypatch.setattr(row_losses, "row_mean_loss", batch_mean)
    with pytest.raises(ConfigError, match="does not find each row's own gradient"):
        audit()
    monkeypatch.setattr(dp_sgd, "check_row_gradients", lambda *_: None)
    result = audit()
    assert result.audit.refuting == []
    assert result.sensitivity.coupling > 0.05
    assert any("depends on its neighbours" in problem for problem in result.problems)


def test_sensitivity_of_the_right_trainer_is_one_clip_and_no_coupling() -> None:
    found = measure_sensitivity(train_dp)
    assert found.problems == []
    assert Sensitivity(float("nan"), 1.0).problems
    assert Sensitivity(0.0, 1.01).problems


def test_an_audit_without_power_says_so() -> None:
    result = audit(epsilon=8.0, gradient_canaries=60, batch=46)
    assert result.control.refuting == []
    assert len(result.problems) == 1
    assert "no power" in result.problems[0]


def test_a_trainer_that_is_not_seen_is_no_pass() -> None:
    with pytest.raises(VerificationFailed, match="no gradient was seen"):
        audit(silent)


def test_likelihood_ratio_by_hand() -> None:
    """Two steps, q = .25, sigma = 1: a canary that showed 1 and then 0."""
    ratio = likelihood_ratio(np.array([[1.0], [0.0]]), 0.25, 1.0)
    expected = np.log(0.75 + 0.25 * np.exp(0.5)) + np.log(0.75 + 0.25 * np.exp(-0.5))
    assert ratio == pytest.approx([expected])
    assert likelihood_ratio(np.array([[3.0]]), 1.0, 2.0) == pytest.approx([(2 * 3 - 1) / 8])
    assert np.isfinite(likelihood_ratio(np.array([[1e4]]), 0.25, 0.1)).all()


def test_a_plan_is_calibrated_and_its_hash_binds_it() -> None:
    plan = AuditPlan.make(epsilon=2.0, seed=5, **SMALL)
    assert plan.total_units == 272
    assert (plan.event.q, plan.event.steps) == (0.5, 10)
    assert 1.99 < epsilon_prv([plan.event], 1e-5) == plan.claimed_epsilon <= 2.0
    assert plan.bound_confidence == pytest.approx(1 - 0.05 / 6)
    assert (plan.gradient_guesses, plan.row_guesses) == (96, 6)
    assert plan.sha256 == AuditPlan.make(epsilon=2.0, seed=5, **SMALL).sha256
    assert plan.sha256 != AuditPlan.make(epsilon=2.0, seed=6, **SMALL).sha256
    assert not AuditPlan.make(epsilon=2.0, **SMALL).replay
    assert AuditPlan.make(epsilon=2.0, **SMALL).seed != AuditPlan.make(epsilon=2.0, **SMALL).seed


def test_bad_plans_are_refused_with_every_reason() -> None:
    with pytest.raises(ConfigError) as caught:
        AuditPlan.make(
            epsilon=-1,
            delta=2,
            confidence=1,
            clip=0,
            steps=0,
            batch=10**6,
            rows=0,
            gradient_canaries=5000,
            row_canaries=1,
        )
    text = str(caught.value)
    for word in ("confidence", "4096", "row canaries", "batch", "clip", "epsilon", "delta", "steps"):
        assert word in text, word


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [1.0, 4.0, 8.0])
@pytest.mark.parametrize("train", [train_dp, noiseless, unclipped])
def test_at_full_size_every_claim_is_tested(epsilon: float, train: Callable[..., Any]) -> None:
    plan = AuditPlan.make(epsilon=epsilon, seed=3)
    result = run_audit(plan, lambda *_: None, train)
    assert result.control.refuting
    assert result.control.lower_bound >= plan.claimed_epsilon
    if train is train_dp:
        assert result.problems == []
        assert result.audit.lower_bound < plan.claimed_epsilon
    else:
        assert "steps" in result.audit.refuting
        assert result.audit.lower_bound >= plan.claimed_epsilon
