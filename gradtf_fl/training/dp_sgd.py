"""DP-SGD on an adapter: Opacus hooks, true Poisson sampling, one loss per row.

One step, for rows drawn independently with probability q (Abadi et al. 2016, algorithm 1):

    g_i = gradient of row i's own mean loss with respect to the adapter
    g   = ( sum_i g_i * min(1, C / |g_i|)  +  Normal(0, sigma^2 C^2) ) / (q N)
    Adam takes g

An empty draw is a step too: noise alone, counted like any other. The denominator is the EXPECTED batch q N,
because the drawn size is private. Opacus gives the per-row gradients (`GradSampleHooks` on PEFT's linear
layers) and the clipping, noise and scaling (`DPOptimizer`); its data loader is not used, for it samples with
1 / len(loader) instead of B / N and fails when the first batch is empty.
"""

from __future__ import annotations

import inspect
import math
import secrets
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from gradtf_fl.errors import ConfigError, GradtfError
from gradtf_fl.privacy.events import NOISE_CSPRNG, NOISE_SEEDED, DpEvent
from gradtf_fl.training.loss import IGNORED, row_mean_loss

if TYPE_CHECKING:
    from gradtf_fl.tasks import TokenRows

PHYSICAL_BATCH = 512
"""Rows per forward pass; larger draws are split, clipped part by part and released as one step."""

Progress = Callable[[int, int], None]
"""Called with (steps done, steps to do). Never with a loss or a batch size: neither is covered by epsilon."""


class NothingTrained(GradtfError):
    """The first step left the adapter untouched: the run would cost epsilon and change nothing."""


@dataclass(frozen=True)
class DpOutcome:
    """What one private training run did.

    Attributes:
        event: observed sigma, q and steps; what the ledger is settled with.
        mean_loss: mean over steps of the drawn rows' mean loss, nats. NOT covered by epsilon: it never leaves
            the organization.
        noise: how noise and samples were generated, for the audit.
    """

    event: DpEvent
    mean_loss: float
    noise: str


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
    physical_batch: int = PHYSICAL_BATCH,
) -> DpOutcome:
    """Train ``model``'s adapter in place with DP-SGD and Adam at a constant rate.

    Args:
        model: PEFT model whose trainable parameters are exactly its adapter's.
        rows: the organization's rows [N, T], right-padded; they stay on this machine.
        sigma: noise multiplier; 0 trains with clipping but without noise (not private, epsilon is infinite).
        clip: L2 bound C of one row's gradient.
        batch: EXPECTED rows per step; q = min(1, batch / N).
        steps: noisy steps, empty draws included.
        rate: Adam's learning rate.
        seed: replays the run (simulation). ``None`` takes sampling and noise from the operating system's
            entropy, fresh in every step.
        progress: called after each step.
        physical_batch: most rows in one forward pass.

    Raises:
        ConfigError: an argument, model or row that the privacy argument does not hold for.
        NothingTrained: the first step did not move the adapter.
    """
    _check_arguments(rows, sigma, clip, batch, steps, rate, physical_batch)
    parameters = _check_trainable(model)
    count = len(rows)
    q = min(1.0, batch / count)
    draws = _Draws(seed, next(iter(parameters.values())).device)
    forward = RowLosses(model, rows)
    losses = torch.zeros((), dtype=torch.float64)
    with private_optimizer(model, parameters, sigma, clip, q * count, rate, draws.noise) as optimizer:
        before = {name: p.detach().clone() for name, p in parameters.items() if "lora_B" in name}
        moved = False
        for step in range(steps):
            draws.refresh()
            drawn = poisson_draw(count, q, draws.sampling)
            losses += noisy_step(optimizer, forward, drawn, physical_batch)
            if not moved and (sigma > 0 or len(drawn)):
                _check_moved(parameters, before)
                moved = True
            if progress is not None:
                progress(step + 1, steps)
    return DpOutcome(DpEvent(sigma, q, steps), float(losses) / steps, draws.label)


def poisson_draw(count: int, q: float, generator: torch.Generator) -> Tensor:
    """Indices of rows out of ``count``, each drawn independently with probability ``q``; possibly none."""
    return (torch.rand(count, generator=generator, dtype=torch.float64) < q).nonzero().flatten()


class _Draws:
    """Two generators, for rows and for noise: seeded, or renewed from the system's entropy in each step."""

    def __init__(self, seed: int | None, device: torch.device) -> None:
        self.seed = seed
        self.sampling, self.noise = torch.Generator(), torch.Generator(device)
        if seed is not None:
            mixer = torch.Generator().manual_seed(seed)
            for generator in (self.sampling, self.noise):
                generator.manual_seed(int(torch.randint(2**62, (), generator=mixer)))

    @property
    def label(self) -> str:
        return NOISE_CSPRNG if self.seed is None else NOISE_SEEDED

    def refresh(self) -> None:
        if self.seed is None:
            self.sampling.manual_seed(secrets.randbits(63))
            self.noise.manual_seed(secrets.randbits(63))


class RowLosses:
    """Losses [B], in nats, of the rows that it is called with (their indices [B], B >= 1).

    Rows are right-padded and attention is causal, so no real token ever sees a pad: the attention mask can be
    left out (faster, same numbers), columns that are padding in all drawn rows are cut off, and logits are
    computed only from the first labelled position on.
    """

    def __init__(self, model: nn.Module, rows: TokenRows) -> None:
        self.model, self.rows = model, rows
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self.slices_logits = "logits_to_keep" in inspect.signature(base.forward).parameters
        self.device = next(model.parameters()).device
        self.lengths = rows.attention_mask.sum(dim=1)
        labelled = (rows.labels != IGNORED).int()
        self.first_label = labelled.argmax(dim=1).clamp(min=1)

    def __call__(self, drawn: Tensor) -> Tensor:
        end = max(1, int(self.lengths[drawn].max()))
        start = int(self.first_label[drawn].min()) - 1
        tokens = self.rows.input_ids[drawn, :end].to(self.device)
        labels = self.rows.labels[drawn, :end].to(self.device)
        options: dict[str, Any] = {"use_cache": False}
        if self.slices_logits:
            options["logits_to_keep"] = end - start
            labels = labels[:, start:]
        return row_mean_loss(self.model(input_ids=tokens, **options).logits, labels)


def noisy_step(optimizer: Any, forward: RowLosses, drawn: Tensor, physical_batch: int) -> Tensor:
    """One noisy step over ``drawn`` rows [B]; returns their mean loss (0 for none), which is private."""
    optimizer.zero_grad(set_to_none=True)
    if len(drawn) == 0:  # Transformers models fail at B = 0; the noise-only step needs no forward pass
        for p in optimizer.params:
            p.grad_sample = p.new_zeros((0, *p.shape))
        optimizer.step()
        return torch.zeros((), dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)
    parts = torch.split(drawn, physical_batch)
    for i, part in enumerate(parts):
        loss = forward(part).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach().cpu()
        for p in optimizer.params:  # a row whose gradient overflows must not turn the sum into NaN
            p.grad_sample = torch.nan_to_num(p.grad_sample, nan=0.0, posinf=0.0, neginf=0.0)
        last = i + 1 == len(parts)
        if not last:
            optimizer.signal_skip_step(True)
        optimizer.step()
        if not last:
            optimizer.zero_grad(set_to_none=True)
    return total / len(drawn)


@contextmanager
def private_optimizer(
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    sigma: float,
    clip: float,
    expected_batch: float,
    rate: float,
    noise: torch.Generator,
) -> Iterator[Any]:
    """Opacus' hooks and optimizer around ``model``; hooks, gradients and mode are as before afterwards."""
    from opacus.grad_sample.utils import prepare_module
    from opacus.optimizers import DPOptimizer

    was_training = model.training
    model.train()  # from_pretrained gives eval mode, in which the hooks record nothing
    hooks = prepare_module(model, "hooks", wrap_model=False, batch_first=True, loss_reduction="sum", strict=True)
    try:
        hooks.forbid_grad_accumulation()
        with warnings.catch_warnings():
            # the first layer's input is frozen, which is how it should be
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield DPOptimizer(
                torch.optim.Adam(parameters.values(), lr=rate),
                noise_multiplier=sigma,
                max_grad_norm=clip,
                expected_batch_size=expected_batch,
                loss_reduction="mean",
                generator=noise,
            )
    finally:
        hooks.cleanup()
        for module in model.modules():
            for attribute in ("activations", "max_batch_len"):
                if attribute in vars(module):
                    delattr(module, attribute)
        for p in parameters.values():
            p.grad = None
            if hasattr(p, "summed_grad"):
                del p.summed_grad
        model.train(was_training)


def _check_arguments(
    rows: TokenRows, sigma: float, clip: float, batch: int, steps: int, rate: float, physical_batch: int
) -> None:
    problems = []
    if len(rows) == 0:
        problems.append("there are no rows to train on")
    if not (math.isfinite(sigma) and sigma >= 0):
        problems.append(f"sigma must be a finite number >= 0, not {sigma}")
    if not (math.isfinite(clip) and clip > 0):
        problems.append(f"the clipping norm must be a finite number above 0, not {clip}")
    if batch < 1 or steps < 1 or physical_batch < 1:
        problems.append(f"batch, steps and physical_batch must be at least 1: {batch}, {steps}, {physical_batch}")
    if not (math.isfinite(rate) and rate > 0):
        problems.append(f"the learning rate must be a finite number above 0, not {rate}")
    if len(rows) and bool((rows.attention_mask.diff(dim=1) > 0).any()):
        problems.append("rows must be padded on the right: after left padding a real token is predicted from a pad")
    if len(rows) and bool(((rows.labels != IGNORED) & (rows.attention_mask == 0)).any()):
        problems.append("padding must carry no labels")
    if problems:
        raise ConfigError(problems)


def _check_trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters by name; nothing else may be trained."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    narrow = [name for name, p in parameters.items() if p.dtype != torch.float32]
    foreign = [name for name in parameters if "lora_" not in name]
    if not any("lora_B" in name for name in parameters):
        raise ConfigError("the model has no trainable LoRA adapter")
    if foreign:
        raise ConfigError(f"parameters outside the adapter are trainable: {', '.join(foreign[:5])}")
    if narrow:
        raise ConfigError(f"the adapter must be float32, or clipping overshoots its bound: {narrow[0]}")
    return parameters


def _check_moved(parameters: dict[str, nn.Parameter], before: dict[str, Tensor]) -> None:
    """Loss can fall and epsilon accrue while nothing trains (opacus issue 820): fail loudly instead."""
    still = [name for name, old in before.items() if torch.equal(parameters[name].detach(), old)]
    if still:
        raise NothingTrained(f"the first private step left {len(still)} adapter matrices unchanged, e.g. {still[0]}")
