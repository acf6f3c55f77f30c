"""Plain (non-private) LoRA fine-tuning of a PEFT model: the reference that stacked training has to equal."""

from __future__ import annotations

from typing import Any

import torch

from gradtf_fl.adapters import devices_of
from gradtf_fl.tasks import LOGIT_BYTES, TokenRows
from gradtf_fl.training.loss import row_mean_loss
from gradtf_fl.training.stacked import PlainRecipe, batch_indices


def fine_tune(
    model: Any,
    rows: TokenRows,
    *,
    steps: int,
    batch: int,
    rate: float,
    seed: int,
    max_norm: float = 1.0,
    logit_bytes: int = LOGIT_BYTES,
) -> None:
    """Fine-tune the attached adapter in place: Adam, linear decay, per-row mean loss, gradient norm clipped.

    A batch goes through the model in parts whose logits take ``logit_bytes`` at most (float32), a row at least.
    """
    recipe = PlainRecipe(steps, batch, rate, max_norm)
    index = torch.from_numpy(batch_indices([seed], len(rows), recipe.batch, recipe.steps))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=recipe.rate)
    device = devices_of(model)[0]
    vocabulary = model.get_input_embeddings().weight.shape[0]
    at_once = max(1, logit_bytes // (4 * vocabulary * rows.input_ids.shape[1]))
    model.train()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * (1 - step / recipe.steps)
        optimizer.zero_grad()
        for chosen in torch.split(index[step], at_once):
            part = rows.take(chosen).to(device)
            logits = model(input_ids=part.input_ids, attention_mask=part.attention_mask, use_cache=False).logits
            torch.autograd.backward(row_mean_loss(logits, part.labels).sum() / batch)
        torch.nn.utils.clip_grad_norm_(parameters, recipe.max_norm)
        optimizer.step()
    model.eval()
