"""Each row's own gradient of a LoRA layer, at nearly the cost of the batch's gradient.

A LoRA layer computes y = W x + s B A x. With g_i the gradient of row i's loss with respect to y (T tokens),

    dB_i = s g_i^T (x_i A^T)        [out, rank]
    dA_i = s (g_i B)^T x_i          [rank, in]

This takes the multiplications of the batch's gradient, only not summed over rows: one batched product for each
matrix. Nothing of size [out, in] appears. At ranks below T the rows' gradients are smaller than the activations that
a norm without them (ghost clipping) would have to keep. Opacus' own hooks compute the same on two modules per layer;
here the layer's forward pass is one autograd function, so that small models, where a step is bound by Python, pay
nothing (`gradtf bench dp`). `grad_samplers.LoraGradSampler` attaches it to a model.
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

QUANTIZED = "peft.tuners.lora.bnb"
"""Where PEFT has LoRA on layers of bitsandbytes, which is not imported for it."""


class _LoraBranch(torch.autograd.Function):
    """base + scale * B A x. The backward pass puts the rows' gradients into ``a.grad_sample``, ``b.grad_sample``."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """base [rows, T, out], x [rows, T, in], a [rank, in], b [out, rank] -> [rows, T, out]."""
        h = functional.linear(x, a)  # [rows, T, rank]
        ctx.save_for_backward(x, h, a, b)
        ctx.scale, ctx.matrices = scale, (a, b)
        return torch.add(base, functional.linear(h, b), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        x, h, a, b = ctx.saved_tensors
        _, needs_x, needs_a, needs_b, *_ = ctx.needs_input_grad
        h_gradient = (g @ b).mul_(ctx.scale)  # [rows, T, rank]
        if needs_b:
            _add(ctx.matrices[1], torch.bmm(g.mT, h).mul_(ctx.scale))
        if needs_a:
            _add(ctx.matrices[0], torch.bmm(h_gradient.mT, x))
        return g, h_gradient @ a if needs_x else None, None, None, None


def _add(matrix: Any, gradient: Tensor) -> None:
    part = matrix.grad_sample  # a layer that is used twice has two parts
    matrix.grad_sample = gradient if part is None else part + gradient


def forward_of(layer: Any) -> Callable[[Tensor], Tensor]:
    """PEFT's forward pass of one of `trained_layers`, whose backward pass leaves row gradients behind."""
    adapter = layer.active_adapters[0]
    base, dropout, scale = layer.base_layer, layer.lora_dropout[adapter], float(layer.scaling[adapter])
    a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight

    def forward(x: Tensor) -> Tensor:
        if x.dim() != 3:
            raise ConfigError(f"a LoRA layer sees {x.dim()} dimensions; row gradients need [rows, tokens, features]")
        y: Tensor = base(x)
        with full_precision(x.device):  # as in PEFT, the adapter computes in its own type
            branched: Tensor = _LoraBranch.apply(  # type: ignore[no-untyped-call]
                y.to(a.dtype), dropout(x.to(a.dtype)), a, b, scale
            )
            return branched.to(y.dtype)

    return forward


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off: in bfloat16 a clipping norm overshoots its bound by 0.7 % (measured)."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def trained_layers(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> list[Any]:
    """The LoRA layers that hold ``parameters``.

    Raises:
        ConfigError: a trainable parameter whose row gradients are not known here, all of them named.
    """
    wanted = {id(p) for p in parameters.values()}
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    trained = [(name, layer) for name, layer in layers if any(id(p) in wanted for p in layer.parameters())]
    problems = [f"{name}: {why}" for name, layer in trained for why in _obstacles(layer)]
    reached = {id(p) for _, layer in trained for p in layer.parameters()}
    problems += [f"{name}: it is in no LoRA layer" for name, p in parameters.items() if id(p) not in reached]
    if problems:
        raise ConfigError([f"row gradients are not supported here: {problem}" for problem in problems])
    return [layer for _, layer in trained]


def _obstacles(layer: LoraLayer) -> list[str]:
    """Why a layer's trainable parameters have no row gradients here; empty for plain LoRA on a linear layer."""
    base: Any = layer.get_base_layer()
    if type(layer) is not LoraLinear and type(layer).__module__ != QUANTIZED:
        return [f"LoRA on {type(base).__name__} (only linear layers are)"]
    why = []
    if type(layer).__module__ == QUANTIZED and getattr(getattr(base, "state", None), "threshold", 0.0) > 0:
        why.append("8-bit weights with outliers of the whole batch (llm_int8_threshold must be 0)")
    if len(layer.active_adapters) != 1 or layer.disable_adapters or layer.merged:
        why.append("exactly one adapter must be active, enabled and not merged")
    elif layer.active_adapters[0] not in layer.lora_A:
        why.append("the active adapter is not on this layer")
    if layer.lora_variant:
        why.append("a variant of LoRA")
    if any(layer.lora_bias.values()):
        why.append("a LoRA bias")
    return why
