"""Train K LLM adapters at once on rows that K tuned TinyLMs labelled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradtf_fl.baselines.losses import Objective
from gradtf_fl.tasks import TokenRows
from gradtf_fl.training import PlainRecipe, StackedAdapters, descend

Teacher = Callable[[TokenRows], Tensor]
"""TokenRows of K * R rows -> the weak models' distributions [K * R, t, V] at `TokenRows.answer_labels`' places."""


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

    def losses(theta: Tensor, part: TokenRows, done: float) -> Tensor:
        soft = None
        if teacher is not None:
            with torch.no_grad():
                soft = teacher(part)
        return objective(stack.answer_logits(theta, part).float(), part.answer_labels(), soft, adapters, done)

    theta = stack.initial.repeat(adapters, 1, 1)
    for tuned in descend(stack, rows, adapters, recipe, seeds, losses):
        theta = tuned
    return theta - stack.initial
