"""LoRA on a mixture's routed experts, with adapters of their own for groups of rows.

A layer of experts sees tokens [S, in] of all rows and which experts each token goes to. With K adapters token s of
group k(s) that goes to expert e computes

    y_s = W_e x_s + scale * B[k(s), e] A[k(s), e] x_s

A group is a shadow set (`stacked_layers`), or one row: the gradient of a row's own copy IS the row's gradient
(`row_gradients`). A token never meets another token here, so nothing of a row reaches another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gradtf_fl.errors import ConfigError

UP, DOWN = "gate_up_proj", "down_proj"


class ExpertBranch:
    """One stack of experts' weights [experts, out, in] with the K adapters that it carries at the moment."""

    def __init__(self, experts: int, scale: float) -> None:
        self.experts = experts
        self.scale = scale
        self.a: Tensor | None = None  # [K, experts, rank, in]
        self.b: Tensor | None = None  # [K, experts, out, rank]

    def put(self, values: Mapping[str, Tensor]) -> None:
        """Use these matrices as PEFT has them, by role: A [K, experts * rank, in], B [K, out, rank * experts]."""
        a, b = values["lora_A"], values["lora_B"]
        self.a = a.reshape(len(a), self.experts, -1, a.shape[-1])
        self.b = b.reshape(len(b), b.shape[1], -1, self.experts).permute(0, 3, 1, 2)

    @property
    def groups(self) -> int:
        """K; 0 before `put`."""
        return 0 if self.a is None else len(self.a)

    def add(self, y: Tensor, x: Tensor, group: Tensor, expert: Tensor) -> Tensor:
        """y [S, out] and the branch of x [S, in]; ``group`` and ``expert`` [S] say which matrices are a token's."""
        if self.a is None or self.b is None:
            return y
        a, b = self.a.to(x.device), self.b.to(x.device)  # a model's layers may lie on several devices
        inner = torch.einsum("si,sri->sr", x.to(a.dtype), a[group, expert])
        branch = torch.einsum("sr,sor->so", inner, b[group, expert])
        return y + (self.scale * branch).to(y.dtype)


def check_experts(name: str, module: Any) -> None:
    """ConfigError unless `experts_forward` computes what ``module``, a layer of experts, computes."""
    usual = hasattr(module, UP) and hasattr(module, DOWN) and getattr(module, "has_gate", False)
    if not usual or module.is_transposed or module.has_bias or module.has_post_expert_norm:
        raise ConfigError(
            f"{name}: adapters on experts of class {type(module).__name__} are not supported for training"
        )


def experts_forward(
    module: Any, branches: Mapping[str, ExpertBranch], hidden: Tensor, index: Tensor, weights: Tensor
) -> Tensor:
    """What ``module`` computes with ``branches`` (by parameter name) added to its matrices.

    Args:
        module: a layer of experts that `check_experts` accepts.
        branches: the adapters; all have the same K.
        hidden: tokens [S, width], group after group, equally many of each.
        index: experts [S, k] of each token.
        weights: of their answers [S, k].
    """
    tokens, chosen = index.shape
    groups = max(branch.groups for branch in branches.values())
    if groups == 0 or tokens % groups:
        raise ConfigError(f"a layer of experts sees {tokens} tokens, not the same number of each of {groups} rows")
    group = torch.arange(groups, device=index.device).repeat_interleave(tokens // groups * chosen)
    expert = index.reshape(-1)
    order = expert.argsort(stable=True)  # tokens of one expert follow each other
    expert, group, token = expert[order], group[order], order // chosen
    sizes = torch.bincount(expert, minlength=module.num_experts).tolist()

    def multiplied(name: str, x: Tensor) -> Tensor:
        parts = zip(torch.split(x, sizes), getattr(module, name), strict=True)
        y = torch.cat([functional.linear(part, weight) for part, weight in parts])
        return branches[name].add(y, x, group, expert) if name in branches else y

    inner = module._apply_gate(multiplied(UP, hidden[token]))
    answers = multiplied(DOWN, inner) * weights.reshape(-1)[order, None]
    summed = torch.zeros_like(hidden).index_add(0, token, answers.to(hidden.dtype))
    return summed
