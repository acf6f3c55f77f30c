"""The claim holds at every permitted clip and at 10^8 coordinates, and leaving the noise out is seen there too."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from gradtf_fl.round_messages import MAX_CLIP, MIN_CLIP
from gradtf_fl.training import private_adam
from gradtf_fl.training.audit_plan import AuditPlan
from gradtf_fl.training.empirical_audit import run_audit
from gradtf_fl.training.wide_audit import CANARIES, play_wide, wide_size

from .test_audited_trainers import SMALL

CLIPS = [MIN_CLIP, 0.5, MAX_CLIP]
SIZES = [10**5, pytest.param(10**8, marks=pytest.mark.slow)]


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("size", SIZES, ids=["1e5", "1e8"])
def test_a_wide_layer_keeps_the_claim_and_its_control_is_caught(size: int, clip: float) -> None:
    for seed in range(5 if size < 10**6 else 1):
        game = play_wide(wide_size(size), clip, seed)
        assert game.bound.epsilon < game.claimed <= 0.5
        assert not game.bound.refutes
        control = play_wide(wide_size(size), clip, seed, noise=False)
        assert control.guesses.correct == CANARIES
        assert control.bound.refutes
        assert control.bound.epsilon > 2
        assert all(1 - 2e-6 < norm <= 1 for norm in control.row_norms)


def test_a_norm_that_is_too_small_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of float32 at 10^8 coordinates: one row then counts 1.011."""

    def off(gradients: Sequence[torch.Tensor], clip: float) -> torch.Tensor:
        norms = gradients[0].norm(dim=1, keepdim=True) / 1.011
        return (gradients[0] / norms.clamp(min=clip)).sum(0).double()

    monkeypatch.setattr(private_adam, "unit_sum", off)
    assert max(play_wide(wide_size(10**4), 0.5, 1, noise=False).row_norms) > 1.01


@pytest.mark.parametrize(("least", "size"), [(1, 4096), (4096, 4096), (4097, 8192), (10**8, 100_003_840)])
def test_a_layer_has_a_place_for_every_canary(least: int, size: int) -> None:
    assert wide_size(least) == size


@pytest.mark.parametrize("clip", CLIPS)
def test_the_trainer_keeps_its_claim_at_every_clip(clip: float) -> None:
    result = run_audit(AuditPlan.make(epsilon=1.0, clip=clip, seed=1, **SMALL), lambda *_: None)
    assert result.problems == []
    assert result.audit.lower_bound < result.plan.claimed_epsilon
    assert "steps" in result.control.refuting
    assert result.sensitivity.largest <= 1
