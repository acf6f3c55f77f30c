"""DP-SGD on an adapter: true Poisson sampling, one loss and one clipped gradient for each row, Adam.

One step, for rows drawn independently with probability q (Abadi et al. 2016, algorithm 1):

    g_i = gradient of row i's own mean loss with respect to the adapter
    u   = sum_i g_i / max(C, |g_i|)  +  Normal(0, sigma^2)
    Adam takes u * C / (q N)

q is given, and N is the number that it was computed from: a figure that may be public (``declared``), or the number of
rows where everybody may know that. Each row that is there enters a step with probability q, whatever stands in the
rest of the file, so q alone is what is charged: more or fewer rows than declared change accuracy, not epsilon.

Where the unit is a person (`units`), persons are drawn, and g_i is the gradient of the mean of their rows' losses: one
gradient, clipped as one, however many rows it is of.

Rows have norm 1 at most when the noise meets them (`clipping`); C is a public factor of the sum. An empty draw is a
step too: noise alone, counted like any other. The denominator is the EXPECTED batch q N, because the drawn size is
private.

A forward pass draws no random numbers: dropout is off (`without_randomness`).

Opacus is the engine: one of its gradient samplers fills ``grad_sample`` (`grad_samplers`), and its `DPOptimizer`
takes the step (`private_adam`). The losses, the draws and the noise are ours (`randomness`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gradtf_fl.config import PhysicalRows, Sampler
from gradtf_fl.privacy import DpEvent
from gradtf_fl.training.dp_checkpoint import DpCheckpoint
from gradtf_fl.training.grad_samplers import SAMPLERS
from gradtf_fl.training.memory import is_out_of_memory, release
from gradtf_fl.training.physical_batch import fit_physical_batch, half_of
from gradtf_fl.training.preflight import FirstStep, NothingTrained, adapter_parameters, check_arguments, check_rows
from gradtf_fl.training.private_adam import PrivateAdam
from gradtf_fl.training.randomness import Draws
from gradtf_fl.training.recomputation import recomputed
from gradtf_fl.training.row_losses import RowLosses
from gradtf_fl.training.trainable import check_row_gradients, probe
from gradtf_fl.training.units import Drawn, Units, parts_of
from gradtf_fl.training.without_randomness import without_randomness

if TYPE_CHECKING:
    from gradtf_fl.tasks import Persons, TokenRows

__all__ = [
    "DpCheckpoint",
    "DpOutcome",
    "NothingTrained",
    "RowLosses",
    "noisy_step",
    "train_dp",
]

Progress = Callable[[int, int], None]
"""Called with (steps done, steps to do). Never with a loss or a batch size: neither is covered by epsilon."""


@dataclass(frozen=True)
class DpOutcome:
    """What one private training run did.

    Attributes:
        event: observed sigma, q and steps; what the ledger is settled with. Steps that a checkpoint brought along
            are in it: they are part of what is released.
        mean_loss: mean over steps of the drawn rows' mean loss, nats. NOT covered by epsilon: it never leaves
            the organization.
        noise: how noise and samples were generated, for the audit.
        resumed_at: how many of the steps a checkpoint brought along; 0 for a run from the start.
    """

    event: DpEvent
    mean_loss: float
    noise: str
    resumed_at: int = 0


def train_dp(
    model: nn.Module,
    rows: TokenRows,
    *,
    sigma: float,
    clip: float,
    batch: int,
    steps: int,
    rate: float,
    seed: int | None = None,
    progress: Progress | None = None,
    physical_batch: PhysicalRows = "auto",
    checkpoint: DpCheckpoint | None = None,
    sampler: Sampler = "lora",
    gradient_checkpointing: bool = False,
    declared: int | None = None,
    on_noise: Callable[[], None] | None = None,
    persons: Persons | None = None,
) -> DpOutcome:
    """Train ``model``'s adapter in place with DP-SGD and Adam at a constant rate.

    >>> from gradtf_fl import AdapterSpec, Row, attach, encode_rows, load_model, train_dp
    >>> model, tokenizer = load_model("embedded:tiny")
    >>> rows = encode_rows([Row("[_][_][_]37?58=", "13"), Row("[_][_][_]11?22=", "33")] * 8, tokenizer)
    >>> outcome = train_dp(attach(model, AdapterSpec()), rows, sigma=1.0, clip=0.5, batch=4, steps=2, rate=0.01)
    >>> outcome.event
    DpEvent(sigma=1.0, q=0.25, steps=2)

    Args:
        model: PEFT model whose trainable parameters are exactly its adapter's.
        rows: the organization's rows [N, T], right-padded; they stay on this machine.
        sigma: noise multiplier; 0 trains with clipping but without noise (not private, epsilon is infinite).
        clip: L2 bound C of one row's gradient; of one person's, where there are ``persons``.
        batch: EXPECTED rows (persons) per step of a file of N rows (persons); q = min(1, batch / N).
        steps: noisy steps, empty draws included.
        rate: Adam's learning rate.
        seed: replays the run (simulation). ``None`` takes sampling and noise from a key that the operating
            system gives and that is kept nowhere.
        progress: called after each step.
        physical_batch: most rows in one forward pass; larger draws are split, clipped part by part and released as
            one step. ``auto``: as many as fit into memory (`fit_physical_batch`). It is halved where memory runs out.
        checkpoint: where the run saves itself, and resumes from if it was interrupted; see `DpCheckpoint` for what
            is then charged.
        sampler: who computes the rows' gradients, `grad_samplers`: ``lora`` or Opacus' own hooks.
        gradient_checkpointing: compute activations again in the backward pass: less memory, more time.
        declared: N, where q must not depend on how many rows there are; None: that number.
        on_noise: called before the first noise is added. An error before that released nothing.
        persons: whose the rows are, where the unit is a person; None where it is a row.

    Raises:
        ConfigError: an argument, model or row that the privacy argument does not hold for, a checkpoint of another
            run, or not enough memory for one row; all before the first step.
        CorruptFile: a damaged checkpoint.
        NothingTrained: the first step did not move the adapter.
    """
    check_arguments(rows, sigma, clip, batch, steps, rate, physical_batch, declared)
    check_rows(model, rows)
    parameters = adapter_parameters(model)
    check_row_gradients(model, parameters, sampler)
    units = Units.of(rows, persons)
    expected = len(units) if declared is None else declared
    q = min(1.0, batch / expected)
    draws = Draws.make(seed)
    forward = RowLosses(model, rows)
    with private_optimizer(
        model, parameters, sigma, clip, q * expected, rate, draws, sampler, gradient_checkpointing
    ) as optimizer:
        optimizer.on_noise = on_noise
        probe(optimizer.sampler, model)
        likely = max(1, round(q * len(units))) * units.most
        size = (
            fit_physical_batch(optimizer, forward, likely, units.most > 1)
            if physical_batch == "auto"
            else physical_batch
        )
        run = None
        if checkpoint is not None:
            arguments: tuple[object, ...] = (sigma, clip, batch, steps, rate, seed, sampler, declared)
            arguments += () if persons is None else (persons,)
            run = checkpoint.open(model, rows, arguments, optimizer)
        resumed_at = optimizer.steps
        losses = run.loss_sum if run is not None else 0.0
        first = FirstStep(parameters)
        with nullcontext() if run is None else run.kept():
            while optimizer.steps < steps:
                drawn = units.drawn(draws, optimizer.steps, q)
                loss, size = _fitting_step(optimizer, forward, drawn, size)
                losses += loss
                if run is not None:
                    run.after_step(losses, last=optimizer.steps == steps)
                if sigma > 0 or len(drawn.rows):
                    first.check()
                if progress is not None:
                    progress(optimizer.steps, steps)
    return DpOutcome(DpEvent(sigma, q, steps), losses / steps, draws.label, resumed_at)


def _fitting_step(optimizer: PrivateAdam, forward: RowLosses, drawn: Drawn, physical_batch: int) -> tuple[float, int]:
    """`noisy_step`, done again from its beginning with smaller parts where memory runs out before its release.

    Draws and noise belong to the step's number, so a repeated step has the same ones.

    Returns:
        The loss, and the size of the parts that it took.
    """
    while True:
        try:
            return noisy_step(optimizer, forward, drawn.rows, physical_batch, drawn.owners), physical_batch
        except Exception as error:
            parts_can_shrink = min(physical_batch, len(drawn.rows)) > 1
            if not is_out_of_memory(error) or optimizer.releasing or not parts_can_shrink:
                raise
        optimizer.forget()
        release(forward.device)
        physical_batch = half_of(physical_batch, len(drawn.rows))


def noisy_step(
    optimizer: PrivateAdam, forward: RowLosses, drawn: Tensor, physical_batch: int, owners: Tensor | None = None
) -> float:
    """One noisy step over ``drawn`` rows [B]; returns their mean loss (0 for none), which is private.

    Args:
        owners: [B], which of the drawn persons each row is of, counted from 0, ascending: a person's gradient is that
            of the mean of their rows' losses, wherever the parts' borders lie, and is clipped as one. None: each row
            for itself.

    A draw of several parts is Opacus' virtual batch: every step but the last is skipped and only adds to the sum.
    Transformers models fail at B = 0: an empty draw takes no forward pass, only the noise.
    """
    total = 0.0
    parts = torch.split(drawn, physical_batch)  # one part of no rows, where none were drawn
    owned = [None] * len(parts) if owners is None else parts_of(owners, physical_batch, forward.device)
    for number, (part, own) in enumerate(zip(parts, owned, strict=True), 1):
        optimizer.zero_grad()
        optimizer.part = own
        if len(part):
            losses = forward(part) if own is None else forward(part) * own.shares
            optimizer.sampler.backward(losses)
            total += float(losses.detach().sum())
        else:
            optimizer.sampler.no_rows()
        optimizer.signal_skip_step(number < len(parts))
        optimizer.step()
    units = len(drawn) if owners is None or not len(drawn) else int(owners[-1]) + 1
    return total / max(1, units)


@contextmanager
def private_optimizer(
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    sigma: float,
    clip: float,
    expected_batch: float,
    rate: float,
    draws: Draws,
    sampler: Sampler = "lora",
    gradient_checkpointing: bool = False,
) -> Iterator[PrivateAdam]:
    """``model`` with a sampler, without randomness; forward passes, gradients and modes are as before afterwards."""
    with (
        without_randomness(model, parameters.values()),
        SAMPLERS[sampler](model, parameters) as attached,
        recomputed(model, attached.again) if gradient_checkpointing else nullcontext(),
    ):
        optimizer = PrivateAdam(attached, sigma, clip, expected_batch, rate, draws)
        try:
            yield optimizer
        finally:
            optimizer.detach()
