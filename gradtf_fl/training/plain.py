"""Plain (non-private) LoRA fine-tuning of a PEFT model: the reference that stacked training has to equal."""

from __future__ import annotations

from typing import Any

import torch

from gradtf_fl.tasks import TokenRows
from gradtf_fl.training.loss import row_mean_loss
from gradtf_fl.training.stacked import PlainRecipe, batch_indices


def fine_tune(
    model: Any, rows: TokenRows, *, steps: int, batch: int, rate: float, seed: int, max_norm: float = 1.0
) -> None:
    """Fine-tune the attached adapter in place: Adam, linear decay, per-row mean loss, gradient norm clipped."""
    recipe = PlainRecipe(steps, batch, rate, max_norm)
    index = torch.from_numpy(batch_indices([seed], len(rows), recipe.batch, recipe.steps))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=recipe.rate)
    model.train()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * (1 - step / recipe.steps)
        part = rows.take(index[step])
        logits = model(input_ids=part.input_ids, attention_mask=part.attention_mask, use_cache=False).logits
        optimizer.zero_grad()
        torch.autograd.backward(row_mean_loss(logits, part.labels).mean())
        torch.nn.utils.clip_grad_norm_(parameters, recipe.max_norm)
        optimizer.step()
    model.eval()
