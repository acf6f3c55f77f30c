"""Other ways to take the step that `train_dp` takes, on the same model and rows: what `gradtf bench dp` compares.

Each way is a function of the drawn rows [B] that trains its own copy of the model. All of them clip at the same
norm, divide by the same batch and let fused Adam take the sum, so that only the gradients are got differently.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradtf_fl.config import Sampler
from gradtf_fl.tasks import TokenRows
from gradtf_fl.training import Draws, RowLosses, noisy_step, private_optimizer, row_mean_loss

CLIP, RATE = 0.5, 1e-3
NORM_FLOOR = 1e-6
"""Of Opacus."""


@dataclass(frozen=True)
class Way:
    """A model that is being trained, its trainable parameters by name, and one step over drawn rows [B]."""

    parameters: dict[str, nn.Parameter]
    step: Callable[[Tensor], None]

    def gradient(self) -> Tensor:
        """What Adam was last given, [size]."""
        return torch.cat([p.grad.flatten() for p in self.parameters.values() if p.grad is not None])


@contextmanager
def ways(
    model: nn.Module, rows: TokenRows, batch: int, sigma: float, names: Sequence[str] | None = None
) -> Iterator[dict[str, Way]]:
    """Those of these names (None: all), by name. The model given is not changed: each has a copy."""
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")  # the base is frozen
        wanted = {name: WAYS[name] for name in (WAYS if names is None else names)}
        yield {name: make(copy.deepcopy(model).train(), rows, batch, sigma, stack) for name, make in wanted.items()}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _adam(parameters: dict[str, nn.Parameter]) -> torch.optim.Adam:
    return torch.optim.Adam(parameters.values(), lr=RATE, fused=True)


def _plain(model: nn.Module, rows: TokenRows, batch: int, sigma: float, stack: ExitStack) -> Way:
    """Not private: the gradient of the batch's mean loss."""
    parameters, forward = trainable(model), RowLosses(model, rows)
    adam = _adam(parameters)

    def step(drawn: Tensor) -> None:
        adam.zero_grad(set_to_none=True)
        torch.autograd.backward(forward(drawn).sum() / batch)
        adam.step()

    return Way(parameters, step)


def _ours(
    model: nn.Module, rows: TokenRows, batch: int, sigma: float, stack: ExitStack, sampler: Sampler = "lora"
) -> Way:
    """A step of `train_dp`, its Poisson draw over all rows included (the rows given are trained on)."""
    parameters, forward, draws = trainable(model), RowLosses(model, rows), Draws.make(None)
    optimizer = stack.enter_context(private_optimizer(model, parameters, sigma, CLIP, batch, RATE, draws, sampler))

    def step(drawn: Tensor) -> None:
        draws.rows(optimizer.steps, len(rows), batch / len(rows))
        noisy_step(optimizer, forward, drawn, len(drawn))

    return Way(parameters, step)


def _hooks(model: nn.Module, rows: TokenRows, batch: int, sigma: float, stack: ExitStack) -> Way:
    """Opacus' hooks and its DPOptimizer, both as they come."""
    from opacus.grad_sample.utils import prepare_module
    from opacus.optimizers import DPOptimizer

    parameters, forward = trainable(model), RowLosses(model, rows)
    hooks: Any = prepare_module(model, "hooks", wrap_model=False, batch_first=True, loss_reduction="sum", strict=True)
    stack.callback(hooks.cleanup)
    optimizer = DPOptimizer(
        _adam(parameters), noise_multiplier=sigma, max_grad_norm=CLIP, expected_batch_size=batch, loss_reduction="mean"
    )

    def step(drawn: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(forward(drawn).sum())
        optimizer.step()

    return Way(parameters, step)


def _ghost(model: nn.Module, rows: TokenRows, batch: int, sigma: float, stack: ExitStack) -> Way:
    """Opacus' ghost clipping: norms first, then a second backward pass of the weighted losses."""
    from opacus.grad_sample.utils import prepare_module
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

    parameters, forward = trainable(model), RowLosses(model, rows)
    options = {"batch_first": True, "loss_reduction": "sum", "max_grad_norm": CLIP, "use_ghost_clipping": True}
    hooks: Any = prepare_module(model, "ghost", wrap_model=False, strict=True, **options)
    stack.callback(hooks.cleanup)
    optimizer = DPOptimizerFastGradientClipping(
        _adam(parameters), noise_multiplier=sigma, max_grad_norm=CLIP, expected_batch_size=batch, loss_reduction="mean"
    )

    def step(drawn: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        DPTensorFastGradientClipping(hooks, optimizer, forward(drawn), "sum").backward()
        optimizer.step()

    return Way(parameters, step)


def _vmap(model: nn.Module, rows: TokenRows, batch: int, sigma: float, stack: ExitStack) -> Way:
    """``torch.func``: the gradient of one row's loss, vectorised over rows. Eager attention, which vmap knows."""
    from torch.func import functional_call, grad, vmap

    base: Any = model
    base.set_attn_implementation("eager")
    parameters = trainable(model)
    adam = _adam(parameters)

    def loss(values: dict[str, Tensor], ids: Tensor, labels: Tensor) -> Tensor:
        kept = {"use_cache": False, "logits_to_keep": len(labels)}
        output: Any = functional_call(model, values, kwargs={"input_ids": ids[None], **kept})
        return row_mean_loss(output.logits, labels[None])[0]

    row_gradients = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
    first = int((rows.labels >= 0).int().argmax(dim=1).min()) - 1  # logits are sliced as in RowLosses

    def step(drawn: Tensor) -> None:
        detached = {name: p.detach() for name, p in parameters.items()}
        found = row_gradients(detached, rows.input_ids[drawn], rows.labels[drawn, first:])
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in found.values()]).norm(dim=0)
        factors = (CLIP / (norms + NORM_FLOOR)).clamp(max=1.0)
        for name, p in parameters.items():
            noise = torch.normal(0.0, sigma * CLIP, p.shape) if sigma > 0 else 0.0
            p.grad = (torch.einsum("i,i...->...", factors, found[name]) + noise) / batch
        adam.step()

    return Way(parameters, step)


PLAIN, OURS = "plain step", "ours"
OUR_HOOKS = "ours with Opacus hooks"
"""`train_dp` with its second sampler."""
WAYS: dict[str, Callable[[nn.Module, TokenRows, int, float, ExitStack], Way]] = {
    PLAIN: _plain,
    OURS: _ours,
    OUR_HOOKS: partial(_ours, sampler="opacus"),
    "Opacus hooks": _hooks,
    "Opacus ghost clipping": _ghost,
    "torch.func vmap": _vmap,
}
