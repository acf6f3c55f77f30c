"""Opacus' `DPOptimizer` around Adam: clipping in one piece, and noise from our own keystream.

Opacus runs the step and decides when it is taken; its three extension points are ours:

    clip_and_accumulate     norms and clipped sum of all parameters together, one matrix [rows, size]
    add_noise               the noise of this step's number, from `Draws` (AES-256-CTR)
    scale_grad              division by the expected batch

One product instead of a loop over parameters: in a small model's step the loop would show (`gradtf bench dp`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor

from gradtf_fl.training.grad_samplers import GradSampler
from gradtf_fl.training.randomness import Draws
from gradtf_fl.training.row_gradients import full_precision
from gradtf_fl.training.units import Part

NORM_FLOOR = 1e-6
"""Added to a row's norm before the division, as in Opacus: no division by zero, and slack for rounding."""


class PrivateAdam(DPOptimizer):  # type: ignore[misc]
    """Clipping, noise and Adam over one flat gradient; each parameter's ``.grad`` is a view of it.

    Attributes:
        sampler: fills the parameters' ``grad_sample``.
        steps: noisy steps taken; it numbers the noise, so it never goes back in one run.
        gradient: what Adam was last given [size].
        part: whose the rows of the next backward pass are; None where each counts for itself.
        releasing: from when the noise is added until Adam has moved the adapter. A step that fails before may be done
            again; one that fails then may not.
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
        self._sum: Tensor | None = None  # of clipped rows; taken by the step that adds noise to it
        self.part: Part | None = None
        self._begun: Tensor | None = None  # gradient of the person whose further rows are in the next part
        self.gradient = torch.zeros(sum(p.numel() for p in values), device=values[0].device)
        parts = torch.split(self.gradient, [p.numel() for p in values])
        self._parts = [part.view(p.shape) for p, part in zip(values, parts, strict=True)]

    @property
    def params(self) -> list[Any]:
        """The adapter's parameters. Opacus gathers them anew at every use: 5 microseconds each time."""
        return self._parameters

    def row_gradients(self) -> Tensor:
        """The parameters' ``grad_sample`` as one matrix [rows, size], float32.

        Raises:
            ValueError: from Opacus, where no backward pass has filled them since the last step.
        """
        return torch.cat([sample.flatten(1) for sample in self.grad_samples], dim=1).float()

    def clip_and_accumulate(self) -> None:
        """Add the rows' clipped gradients, or the persons', to this step's sum; the rows are then used up."""
        with full_precision(self.gradient.device):
            gradients = self.row_gradients()
            if self.part is not None:
                gradients, self._begun = self.part.by_unit(gradients, self._begun)
            clipped = clipped_sum(gradients, self.max_grad_norm)
        self._sum = clipped if self._sum is None else self._sum + clipped
        for p in self.params:
            p.grad_sample = None

    def add_noise(self) -> None:
        """The sum with this step's noise becomes the gradient; the sum is then used up."""
        assert self._sum is not None, "clip_and_accumulate comes first"
        assert self._begun is None, "a person's gradient is not whole"
        if self.noise_multiplier > 0:
            noise = self.draws.normals(self.steps, len(self.gradient), self.gradient.device)
            torch.add(self._sum, noise, alpha=self.noise_multiplier * self.max_grad_norm, out=self.gradient)
        else:
            self.gradient.copy_(self._sum)
        self._sum = None
        for p, part in zip(self.params, self._parts, strict=True):
            p.grad = part

    def scale_grad(self) -> None:
        """Divide by the EXPECTED batch: the drawn size is private."""
        self.gradient /= self.expected_batch_size
        self.releasing = True

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


def clipped_sum(gradients: Tensor, clip: float) -> Tensor:
    """Sum [size] of the rows of ``gradients`` [rows, size], each scaled to an L2 norm of at most ``clip``."""
    norms = torch.linalg.vector_norm(gradients, dim=1)
    if len(norms) and not math.isfinite(float(norms.max())):  # one overflowing row must not turn the sum into NaN
        gradients = torch.nan_to_num(gradients, nan=0.0, posinf=0.0, neginf=0.0)
        norms = torch.linalg.vector_norm(gradients, dim=1)
    factors = clip_factors(norms, clip)
    if products_are_exact():
        return factors @ gradients
    return (factors[:, None] * gradients).sum(0)


def products_are_exact() -> bool:
    """Whether float32 matrices are multiplied as such: this process may allow TF32 or bfloat16 in their place.

    In TF32, which keeps 10 bits of a factor, the sum of clipped rows could exceed their number times C.
    """
    backends: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    return all(backend.fp32_precision in ("none", "ieee") for backend in backends)


def clip_factors(norms: Tensor, clip: float) -> Tensor:
    """min(1, C / norm) for each row [rows]."""
    return (clip / (norms + NORM_FLOOR)).clamp(max=1.0)
