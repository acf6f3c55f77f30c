"""Noisy empirical risk minimisation as a learning mechanism of shadow sets: stochastic gradient Langevin dynamics.

Corollary 5.3 of the paper suggests mechanisms that bound what an update says about its rows.
theta <- theta - rate g + noise * Normal(0, I), g clipped per adapter (Welling and Teh 2011; Pensia, Jog, Loh 2018);
`gradtf_fl.theory.noisy_iterations` bounds its mutual information from these very numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradtf_fl.curation.shards import Group, Recipes, ShardRows, common_tensors
from gradtf_fl.tasks import TokenRows
from gradtf_fl.training import StackedAdapters, StepsDone, batch_indices


@dataclass(frozen=True)
class LangevinRecipe:
    """In 60 steps of this rate, GSM8K text costs stories260K 4.04 nats a token, after Adam's 4.03 (base 5.60).

    The noise of a step is then a third as long as the longest step (2,240 parameters).
    """

    rate: float = 0.15
    noise: float = 1e-3


def langevin_fine_tune(
    stack: StackedAdapters,
    rows: TokenRows,
    seeds: Sequence[Sequence[int]],
    recipe: LangevinRecipe,
    recipes: Recipes,
    progress: StepsDone | None = None,
) -> Tensor:
    """Updates [snapshots, K, blocks, block_dim] of ``len(seeds)`` adapters; the batches are those of plain training."""
    adapters = len(seeds)
    plain, per_set, rows = recipes.plain, len(rows) // adapters, rows.to(stack.initial.device)
    index = np.stack([batch_indices(seed, per_set, plain.batch, plain.steps) for seed in seeds])
    index += (np.arange(adapters) * per_set)[:, None, None]
    generators = [
        torch.Generator().manual_seed(int(np.random.default_rng([*seed, 2]).integers(2**62))) for seed in seeds
    ]
    theta, taken = stack.initial.repeat(adapters, 1, 1), []
    for step in range(plain.steps):
        theta = theta.detach().requires_grad_(True)
        losses = stack.row_losses(theta, rows.take(torch.from_numpy(index[:, step].reshape(-1))))
        torch.autograd.backward(losses.reshape(adapters, -1).mean(1).sum())
        assert theta.grad is not None
        norms = theta.grad.flatten(1).norm(dim=1)
        gradient = theta.grad * (plain.max_norm / (norms + 1e-6)).clamp(max=1.0)[:, None, None]
        noise = torch.stack([torch.randn(theta.shape[1:], generator=generator) for generator in generators])
        theta = theta.detach() - recipe.rate * gradient + recipe.noise * noise.to(theta.device) * stack.mask
        if step + 1 in recipes.snapshots:
            taken.append(theta - stack.initial)
        if progress is not None:
            progress(step + 1, plain.steps)
    return torch.stack(taken)


def langevin_shard(
    recipes: Recipes,
    tiny: StackedAdapters,
    rows: ShardRows,
    groups: Sequence[Group],
    seed: list[int],
    progress: StepsDone,
) -> dict[str, Tensor]:
    """A shard whose TinyLM updates are learned by Langevin dynamics."""
    tensors = common_tensors(rows, groups)
    seeds = [[*seed, number] for number in range(len(tensors["group"]))]
    tensors["tiny"] = langevin_fine_tune(tiny, rows.tiny, seeds, LangevinRecipe(), recipes, progress).cpu()
    return tensors
