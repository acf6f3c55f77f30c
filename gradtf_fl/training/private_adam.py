"""Opacus' `DPOptimizer` around Adam: clipping in one piece, and noise from our own keystream.

Opacus runs the step and decides when it is taken; its three extension points are ours:

    clip_and_accumulate     sum of rows of norm <= 1 (`clipping`), float64
    add_noise               sigma * Normal(0, 1) on that scale, from `Draws` (AES-256-CTR), float64
    scale_grad              times C / expected batch, both public; only then rounded to float32, for Adam
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor

from gradtf_fl.training.clipping import unit_sum
from gradtf_fl.training.grad_samplers import GradSampler
from gradtf_fl.training.randomness import Draws
from gradtf_fl.training.row_gradients import full_precision
from gradtf_fl.training.units import Part


class PrivateAdam(DPOptimizer):  # type: ignore[misc]
    """Clipping, noise and Adam over one flat gradient; each parameter's ``.grad`` is a view of it, and a copy where the
    parameter lies on another device than the first one.

    Attributes:
        sampler: fills the parameters' ``grad_sample``.
        steps: noisy steps taken; it numbers the noise, so it never goes back in one run.
        gradient: what Adam was last given [size].
        part: whose the rows of the next backward pass are; None where each counts for itself.
        releasing: from when the noise was added until Adam has moved the adapter. A step that fails before may be done
            again; one that fails then may not.
        on_noise: called once, before the first noise is added.
    """

    def __init__(
        self,
        sampler: GradSampler,
        sigma: float,
        clip: float,
        expected_batch: float,
        rate: float,
        draws: Draws,
    ) -> None:
        self._parameters = values = list(sampler.parameters.values())
        super().__init__(
            torch.optim.Adam(values, lr=rate, fused=True),
            noise_multiplier=sigma,
            max_grad_norm=clip,
            expected_batch_size=expected_batch,
        )
        self.sampler, self.draws, self.steps, self.releasing = sampler, draws, 0, False
        self.on_noise: Callable[[], None] | None = None
        self._sum: Tensor | None = None  # of rows of norm <= 1, float64; taken by the step that adds noise to it
        self.part: Part | None = None
        self._begun: Tensor | None = None  # gradient of the person whose further rows are in the next part
        self.gradient = torch.zeros(sum(p.numel() for p in values), device=values[0].device)
        parts = torch.split(self.gradient, [p.numel() for p in values])
        self._parts = [part.view(p.shape) for p, part in zip(values, parts, strict=True)]

    @property
    def params(self) -> list[Any]:
        """The adapter's parameters. Opacus gathers them again at every use: 5 microseconds each time."""
        return self._parameters

    def row_gradients(self) -> Tensor:
        """The parameters' ``grad_sample`` as one matrix [rows, size]."""
        return torch.cat([sample.flatten(1) for sample in self._gathered()], dim=1)

    def _gathered(self) -> list[Tensor]:
        """The parameters' ``grad_sample``, on one device."""
        return [sample.to(self.gradient.device) for sample in self.grad_samples]

    def clip_and_accumulate(self) -> None:
        """Add the rows' gradients, each of norm <= 1, to this step's sum; the rows are then used up.

        Raises:
            ValueError: from Opacus, where no backward pass has filled them since the last step.
        """
        with full_precision(self.gradient.device):
            gradients = self._gathered()
            if self.part is not None:
                persons, self._begun = self.part.by_unit(self.row_gradients().float(), self._begun)
                gradients = [persons]
            clipped = unit_sum(gradients, self.max_grad_norm)
        self._sum = clipped if self._sum is None else self._sum.add_(clipped)
        for p in self.params:
            p.grad_sample = None

    def add_noise(self) -> None:
        """Add sigma * Normal(0, 1) to the sum of rows of norm <= 1: C has no part in it."""
        assert self._sum is not None, "clip_and_accumulate comes first"
        assert self._begun is None, "a person's gradient is not whole"
        if self.on_noise is not None:
            self.on_noise()
            self.on_noise = None
        if self.noise_multiplier > 0:
            for start, noise in self.draws.normal_blocks(self.steps, len(self._sum), self._sum.device):
                self._sum[start : start + len(noise)].add_(noise, alpha=self.noise_multiplier)

    def scale_grad(self) -> None:
        """Times C / EXPECTED batch (the drawn size is private), as the parameters' gradients; the sum is used up."""
        assert self._sum is not None, "clip_and_accumulate comes first"
        self.releasing = True
        self.gradient.copy_(self._sum.mul_(self.max_grad_norm / self.expected_batch_size))
        self._sum = None
        for p, part in zip(self.params, self._parts, strict=True):
            p.grad = part.to(p.device)

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Forget row gradients. The sum needs no clearing: the step that adds noise to it takes it."""
        for p in self.params:
            p.grad_sample = None

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """As Opacus has it: a step that was signalled to be skipped only adds to the sum."""
        loss: float | None = super().step(closure)
        self.releasing = False
        if not self._is_last_step_skipped:
            self.steps += 1
        return loss

    def forget(self) -> None:
        """Throw away what a step has gathered before its noise: nothing of it was released."""
        self.sampler.forget()
        self._sum = self._begun = self.part = None
        self._step_skip_queue.clear()

    def detach(self) -> None:
        """Leave the parameters as they were."""
        for p in self.params:
            p.grad = None
            del p.summed_grad
