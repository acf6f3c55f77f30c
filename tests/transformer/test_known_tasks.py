"""Known tasks: prompts are split where two tasks explain the TinyLM better than one, and nowhere else."""

from __future__ import annotations

import torch

from gradtf_fl.transformer.known_tasks import KnownRecipe, split_kinds

RECIPE = KnownRecipe(least_split=0.1, least_kind=4)


def holds(*tokens: list[int]) -> torch.Tensor:
    """bool [n, V] out of a list of 0 and 1 for each token."""
    return torch.tensor(tokens).T.bool()


def test_prompts_are_split_by_the_token_that_tells_two_tasks_apart() -> None:
    first = torch.tensor([0.0] * 8 + [-5.0] * 8)
    scores = torch.stack([first, -5 - first, torch.full((16,), -3.0)])
    kinds = split_kinds(scores, holds([1, 0] * 8, [0] * 8 + [1] * 8), RECIPE)
    assert [(kind.conditions, kind.task, kind.score) for kind in kinds] == [
        (((1, True),), 1, 0.0),
        (((1, False),), 0, 0.0),
    ]


def test_prompts_that_one_task_explains_stay_together() -> None:
    scores = torch.stack([torch.full((16,), -1.0), torch.full((16,), -2.0)])
    kinds = split_kinds(scores, holds([1, 0] * 8, [0] * 8 + [1] * 8), RECIPE)
    assert [(kind.conditions, kind.task) for kind in kinds] == [((), 0)]


def test_a_kind_has_its_least_probes() -> None:
    first = torch.tensor([0.0] * 14 + [-9.0] * 2)
    kinds = split_kinds(torch.stack([first, -9 - first]), holds([0] * 14 + [1] * 2), RECIPE)
    assert len(kinds) == 1


def test_a_kind_is_split_again() -> None:
    scores = torch.full((3, 24), -6.0)
    for task in range(3):
        scores[task, 8 * task : 8 * task + 8] = 0.0
    kinds = split_kinds(scores, holds([1] * 8 + [0] * 16, [0] * 8 + [1] * 8 + [0] * 8), RECIPE)
    assert sorted(kind.task for kind in kinds) == [0, 1, 2]
    assert all(kind.score == 0 for kind in kinds)
