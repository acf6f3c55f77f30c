"""Each row's own gradient of a LoRA adapter, at nearly the cost of the batch's gradient.

A LoRA layer computes y = W x + s B A x. With g_i the gradient of row i's loss with respect to y (T tokens),

    dB_i = s g_i^T (x_i A^T)        [out, rank]
    dA_i = s (g_i B)^T x_i          [rank, in]

which takes the multiplications of the batch's gradient, only not summed over rows: one batched product for each
matrix. Nothing of size [out, in] appears, and at ranks below T the rows' gradients are smaller than the
activations that a norm without them (ghost clipping) would have to keep. Opacus computes the same from hooks on
eight modules and more; here the layer's forward pass is one autograd function, so that small models, where a step
is bound by Python, pay nothing (`gradtf bench dp`). Opacus is the reference in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from gradtf_fl.errors import ConfigError

_Found = dict[int, Tensor]
"""Row gradients [rows, ...] by the position of their parameter; filled by a backward pass."""


class _LoraBranch(torch.autograd.Function):
    """base + scale * B A x. The backward pass puts the rows' gradients of A and B into ``found``, apart."""

    @staticmethod
    def forward(
        ctx: Any, base: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float, found: _Found, keys: tuple[int, int]
    ) -> Tensor:
        """base [rows, T, out], x [rows, T, in], a [rank, in], b [out, rank] -> [rows, T, out]."""
        h = functional.linear(x, a)  # [rows, T, rank]
        ctx.save_for_backward(x, h, a, b)
        ctx.scale, ctx.found, ctx.keys = scale, found, keys
        return torch.add(base, functional.linear(h, b), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        x, h, a, b = ctx.saved_tensors
        _, needs_x, needs_a, needs_b, *_ = ctx.needs_input_grad
        h_gradient = (g @ b).mul_(ctx.scale)  # [rows, T, rank]
        if needs_b:
            _add(ctx.found, ctx.keys[1], torch.bmm(g.mT, h).mul_(ctx.scale))
        if needs_a:
            _add(ctx.found, ctx.keys[0], torch.bmm(h_gradient.mT, x))
        return g, h_gradient @ a if needs_x else None, None, None, None, None, None


def _add(found: _Found, key: int, gradient: Tensor) -> None:
    found[key] = found[key] + gradient if key in found else gradient  # a layer that is used twice has two parts


class RowGradients:
    """Gradients of every row with respect to the trainable LoRA matrices of a PEFT model.

    Inside the ``with`` block the LoRA layers' forward pass is ours; afterwards the model is as it was.

        with RowGradients(model, parameters) as row_gradients:
            matrix = row_gradients.of(losses)       # [rows, size]

    Args:
        parameters: the model's trainable parameters by name; their order is that of the columns.

    Raises:
        ConfigError: a trainable parameter whose row gradients are not known here, all of them named.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        self._keys = {id(p): key for key, p in enumerate(parameters.values())}
        self._names = tuple(parameters)
        self._found: _Found = {}
        self.size = sum(p.numel() for p in parameters.values())
        layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
        trained = [(name, layer) for name, layer in layers if any(id(p) in self._keys for p in layer.parameters())]
        problems = [f"{name}: {why}" for name, layer in trained for why in _obstacles(layer)]
        reached = {id(p) for _, layer in trained for p in layer.parameters()}
        problems += [f"{name}: it is in no LoRA layer" for name, p in parameters.items() if id(p) not in reached]
        if problems:
            raise ConfigError([f"row gradients are not supported here: {problem}" for problem in problems])
        self._layers: list[Any] = [layer for _, layer in trained]

    def __enter__(self) -> RowGradients:
        for layer in self._layers:
            layer.forward = self._forward_of(layer)
        return self

    def __exit__(self, *_: object) -> None:
        for layer in self._layers:
            del layer.forward  # the class's own shows again
        self._found.clear()

    def of(self, losses: Tensor) -> Tensor:
        """The backward pass of ``losses`` [rows], which depend on a row each: gradients [rows, size], float32.

        Raises:
            ConfigError: no gradient reaches a trainable matrix, or a layer has not seen one sequence for each row.
        """
        self._found.clear()
        if not losses.requires_grad:
            raise ConfigError(f"no gradient reaches the adapter; {_CHECKPOINTING_HINT}")
        with full_precision(losses.device):
            torch.autograd.backward(losses.sum())
        missing = [name for key, name in enumerate(self._names) if key not in self._found]
        if missing:
            raise ConfigError(f"no gradient reaches {len(missing)} matrices, e.g. {missing[0]}; {_CHECKPOINTING_HINT}")
        odd = [name for key, name in enumerate(self._names) if len(self._found[key]) != len(losses)]
        if odd:
            raise ConfigError(f"{odd[0]} does not see one sequence for each of the {len(losses)} rows")
        matrix = torch.cat([self._found[key].flatten(1) for key in range(len(self._names))], dim=1)
        self._found.clear()
        return matrix

    def _forward_of(self, layer: Any) -> Callable[[Tensor], Tensor]:
        adapter = layer.active_adapters[0]
        base, dropout, scale = layer.base_layer, layer.lora_dropout[adapter], float(layer.scaling[adapter])
        a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        found, keys = self._found, (self._keys.get(id(a), -1), self._keys.get(id(b), -1))

        def forward(x: Tensor) -> Tensor:
            if x.dim() != 3:
                raise ConfigError(
                    f"a LoRA layer sees {x.dim()} dimensions; row gradients need [rows, tokens, features]"
                )
            y: Tensor = base(x)
            with full_precision(x.device):  # as in PEFT, the adapter computes in its own type
                branched: Tensor = _LoraBranch.apply(  # type: ignore[no-untyped-call]
                    y.to(a.dtype), dropout(x.to(a.dtype)), a, b, scale, found, keys
                )
                return branched.to(y.dtype)

        return forward


_CHECKPOINTING_HINT = "under reentrant gradient checkpointing call model.enable_input_require_grads() first"


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off: in bfloat16 a clipping norm overshoots its bound by 0.7 % (measured)."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _obstacles(layer: LoraLayer) -> list[str]:
    """Why a layer's trainable parameters have no row gradients here; empty for plain LoRA on a linear layer."""
    if type(layer) is not LoraLinear:
        return [f"LoRA on {type(layer.get_base_layer()).__name__} (only linear layers are)"]
    why = []
    if len(layer.active_adapters) != 1 or layer.disable_adapters or layer.merged:
        why.append("exactly one adapter must be active, enabled and not merged")
    elif layer.active_adapters[0] not in layer.lora_A:
        why.append("the active adapter is not on this layer")
    if layer.lora_variant:
        why.append("a variant of LoRA")
    if any(layer.lora_bias.values()):
        why.append("a LoRA bias")
    return why
