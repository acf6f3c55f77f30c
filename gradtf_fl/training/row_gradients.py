"""Each row's own gradient of a LoRA layer, at nearly the cost of the batch's gradient.

A LoRA layer computes y = W x + s B A x. With g_i the gradient of row i's loss with respect to y (T tokens),

    dB_i = s g_i^T (x_i A^T)        [out, rank]
    dA_i = s (g_i B)^T x_i          [rank, in]

This takes the multiplications of the batch's gradient, only not summed over rows: one batched product for each
matrix. Nothing of size [out, in] appears. At ranks below T the rows' gradients are smaller than the activations that
a norm without them (ghost clipping) would have to keep. Opacus' own hooks compute the same on two modules per layer;
here the layer's forward pass is one autograd function, so that small models, where a step is bound by Python, pay
nothing (`gradtf bench dp`). `grad_samplers.LoraGradSampler` attaches it to a model.

LoRA-XS computes y = W x + s B R A x, with R trained alone: dR_i = s (g_i B)^T (A x_i), [rank, rank].

Some layers see the rows' tokens one after the other, [rows * T, in]: OPT's fc1, a shared expert. They are put apart
again by the number of rows that the model was called with (`Batch`). Routed experts see a part of each row's tokens:
every row gets its own copy of their matrices, see `expert_layers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from torch.nn import functional

from gradtf_fl.errors import ConfigError
from gradtf_fl.training.expert_layers import ExpertBranch, check_experts, experts_forward


@dataclass
class Batch:
    """What the model was called with last.

    Attributes:
        rows: how many rows.
        tokens: of each row.
    """

    rows: int = 0
    tokens: int = 0

    def seen(self, _: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Forward pre-hook of the model: its first tensor is [rows, tokens, ...]."""
        first = args[0] if args else options["input_ids"]
        self.rows, self.tokens = first.shape[0], first.shape[1]

    def apart(self, x: Tensor) -> Tensor:
        """[rows, tokens, features] of a layer's input; ConfigError where it is neither that nor all tokens in a row."""
        if x.dim() == 2 and len(x) == self.rows * self.tokens:
            return x.reshape(self.rows, self.tokens, -1)
        if x.dim() != 3:
            raise ConfigError(
                f"a LoRA layer sees {x.dim()} dimensions {tuple(x.shape)}; row gradients need [rows, tokens, features]"
            )
        return x


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


class _RowLinear(torch.autograd.Function):
    """W x. The backward pass puts the rows' gradients into ``weight.grad_sample``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """x [rows, T, in], weight [out, in] -> [rows, T, out]."""
        ctx.save_for_backward(x, weight)
        ctx.weight = weight
        return functional.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        x, weight = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad
        if needs_weight:
            _add(ctx.weight, torch.bmm(g.mT, x))
        return g @ weight if needs_x else None, None


def forward_of(layer: Any, batch: Batch) -> Callable[..., Tensor]:
    """PEFT's forward pass of one of `trained_layers`, whose backward pass leaves row gradients behind."""
    adapter = layer.active_adapters[0]
    if isinstance(layer, ParamWrapper):
        return partial(_experts_forward, _stacks_of(layer), batch)
    base, scale = layer.base_layer, float(layer.scaling[adapter])  # without PEFT's dropout: `without_randomness`
    a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter]

    def forward(x: Tensor) -> Tensor:
        y: Tensor = base(x)
        with full_precision(x.device):  # as in PEFT, the adapter computes in its own type
            rows, answers = batch.apart(x.to(a.dtype)), batch.apart(y.to(a.dtype))
            if isinstance(b, nn.Linear):
                branched: Tensor = _LoraBranch.apply(answers, rows, a, b.weight, scale)  # type: ignore[no-untyped-call]
            else:  # LoRA-XS
                inner: Tensor = _RowLinear.apply(functional.linear(rows, a), b.lora_R.weight)  # type: ignore[no-untyped-call]
                branched = torch.add(answers, functional.linear(inner, b.outer.weight), alpha=scale)
            return branched.reshape(y.shape).to(y.dtype)

    return forward


def _stacks_of(layer: Any) -> list[Any]:
    """``layer`` and the wrappers inside it: PEFT's one for each parameter of the same layer of experts."""
    stacks = [layer]
    while isinstance(stacks[-1].base_layer, ParamWrapper):
        stacks.append(stacks[-1].base_layer)
    return stacks


def _experts_forward(stacks: list[Any], batch: Batch, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """The layer of experts with a copy of the adapter for every row, whose gradients are the rows' gradients."""
    branches = {}
    with full_precision(hidden.device):
        for stack in stacks:
            adapter = stack.active_adapters[0]
            branch = ExpertBranch(stack.num_experts, float(stack.scaling[adapter]))
            pairs = {"lora_A": stack.lora_A[adapter].weight, "lora_B": stack.lora_B[adapter].weight}
            branch.put({role: _copies(matrix, batch.rows) for role, matrix in pairs.items()})
            branches[stack.parameter_name] = branch
        return experts_forward(stacks[-1].base_layer, branches, hidden, index, weights)


def _copies(matrix: Tensor, rows: int) -> Tensor:
    """[rows, *matrix.shape]; the gradient of each copy goes to ``matrix.grad_sample``."""
    copies = matrix.detach().expand(rows, *matrix.shape)
    if matrix.requires_grad:
        copies = copies.clone().requires_grad_()
        copies.register_hook(partial(_add, matrix))  # type: ignore[no-untyped-call]
    return copies


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off: in bfloat16 a clipping norm overshoots its bound by 0.7 % (measured)."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def trained_layers(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> list[Any]:
    """The LoRA layers that hold ``parameters``; of nested ones the outermost.

    Raises:
        ConfigError: a trainable parameter whose row gradients are not known here, all of them named.
    """
    wanted = {id(p) for p in parameters.values()}
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    trained = [(name, layer) for name, layer in layers if any(id(p) in wanted for p in _own(layer))]
    problems = [f"{name}: {why}" for name, layer in trained for why in _obstacles(name, layer)]
    reached = {id(p) for _, layer in trained for p in _own(layer)}
    problems += [f"{name}: it is in no LoRA layer" for name, p in parameters.items() if id(p) not in reached]
    if problems:
        raise ConfigError([f"row gradients are not supported here: {problem}" for problem in problems])
    inside = {id(stack) for _, layer in trained if isinstance(layer, ParamWrapper) for stack in _stacks_of(layer)[1:]}
    return [layer for _, layer in trained if id(layer) not in inside]


def _own(layer: Any) -> list[nn.Parameter]:
    """All parameters of a layer, but none of the base model that an adapter on experts is wrapped around."""
    if isinstance(layer, ParamWrapper):
        return [p for matrices in (layer.lora_A, layer.lora_B) for p in matrices.parameters()]
    return list(layer.parameters())


def _obstacles(name: str, layer: LoraLayer) -> list[str]:
    """Why a layer's trainable parameters have no row gradients here; empty where they have."""
    why = []
    if isinstance(layer, ParamWrapper):
        try:
            check_experts(name, layer.get_base_layer())
        except ConfigError as error:
            return [problem.removeprefix(f"{name}: ") for problem in error.problems]
    elif type(layer) is not LoraLinear and type(layer).__module__ != QUANTIZED:
        return [f"LoRA on {type(layer.get_base_layer()).__name__} (only linear layers are)"]
    base: Any = layer.get_base_layer()
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
