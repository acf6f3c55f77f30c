"""A step on made-up rows before the first on private ones: does it work here, with how many rows at once, at what cost?

What a device cannot do has to show before the ledger is charged. Made-up rows are as wide as the widest real row and
predict from the first position from which a real one does, so that no real step takes more memory.
"""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from gradtf_fl.adapters import devices_of
from gradtf_fl.config import ComputeSection
from gradtf_fl.training.dp_sgd import noisy_step, private_optimizer
from gradtf_fl.training.memory import begin_peak, held_bytes, peak_held_bytes
from gradtf_fl.training.physical_batch import fit_physical_batch, step_memory
from gradtf_fl.training.preflight import adapter_parameters
from gradtf_fl.training.private_adam import PrivateAdam
from gradtf_fl.training.randomness import Draws
from gradtf_fl.training.row_losses import RowLosses
from gradtf_fl.training.trainable import probe

if TYPE_CHECKING:
    from gradtf_fl.tasks import TokenRows

ENOUGH_S = 1.0
"""A measurement of this length is taken for the rest."""


@dataclass(frozen=True)
class StepCost:
    """What a step on ``rows`` rows costs on this machine.

    Attributes:
        rows: expected rows of a draw.
        physical_batch: how many of them go through the model at once.
        seconds: of a step.
        peak_bytes: what this process holds at most during the step, the model included.
    """

    rows: int
    physical_batch: int
    seconds: float
    peak_bytes: int


def rehearse(model: nn.Module, rows: TokenRows, batch: int, compute: ComputeSection, rows_per_person: int = 1) -> int:
    """The physical batch with which `train_dp` can train ``model``'s adapter on ``rows``; the model stays as it is.

    Args:
        rows: only their number, their lengths and where their labels begin are looked at.
        batch: expected rows (persons) of a step.
        rows_per_person: of each drawn person at most.
        compute: how it will be trained; a ``physical_rows`` that is a number is the answer, once a step works.

    Raises:
        ConfigError: training does not work here, or there is not enough memory for one row.
    """
    with _optimizer(model, batch, compute) as optimizer:
        probe(optimizer.sampler, model)
        drawn = batch * rows_per_person
        fitting = fit_physical_batch(optimizer, RowLosses(model, rows), drawn, rows_per_person > 1)
    return fitting if compute.physical_rows == "auto" else compute.physical_rows


def measure_step(model: nn.Module, rows: TokenRows, batch: int, compute: ComputeSection) -> StepCost:
    """What a step on ``batch`` such rows costs; arguments and ConfigError as in `rehearse`.

    Steps on made-up rows are taken, as many rows at once as take `ENOUGH_S` at least; the rest follows in proportion.
    Time is that of a draw's widest rows, memory that of the widest of all and of a large draw.
    """
    physical_batch = rehearse(model, rows, batch, compute)
    part, device = min(batch, physical_batch), devices_of(model)[0]
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:batch]
    parameters = adapter_parameters(model)
    before = [p.detach().clone() for p in parameters.values()]
    with _optimizer(model, batch, compute) as optimizer:
        widest = step_memory(optimizer, RowLosses(model, rows).made_up(2))
        made_up = RowLosses(model, rows.take(drawn)).made_up(part)
        own = step_memory(optimizer, made_up)
        held = held_bytes(device)
        begin_peak(device)
        seconds, tried = _seconds(optimizer, made_up, part)
        added = max(own.of(tried), peak_held_bytes(device) - held)
    with torch.no_grad():
        for p, value in zip(parameters.values(), before, strict=True):
            p.copy_(value)
    largest = min(physical_batch, batch + 3 * math.isqrt(batch))
    peak = held + round(added * widest.of(largest) / own.of(tried))
    return StepCost(batch, physical_batch, seconds * batch / part, peak)


def _seconds(optimizer: PrivateAdam, made_up: RowLosses, rows: int) -> tuple[float, int]:
    """Of a step on this many rows, from as few as take `ENOUGH_S`, and how many those were."""
    tried = min(4, rows)
    before, elapsed = 0, 0.0
    noisy_step(optimizer, made_up, torch.arange(min(2, rows)), 2)  # what is done once only
    while True:
        _synchronize(made_up.device)
        began, earlier = time.perf_counter(), elapsed
        noisy_step(optimizer, made_up, torch.arange(tried), tried)
        _synchronize(made_up.device)
        elapsed = time.perf_counter() - began
        if tried == rows:
            return elapsed, tried
        if elapsed > ENOUGH_S:
            a_row = (elapsed - earlier) / (tried - before) if before and elapsed > earlier else elapsed / tried
            return elapsed + (rows - tried) * a_row, tried
        before, tried = tried, min(rows, 2 * tried)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _optimizer(model: nn.Module, batch: int, compute: ComputeSection) -> AbstractContextManager[PrivateAdam]:
    return private_optimizer(
        model,
        adapter_parameters(model),
        sigma=1.0,
        clip=1.0,
        expected_batch=batch,
        rate=1.0,
        draws=Draws.make(0),
        sampler=compute.sampler,
        gradient_checkpointing=compute.gradient_checkpointing,
    )
