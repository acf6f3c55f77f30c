"""Train K LLM adapters at once on rows that K tuned TinyLMs labelled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gradtf_fl.baselines.losses import Objective
from gradtf_fl.baselines.scoring import answer_labels, answer_logits
from gradtf_fl.tasks.rows import TokenRows
from gradtf_fl.training.stacked import PlainRecipe, StackedAdapters, batch_indices

Teacher = Callable[[TokenRows], Tensor]
"""TokenRows of K * R rows -> the weak models' distributions [K * R, t, V] at `answer_labels`' positions."""


def distil_stacked(
    stack: StackedAdapters,
    rows: TokenRows,
    adapters: int,
    objective: Objective,
    recipe: PlainRecipe,
    seeds: Sequence[Sequence[int]],
    teacher: Teacher | None = None,
) -> Tensor:
    """As `training.stacked.fine_tune_stacked`, batches included, with any row loss and, if given, soft targets.

    Soft targets are computed for each batch: stored for all rows they would take rows * tokens * vocabulary floats.

    Returns:
        float32 [adapters, blocks, block_dim]: LLM updates, differences to the initial adapter.
    """
    per_set = len(rows) // adapters
    index = np.stack([batch_indices(seed, per_set, recipe.batch, recipe.steps) for seed in seeds])
    index += (np.arange(adapters) * per_set)[:, None, None]
    theta = nn.Parameter(stack.initial.repeat(adapters, 1, 1))
    optimizer = torch.optim.Adam([theta], lr=recipe.rate, fused=True)
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * (1 - step / recipe.steps)
        part = rows.take(torch.from_numpy(index[:, step].reshape(-1)))
        labels, soft = answer_labels(part), None
        if teacher is not None:
            with torch.no_grad():
                soft = teacher(part)
        logits = answer_logits(stack, theta, part).float()
        losses = objective(logits, labels, soft, adapters, step / recipe.steps)
        optimizer.zero_grad()
        torch.autograd.backward(losses.reshape(adapters, -1).mean(1).sum())
        assert theta.grad is not None
        norms = theta.grad.flatten(1).norm(dim=1)
        theta.grad *= (recipe.max_norm / (norms + 1e-6)).clamp(max=1.0)[:, None, None]
        optimizer.step()
    return theta.detach() - stack.initial
