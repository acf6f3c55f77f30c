"""Losses (47)-(49) against values worked out by hand: two or four rows, a vocabulary of three."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradtf_fl.baselines.losses import (
    AdaptiveLoss,
    ConfidenceLoss,
    WeakLoss,
    hardened,
    self_cross_entropy,
    warm_up,
    weak_cross_entropy,
)
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks.rows import IGNORED

# Row 0: two answer tokens; row 1: one, and padding after it
SHARES = torch.tensor([[[0.7, 0.2, 0.1], [0.5, 0.25, 0.25]], [[0.1, 0.3, 0.6], [0.9, 0.05, 0.05]]])
LOGITS = SHARES.log()
LABELS = torch.tensor([[0, 1], [1, IGNORED]])
WEAK = [-(log(0.7) + log(0.25)) / 2, -log(0.3)]
OWN = [-(log(0.7) + log(0.5)) / 2, -log(0.6)]


def test_cross_entropies_are_means_over_a_rows_own_answer_tokens() -> None:
    torch.testing.assert_close(weak_cross_entropy(LOGITS, LABELS, None), torch.tensor(WEAK))
    torch.testing.assert_close(self_cross_entropy(LOGITS, LABELS), torch.tensor(OWN))


def test_soft_labels_weigh_every_token_of_the_vocabulary() -> None:
    soft = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], [[0.2, 0.0, 0.8], [1.0, 0.0, 0.0]]])
    first = -(0.5 * log(0.7) + 0.5 * log(0.2) + log(0.25)) / 2
    second = -(0.2 * log(0.1) + 0.8 * log(0.6))
    torch.testing.assert_close(WeakLoss()(LOGITS, LABELS, soft, 1, 0.0), torch.tensor([first, second]))


def test_confidence_loss_47_hardens_the_confident_half() -> None:
    # Confidence (geometric mean): row 0 sqrt(.35) = .592, row 1 .6, so row 1 is the confident half
    made = ConfidenceLoss(alpha=0.4, warm_up_share=0.5)(LOGITS, LABELS, None, 1, 0.75)
    torch.testing.assert_close(made, torch.tensor([0.6 * WEAK[0], 0.6 * WEAK[1] + 0.4 * OWN[1]]))


def test_confidence_loss_counts_half_of_each_adapters_own_batch() -> None:
    # Adapter 0 holds the two most confident rows of all four; still one of each adapter's two is hardened
    top = torch.tensor([0.9, 0.8, 0.5, 0.4])
    shares = torch.stack([top, (1 - top) * 0.5, (1 - top) * 0.5], dim=-1)[:, None]
    labels = torch.ones(4, 1, dtype=torch.int64)
    made = ConfidenceLoss(alpha=1.0, warm_up_share=0.0)(shares.log(), labels, None, 2, 0.0)
    torch.testing.assert_close(made, torch.tensor([-log(0.9), 0.0, -log(0.5), 0.0]))


def test_confidence_loss_starts_as_w2s_and_trains_towards_its_own_labels() -> None:
    loss = ConfidenceLoss()
    torch.testing.assert_close(loss(LOGITS, LABELS, None, 1, 0.0), torch.tensor(WEAK))
    logits = LOGITS.clone().requires_grad_(True)
    torch.autograd.backward(ConfidenceLoss(1.0, 0.0)(logits, LABELS, None, 1, 0.5).sum())
    assert logits.grad is not None
    # Row 1's target is one-hot at its greedy token: gradient softmax - one-hot; nothing elsewhere
    torch.testing.assert_close(logits.grad[1, 0], torch.tensor([0.1, 0.3, 0.6 - 1.0]))
    assert float(logits.grad[0].abs().max()) == 0


@given(st.integers(1, 4), st.integers(1, 33), st.integers(0, 2**31), st.booleans())
def test_exactly_half_of_each_batch_is_hardened(adapters: int, rows: int, seed: int, tied: bool) -> None:
    confidence = torch.rand(adapters, rows, generator=torch.Generator().manual_seed(seed))
    if tied:
        confidence = (confidence * 3).floor()
    mask = hardened(confidence)
    assert mask.sum(1).tolist() == [rows // 2] * adapters
    for own, kept in zip(confidence, mask, strict=True):
        assert rows < 2 or float(own[kept].min()) >= float(own[~kept].max())


def test_alpha_warms_up_linearly_between_its_ends() -> None:
    assert [warm_up(p, 0.2, 0.5) for p in (0.0, 0.1, 0.2, 1.0)] == pytest.approx([0.0, 0.25, 0.5, 0.5])
    assert warm_up(0.0, 0.0, 0.5) == 0.5


def test_adaptive_loss_48_and_its_weight_49() -> None:
    for temperature in (0.5, 1.0, 4.0):
        loss = AdaptiveLoss(temperature)
        betas = [
            exp(o / temperature) / (exp(o / temperature) + exp(w / temperature)) for o, w in zip(OWN, WEAK, strict=True)
        ]
        torch.testing.assert_close(loss.trust(LOGITS, LABELS), torch.tensor(betas))
        wanted = [(1 - b) * w + b * o for b, w, o in zip(betas, WEAK, OWN, strict=True)]
        torch.testing.assert_close(loss(LOGITS, LABELS, None, 1, 0.3), torch.tensor(wanted))


def test_adaptive_weight_is_half_on_agreement_falls_with_disagreement_and_has_no_gradient() -> None:
    agreed = AdaptiveLoss().trust(LOGITS[:1, :1], torch.tensor([[0]]))
    assert float(agreed) == 0.5
    sure = torch.tensor([[[0.0, -60.0, -60.0]]])
    assert float(AdaptiveLoss().trust(sure, torch.tensor([[1]]))) < 1e-20
    assert not AdaptiveLoss().trust(LOGITS.clone().requires_grad_(True), LABELS).requires_grad


def test_settings_out_of_range_are_refused() -> None:
    for make in (
        lambda: ConfidenceLoss(alpha=1.5),
        lambda: ConfidenceLoss(warm_up_share=-0.1),
        lambda: AdaptiveLoss(0),
    ):
        with pytest.raises(ConfigError):
            make()
