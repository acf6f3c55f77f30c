"""Frozen layers that carry K adapters each; rows of a batch are ordered adapter by adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gradtf_fl.adapters import AdapterSpec, Target, split_name
from gradtf_fl.training.expert_layers import ExpertBranch, check_experts, experts_forward

M = TypeVar("M", bound=nn.Module)


class StackedLinear(nn.Module):
    """A frozen linear layer plus K branches: y = W x + scale * B_k A_k x, B_k R_k A_k x (LoRA-XS) or D_k x (full).

    The layer may be a Conv1D too, and may see the rows' tokens one after the other, [K * rows * T, in].
    """

    def __init__(self, base: nn.Module, scale: float) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        self.a: Tensor | None = None  # [K, rank, in]
        self.b: Tensor | None = None  # [K, out, rank]
        self.delta: Tensor | None = None  # [K, out, in]

    @property
    def weight(self) -> Tensor:
        """The layer's own weight [out, in]."""
        own: Any = self.base.weight
        turned: Tensor = own.mT if isinstance(self.base, Conv1D) else own
        return turned

    def put(self, values: dict[str, Tensor]) -> None:
        """Use these parameters, by role, each [K, ...]; they go to the layer's own device."""
        values = _moved(values, self.base)
        self.delta = values.get("delta")
        self.a, self.b = values.get("lora_A"), values.get("lora_B")
        if "lora_R" in values:
            self.b = values["lora_B"] @ values["lora_R"]

    def forward(self, x: Tensor) -> Tensor:
        """x [K * rows, T, in] -> [K * rows, T, out]."""
        y: Tensor = self.base(x)
        if self.delta is not None:
            branch = torch.bmm(_apart(x, self.delta), self.delta.mT)
        elif self.a is not None and self.b is not None:
            branch = self.scale * torch.bmm(torch.bmm(_apart(x, self.a), self.a.mT), self.b.mT)
        else:
            return y
        return y + branch.reshape(y.shape).to(y.dtype)


class StackedEmbedding(nn.Module):
    """A frozen embedding plus K low-rank branches: y = E[ids] + scale * B_k A_k[:, ids]."""

    def __init__(self, base: nn.Embedding, scale: float) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        self.a: Tensor | None = None  # [K, rank, vocabulary]
        self.b: Tensor | None = None  # [K, width, rank]

    def put(self, values: dict[str, Tensor]) -> None:
        """Use these parameters, by role, each [K, ...]; they go to the layer's own device."""
        values = _moved(values, self.base)
        self.a, self.b = values["lora_embedding_A"], values["lora_embedding_B"]

    def forward(self, ids: Tensor) -> Tensor:
        """ids [K * rows, T] -> [K * rows, T, width]."""
        y: Tensor = self.base(ids)
        if self.a is None or self.b is None:
            return y
        flat = ids.reshape(self.a.shape[0], -1).to(self.a.device)  # accelerate moves what the layer inside takes
        inner = torch.gather(self.a, 2, flat[:, None].expand(-1, self.a.shape[1], -1)).mT  # [K, rows * T, rank]
        if self.base.padding_idx is not None:  # as in PEFT, A never learns from padding
            inner = torch.where((flat == self.base.padding_idx)[..., None], inner.detach(), inner)
        branch = self.scale * torch.bmm(inner, self.b.mT)
        return y + branch.reshape(y.shape).to(y.dtype)


def _moved(values: Mapping[str, Tensor], base: nn.Module) -> dict[str, Tensor]:
    """``values`` on the device of ``base``: a model's layers may lie on several."""
    device = next(base.parameters()).device
    return {role: value.to(device) for role, value in values.items()}


def _apart(x: Tensor, adapters: Tensor) -> Tensor:
    """[K * rows, T, in] as [K, rows * T, in] on the adapters' device and in their type."""
    return x.reshape(adapters.shape[0], -1, x.shape[-1]).to(device=adapters.device, dtype=adapters.dtype)


class StackedExperts(nn.Module):
    """A frozen layer of experts whose matrices carry K adapters each, see `expert_layers`.

    Attributes:
        branches: the adapters by the name of the weight that they are on.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.branches: dict[str, ExpertBranch] = {}

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """hidden [K * rows * T, width], experts and weights [K * rows * T, k] -> [K * rows * T, width]."""
        if not any(branch.groups for branch in self.branches.values()):
            y: Tensor = self.base(hidden, index, weights)
            return y
        return experts_forward(self.base, self.branches, hidden, index, weights)


StackedLayer = StackedLinear | StackedEmbedding | ExpertBranch


def stack_layers(model: nn.Module, targets: Sequence[Target], spec: AdapterSpec) -> dict[str, StackedLayer]:
    """Put stacked layers around all ``targets`` in their places in ``model``; what carries each target's adapters.

    Raises:
        ConfigError: a layer of experts that is not computed here.
    """
    for target in targets:
        if target.parameter:
            check_experts(target.name, target.module)
    return {target.name: _stack_layer(model, target, spec) for target in targets}


def _stack_layer(model: nn.Module, target: Target, spec: AdapterSpec) -> StackedLayer:
    place = target.name.replace(".base_layer", "") if target.parameter else target.name
    if target.parameter:
        around = model.get_submodule(place)
        if not isinstance(around, StackedExperts):
            around = _replace(model, place, StackedExperts(target.module))
        branch = around.branches[target.parameter] = ExpertBranch(target.experts, spec.scale)
        return branch
    kind = StackedEmbedding if target.is_embedding else StackedLinear
    return _replace(model, place, kind(target.module, spec.scale))


def _replace(model: nn.Module, name: str, layer: M) -> M:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)
    return layer


def by_layer(values: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """{module: {role: tensor}} of tensors by full parameter name."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in values.items():
        module, role = split_name(name)
        layers.setdefault(module, {})[role] = tensor
    return layers
