"""Our own sampler, the default: LoRA layers whose forward pass leaves row gradients behind."""

from __future__ import annotations

from .conftest import lora_model
from .sampler_suite import SamplerSuite


class TestLoraSampler(SamplerSuite):
    sampler = "lora"

    def test_it_calls_no_hooks(self) -> None:
        with self.optimizer(lora_model()) as optimizer:
            assert not hasattr(optimizer.sampler, "autograd_grad_sample_hooks")
