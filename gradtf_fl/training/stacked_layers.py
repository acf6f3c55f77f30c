"""Frozen layers that carry K adapters each; rows of a batch are ordered adapter by adapter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradtf_fl.adapters import AdapterSpec, split_name


class StackedLinear(nn.Module):
    """A frozen linear layer plus K branches: y = W x + scale * B_k A_k x, B_k R_k A_k x (LoRA-XS) or D_k x (full)."""

    def __init__(self, base: nn.Linear, scale: float) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        self.a: Tensor | None = None  # [K, rank, in]
        self.b: Tensor | None = None  # [K, out, rank]
        self.delta: Tensor | None = None  # [K, out, in]

    def put(self, values: dict[str, Tensor]) -> None:
        """Use these parameters, by role, each [K, ...]."""
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
        """Use these parameters, by role, each [K, ...]."""
        self.a, self.b = values["lora_embedding_A"], values["lora_embedding_B"]

    def forward(self, ids: Tensor) -> Tensor:
        """ids [K * rows, T] -> [K * rows, T, width]."""
        y: Tensor = self.base(ids)
        if self.a is None or self.b is None:
            return y
        flat = ids.reshape(self.a.shape[0], -1)
        inner = torch.gather(self.a, 2, flat[:, None].expand(-1, self.a.shape[1], -1)).mT  # [K, rows * T, rank]
        if self.base.padding_idx is not None:  # as in PEFT, A never learns from padding
            inner = torch.where((flat == self.base.padding_idx)[..., None], inner.detach(), inner)
        branch = self.scale * torch.bmm(inner, self.b.mT)
        return y + branch.reshape(y.shape).to(y.dtype)


def _apart(x: Tensor, adapters: Tensor) -> Tensor:
    """[K * rows, T, in] as [K, rows * T, in] in the adapters' type."""
    return x.reshape(adapters.shape[0], -1, x.shape[-1]).to(adapters.dtype)


StackedLayer = StackedLinear | StackedEmbedding


def stack_layer(model: nn.Module, name: str, module: nn.Module, spec: AdapterSpec) -> StackedLayer:
    """Put a stacked layer around ``module`` in its place in ``model``."""
    if isinstance(module, nn.Embedding):
        layer: StackedLayer = StackedEmbedding(module, spec.scale)
    else:
        assert isinstance(module, nn.Linear)
        layer = StackedLinear(module, spec.scale)
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
