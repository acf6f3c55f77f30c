"""Opacus' own hooks as the second sampler behind the same interface."""

from __future__ import annotations

import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks

from gradtf_fl.tasks import TokenRows
from gradtf_fl.training.dp_sgd import train_dp
from gradtf_fl.training.grad_samplers import OpacusGradSampler

from .conftest import lora_model
from .sampler_suite import PLAN, SamplerSuite, adapter


class TestOpacusSampler(SamplerSuite):
    sampler = "opacus"

    def test_its_hooks_are_opacus_own(self) -> None:
        assert OpacusGradSampler.capture_activations_hook is GradSampleHooks.capture_activations_hook
        assert OpacusGradSampler.capture_backprops_hook is GradSampleHooks.capture_backprops_hook
        assert OpacusGradSampler.add_hooks is GradSampleHooks.add_hooks
        with self.optimizer(lora_model()) as optimizer:
            assert len(optimizer.sampler.autograd_grad_sample_hooks) == 2 * 8  # two for each of 8 matrices

    def test_both_samplers_train_the_same_adapter(self, random_rows: TokenRows) -> None:
        ours, theirs = lora_model(), lora_model()
        expected = train_dp(ours, random_rows, **PLAN)
        found = self.train(theirs, random_rows)
        torch.testing.assert_close(adapter(theirs), adapter(ours), atol=1e-5, rtol=0)
        assert (found.event, found.noise) == (expected.event, expected.noise)
