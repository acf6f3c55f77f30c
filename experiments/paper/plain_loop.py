"""Training steps side by side: the Grad-Transformer's as shipped and with AdamW alone, and the plain T5 loop's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from gradtf_fl.transformer import GradTransformerModel, TrainConfig, new_optimizers, take_step


class PlainT5(nn.Module):
    """The peer: a Hugging Face T5Model of the same shape between linear layers, teacher forcing, squared error.

    ``source_dim`` and ``target_dim`` are the numbers of values in a block of each side.
    """

    def __init__(self, t5: Any, source_dim: int, target_dim: int) -> None:
        super().__init__()
        self.t5 = type(t5)(t5.config)
        width = t5.config.d_model
        self.source, self.target = nn.Linear(source_dim, width), nn.Linear(target_dim, width)
        self.output = nn.Linear(width, target_dim)

    def forward(self, updates: Tensor, targets: Tensor) -> Tensor:
        """Loss of predicting each block of ``targets`` [B, L, target_dim] from the true ones before it and from
        ``updates`` [B, K, source_dim]."""
        shifted = nn.functional.pad(targets, (0, 0, 1, 0))[:, :-1]
        found = self.t5(inputs_embeds=self.source(updates), decoder_inputs_embeds=self.target(shifted))
        return nn.functional.mse_loss(self.output(found.last_hidden_state), targets)


def training_steps(
    model: GradTransformerModel,
    config: TrainConfig,
    updates: Tensor,
    targets: Tensor,
    autocast: Callable[[], AbstractContextManager[object]],
) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
    """One step by `mse` on ``updates`` [B, K, n] and ``targets`` [B, L, m]: as shipped, with AdamW for every weight,
    and of the plain loop with AdamW. The first two train the same ``model``."""
    plain = PlainT5(model.t5, updates.shape[2], targets.shape[2]).to(updates.device)

    def way(
        module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], optimizers: list[torch.optim.Optimizer]
    ) -> Callable[[], None]:
        def step() -> None:
            with autocast():
                found = loss(updates, targets)
            take_step(module, optimizers, found)

        return step

    def adamw(module: nn.Module) -> list[torch.optim.Optimizer]:
        return [torch.optim.AdamW(module.parameters(), lr=config.rate, weight_decay=config.weight_decay, fused=True)]

    shipped = way(model, model.mse, new_optimizers(model, config))
    return shipped, way(model, model.mse, adamw(model)), way(plain, plain, adamw(plain))
