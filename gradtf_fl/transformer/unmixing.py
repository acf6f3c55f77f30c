"""Unmixing: which known tasks a first round's sum is made of, told from the update vector itself.

In the first round every organization starts from the same TinyLM, so the sum is a weighted sum of updates that each
organization would have found alone, and updates of the same task are much alike. With one signature a task (its mean
first-round update) and one task for each kind of prompts it is a least-squares problem. Later rounds start from
averages that no organization chose, and where tasks differ a TinyLM that should follow all of them at once answers none
of them; the first sum still names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PASSES = 8
RIDGE = 1e-6
"""Of the mean squared length of a signature: two kinds may have a task in common."""


@dataclass(frozen=True)
class Unmixed:
    """What a first sum says.

    Attributes:
        residuals: for each kind [tasks of it], the log of what is left of the squared length of the sum, as a share,
            with that task and the best ones of all other kinds.
        unexplained: that share with the best task of each kind, 0 to 1.
    """

    residuals: tuple[Tensor, ...]
    unexplained: float


def unmix(signatures: Tensor, first: Tensor, kinds: Sequence[Sequence[int]]) -> Unmixed:
    """Least squares by one kind after the other, until no choice changes.

    Args:
        signatures: float [E, ...], first-round updates of E tasks.
        first: float [...], update after the first round.
        kinds: the tasks (their places) that each kind of prompts could belong to.
    """
    known, wanted = signatures.flatten(1).double(), first.flatten().double()
    length = float(wanted @ wanted)
    if length == 0 or not kinds:
        return Unmixed(tuple(torch.zeros(len(tasks)) for tasks in kinds), 1.0)
    gram, products = known @ known.T, known @ wanted
    ridge = max(RIDGE * float(gram.diagonal().mean()), 1e-12)
    chosen: list[int | None] = [None] * len(kinds)
    residuals: list[Tensor] = [torch.zeros(0)] * len(kinds)
    for _ in range(PASSES):
        before = list(chosen)
        for k, tasks in enumerate(kinds):
            others = [task for j, task in enumerate(chosen) if j != k and task is not None]
            sets = torch.tensor([[*others, task] for task in tasks])  # [T, M]
            left_side = gram[sets[:, :, None], sets[:, None, :]] + ridge * torch.eye(sets.shape[1])
            right = products[sets]
            weights = torch.linalg.solve(left_side, right)
            left = (1 - (weights * right).sum(1) / length).clamp(min=1e-9)
            chosen[k], residuals[k] = tasks[int(left.argmin())], left.log().float()
        if chosen == before:
            break
    return Unmixed(tuple(residuals), float(residuals[-1].min().exp()))
