"""A shard's tensors: shadow sets of one plan entry, fine-tuned together, whatever task their rows are from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from gradtf_fl.curation.store import as_int32
from gradtf_fl.tasks import TokenRows
from gradtf_fl.training import (
    DpRecipe,
    PlainRecipe,
    StackedAdapters,
    StepsDone,
    dp_fine_tune_stacked,
    fine_tune_stacked,
)

DELTA = 1e-5
"""Of a DP shadow set's whole training."""


class Group(Protocol):
    """A shadow federation: this many members, each with a shadow set of its own, under one epsilon."""

    @property
    def members(self) -> int:
        """Shadow sets."""

    @property
    def epsilon(self) -> float | None:
        """What it trains under; None without DP."""

    def about(self) -> dict[str, Any]:
        """What the store says of it; see `store`."""


class Recipes(Protocol):
    """How shadow sets are fine-tuned; see `CurationConfig`."""

    @property
    def rows(self) -> int: ...
    @property
    def plain(self) -> PlainRecipe: ...
    @property
    def llm_recipe(self) -> PlainRecipe: ...
    @property
    def dp(self) -> DpRecipe: ...
    @property
    def snapshots(self) -> tuple[int, ...]: ...
    @property
    def last_k(self) -> int: ...


G = TypeVar("G", bound=Group)


@dataclass(frozen=True)
class ShardRows:
    """The public rows of all sets of a shard, set by set, in the tokens of either model."""

    tiny: TokenRows
    llm: TokenRows


def packed(kind: str, groups: Sequence[G], stack: int) -> list[tuple[str, list[G]]]:
    """Named shards of at most ``stack`` sets each (a larger federation is a shard of its own)."""
    shards: list[list[G]] = []
    for group in groups:
        if not shards or sum(g.members for g in shards[-1]) + group.members > stack:
            shards.append([])
        shards[-1].append(group)
    return [(f"{kind}-{number:04d}", part) for number, part in enumerate(shards)]


def common_tensors(rows: ShardRows, groups: Sequence[Group]) -> dict[str, Tensor]:
    """Rows and membership of a shard; see `store`."""
    members = [number for number, group in enumerate(groups) for _ in range(group.members)]
    ids, labels = (
        as_int32(tokens.reshape(len(members), -1, tokens.shape[1])) for tokens in (rows.llm.input_ids, rows.llm.labels)
    )
    return {"input_ids": ids, "labels": labels, "group": torch.tensor(members, dtype=torch.int32)}


def plain_shard(
    recipes: Recipes,
    tiny: StackedAdapters,
    llm: StackedAdapters | None,
    rows: ShardRows,
    groups: Sequence[Group],
    seed: list[int],
    progress: StepsDone,
) -> dict[str, Tensor]:
    """Fine-tune the TinyLM without DP on each set, and the LLM too where it is given."""
    first = recipes.plain.steps
    steps = first + (0 if llm is None else recipes.llm_recipe.steps)
    tensors = common_tensors(rows, groups)
    sets = len(tensors["group"])
    seeds = [[*seed, number] for number in range(sets)]

    def of_tiny(done: int, _: int) -> None:
        progress(done, steps)

    def of_llm(done: int, _: int) -> None:
        progress(first + done, steps)

    tensors["tiny"] = fine_tune_stacked(tiny, rows.tiny, sets, recipes.plain, seeds, recipes.snapshots, of_tiny).cpu()
    if llm is None:
        return tensors
    last = range(recipes.llm_recipe.steps - recipes.last_k + 1, recipes.llm_recipe.steps + 1)
    final = fine_tune_stacked(llm, rows.llm, sets, recipes.llm_recipe, seeds, list(last), of_llm).cpu()
    tensors["llm"] = final[-1].clone()
    if recipes.last_k > 1:
        tensors["llm_last"] = final.half()
    return tensors


def dp_shard(
    recipes: Recipes,
    tiny: StackedAdapters,
    rows: ShardRows,
    groups: Sequence[Group],
    seed: list[int],
    progress: StepsDone,
) -> dict[str, Tensor]:
    """Shadow federations that train the TinyLM in rounds under DP-SGD, exactly as organizations do."""
    from gradtf_fl.privacy import noise_multiplier

    tensors = common_tensors(rows, groups)
    steps = recipes.dp.rounds * recipes.dp.steps
    sigma = {
        epsilon: noise_multiplier(epsilon, DELTA, recipes.dp.batch / recipes.rows, steps)
        for epsilon in {group.epsilon for group in groups}
        if epsilon
    }
    sigmas = [sigma[group.epsilon] for group in groups if group.epsilon for _ in range(group.members)]
    members = tensors["group"].tolist()
    tensors["tiny"] = dp_fine_tune_stacked(tiny, rows.tiny, members, sigmas, recipes.dp, [*seed, 1], progress).cpu()
    return tensors
