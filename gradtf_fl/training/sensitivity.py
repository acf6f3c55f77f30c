"""The two sentences that DP-SGD's privacy rests on, checked on a trainer without any statistics.

- A row's gradient depends on no other row: without noise, the sum over a set is the sum over its rows one by one.
- One row changes that sum by at most C.

A batch-mean loss breaks the first; guesses about canaries hardly see it, for a canary's own part stays clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradtf_fl.adapters import AdaptedModel, AdapterSpec
from gradtf_fl.errors import VerificationFailed
from gradtf_fl.tasks import IGNORED, TokenRows, encode_rows, house_rules_federation
from gradtf_fl.training.canaries import NoisyGradients

ROWS = 12
TOLERANCE = 1e-3
"""Float32 leaves less than 1e-5."""
NO_CLIPPING = 1e6

Trainer = Callable[..., Any]
"""A function called as `train_dp` is."""


@dataclass(frozen=True)
class Sensitivity:
    """What a trainer's noiseless step showed.

    Attributes:
        coupling: norm of (sum over the set - sum of the rows one by one) / norm of the sum; 0 for a right trainer.
        largest: most that one row changes the clipped sum, in units of C; at most 1. The rows' own norms reach 4.
    """

    coupling: float
    largest: float

    @property
    def problems(self) -> list[str]:
        """What is wrong, in words."""
        found = []
        if not self.coupling <= TOLERANCE:
            found.append(
                f"a row's gradient depends on its neighbours: sums differ by {self.coupling:.1%}; clipping then "
                "bounds nothing and the claimed epsilon is void"
            )
        if not self.largest <= 1 + TOLERANCE:
            found.append(f"one row changes the clipped sum by {self.largest:.3f} C, where at most 1 C is allowed")
        return found


def measure_sensitivity(train: Trainer) -> Sensitivity:
    """One noiseless step of ``train`` on sets of rows with q = 1, all of them known rows of the embedded task.

    Raises:
        VerificationFailed: the trainer's gradients are not seen.
    """
    tiny = AdaptedModel.load("embedded:tiny", AdapterSpec())
    model = tiny.attach()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # B away from zero, or the gradient of A vanishes
        for p in _trainable(model):
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.1)
    rows = _ragged(encode_rows(house_rules_federation("same", 1, ROWS, 1, 0)[0].train, tiny.tokenizer))
    everyone = range(len(rows))
    single = [_sum(train, model, rows, [i], NO_CLIPPING) for i in everyone]
    together = _sum(train, model, rows, everyone, NO_CLIPPING)
    coupling = (together - torch.stack(single).sum(0)).norm() / together.norm()
    clip = max(float(gradient.norm()) for gradient in single) / 4
    clipped = _sum(train, model, rows, everyone, clip)
    without = [_sum(train, model, rows, [j for j in everyone if j != i], clip) for i in everyone]
    return Sensitivity(float(coupling), max(float((clipped - rest).norm()) for rest in without) / clip)


def _ragged(rows: TokenRows) -> TokenRows:
    """The rows with 1 to 4 labelled tokens: a mean over the batch's tokens then differs from the rows' means."""
    labels = torch.full_like(rows.labels, IGNORED)
    for i in range(len(rows)):
        labels[i, -1 - i % 4 :] = rows.input_ids[i, -1 - i % 4 :]
    return TokenRows(rows.input_ids, rows.attention_mask, labels)


def _sum(train: Trainer, model: nn.Module, rows: TokenRows, index: Sequence[int], clip: float) -> Tensor:
    """The clipped sum [size] that one step over all rows at ``index`` takes; the model is as before afterwards."""
    parameters = _trainable(model)
    before = [p.detach().clone() for p in parameters]
    part = rows.take(list(index))
    with NoisyGradients(parameters) as seen:
        train(model, part, sigma=0.0, clip=clip, batch=len(part), steps=1, rate=1e-3, seed=0)
    with torch.no_grad():
        for p, value in zip(parameters, before, strict=True):
            p.copy_(value)
    if not seen.steps:
        raise VerificationFailed("no gradient was seen between the trainer and its optimizer: nothing can be audited")
    return seen.steps[0] * len(part)


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]
