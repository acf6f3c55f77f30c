"""What a Grad-Transformer is trained on: TinyLM updates drawn from a tuple store as rounds will deliver them.

Sums over organizations, early rounds and DP-SGD shape an update, so the inputs are averages over members of a shadow
federation or of several with the same hidden task, snapshots along the whole course of fine-tuning, and updates
trained under DP-SGD at several epsilons. DP shadow sets are dear, so their noise is used twice: residuals around each
task's mean, mixed at random, are added to other tasks' updates (`ShadowSampler.noise`).

Shards may be larger than memory (see `TupleStore`): a batch reads the sets that it draws, and nothing else is kept but
`RESIDUAL_BYTES` of residuals.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from gradtf_fl.curation import Shard, token_rows, token_tensors
from gradtf_fl.tasks import TokenRows

AVERAGED, SINGLE = (1, 2, 3, 5), (1,)
"""How many updates of one task, from any of its federations, are averaged; and for the ablation without averages."""
OWN_FEDERATION, OWN_EPSILON = 0.5, 0.25
"""Shares of DP inputs that average members of one federation, and sets of the same epsilon (the rest: of any)."""
WEIGHT_CONCENTRATION = 8.0
"""Weights of an average are Dirichlet(8): nearly equal, never twice the same."""

UNTRIED, FLOOR, KEPT = 1.0, 0.05, 0.8
"""A task is drawn in proportion to its running loss (nats, decay .8) plus .05; before the first draw it counts 1."""

RESIDUAL_BYTES = 1 << 27
"""Of residuals of DP sets in memory at most. Where a store has more, sets drawn once stand for all: a mixture of 72 of
them at the paper's shapes, of all 2,000 of the shipped store, which take 18 MB."""
LARGEST_SAMPLE = 2048
"""LLM updates that the output's scale is learnt from at most."""

ALL_BLOCKS = slice(None)
T = TypeVar("T")
SetRef = tuple[int, int]  # (shard, set in it)
FederationRef = tuple[int, int]  # (shard, federation in it)
Task = tuple[float | None, str]  # (epsilon, None without DP; the hidden task, see `Shard`)


@dataclass(frozen=True)
class Batch:
    """Inputs [groups, L1, n1], public rows of the same federations [groups * rows, T], and each group's task."""

    updates: Tensor
    rows: TokenRows
    tasks: list[Task]


@dataclass(frozen=True)
class Average:
    """A weighted average of TinyLM updates that was drawn; `ShadowSampler.average` reads it.

    Attributes:
        snapshot: which update of each set.
        members: the sets.
        weights: float32 [members], which sum to 1.
    """

    snapshot: int
    members: list[SetRef]
    weights: Tensor


@dataclass(frozen=True)
class Draw:
    """An input of a batch that was drawn: row ``rows[n]`` of set ``sets[n]`` of a shard, int64 [R] each."""

    task: Task
    average: Average
    shard: int
    sets: Tensor
    rows: Tensor


class ShadowSampler:
    """Draws averaged TinyLM updates [L1, n1] with public rows or with LLM updates of the same hidden task.

    Args:
        plain_share: share of inputs from sets without DP.
        mixture_share: share of inputs whose task is a mixture of rules.
        left_out: federations that are never drawn from.
        averaged: false draws single updates of a task where `AVERAGED` would say how many.
    """

    def __init__(
        self,
        shards: list[Shard],
        plain_share: float,
        mixture_share: float,
        left_out: Set[FederationRef] = frozenset(),
        averaged: bool = True,
    ) -> None:
        self.shards = shards
        self.plain_share = plain_share
        self.mixture_share = mixture_share
        self.counts = AVERAGED if averaged else SINGLE
        self.pairs: dict[str, list[SetRef]] = {}  # sets with an LLM update, by hidden task
        self.federations: dict[Task, list[list[SetRef]]] = {}  # each the sets of one shadow federation
        self._pools: dict[tuple[float | None, bool], list[Task]] = {}  # by epsilon, mixture
        for number, shard in enumerate(shards):
            for g, about in enumerate(shard.about["groups"]):
                if (number, g) in left_out:
                    continue
                sets = [(number, int(k)) for k in (shard.tensors["group"] == g).nonzero().flatten()]
                task = (about["epsilon"], about["task"])
                if task not in self.federations:
                    self._pools.setdefault((task[0], len(about["parts"]) > 1), []).append(task)
                self.federations.setdefault(task, []).append(sets)
                if "llm" in shard.tensors:
                    self.pairs.setdefault(task[1], []).extend(sets)
        self.sets: dict[Task, list[SetRef]] = {  # of all its federations
            task: [ref for federation in parts for ref in federation] for task, parts in self.federations.items()
        }
        self._of_any_epsilon: dict[str, list[SetRef]] = {}
        for (epsilon, hidden), refs in self.sets.items():
            if epsilon is not None:
                self._of_any_epsilon.setdefault(hidden, []).extend(refs)
        self._epsilons = sorted({epsilon for epsilon, _ in self._pools if epsilon is not None})
        self.difficulty = dict.fromkeys(self.federations, UNTRIED)
        self._paired = [task for task in self.federations if task[1] in self.pairs]

    def outputs(self) -> list[SetRef]:
        """Sets that have an LLM update, in the store's order; of more than `LARGEST_SAMPLE` so many, drawn once."""
        return _some(sorted(ref for refs in self.pairs.values() for ref in refs), LARGEST_SAMPLE)

    def llm_updates(self, refs: Sequence[SetRef], blocks: slice = ALL_BLOCKS) -> Tensor:
        """These ``blocks`` of the LLM updates [N, L2, n2] of sets that have one."""
        return torch.stack([self.shards[number].tensors["llm"][k, blocks] for number, k in refs])

    def _last(self, ref: SetRef) -> Tensor:
        last: Tensor = self.shards[ref[0]].tensors["tiny"][-1, ref[1]]
        return last

    def _dp_sets(self) -> list[list[SetRef]]:
        """DP sets by task, more than two of each and of all so many that they fit into `RESIDUAL_BYTES`."""
        tasks = [refs for task, refs in self.sets.items() if task[0] is not None and len(refs) > 2]
        if not tasks:
            return []
        fitting = max(3, RESIDUAL_BYTES // (4 * self._last(tasks[0][0]).numel()))
        tasks = _some(tasks, fitting // 3)
        wanted, least = sum(map(len, tasks)), 3 * len(tasks)
        if wanted <= fitting:
            return tasks
        return [_some(refs, 3 + (len(refs) - 3) * (fitting - least) // (wanted - least)) for refs in tasks]

    @cached_property
    def _residuals(self) -> Tensor:
        """Noise of single DP sets [R, L1 * n1]: what is left of each beyond the direction of its task's mean."""
        tasks = self._dp_sets()
        if not tasks:
            return torch.zeros(0, 0)
        residuals = torch.empty(sum(map(len, tasks)), self._last(tasks[0][0]).numel())
        begin = 0
        for refs in tasks:
            updates = torch.stack([self._last(ref).flatten() for ref in refs])
            mean = updates.mean(0)
            along = updates @ mean / mean.square().sum()  # moving further the same way is no noise
            end = begin + len(refs)
            residuals[begin:end] = (updates - along[:, None] * mean) * (len(refs) / (len(refs) - 1)) ** 0.5
            begin = end
        return residuals

    def noise(self, updates: Tensor, scale: float, generator: torch.Generator) -> Tensor:
        """Noise like that of DP shadow sets for ``updates`` [B, L1, n1]; each one's strength is U(0, ``scale``).

        A random mixture of all residuals has their covariance. Zero when the store holds no DP federations.
        """
        count = len(self._residuals)
        if count == 0:
            return torch.zeros_like(updates)
        mixture = torch.randn(len(updates), count, generator=generator) / count**0.5
        strength = scale * torch.rand(len(updates), 1, generator=generator)
        noise: Tensor = ((strength * mixture) @ self._residuals).reshape(updates.shape)
        return noise

    def draw_task(self, rng: np.random.Generator) -> Task:
        """A task: plain or an epsilon, and single or mixture, by their shares; among those, hard ones more often."""
        plain, mixture = rng.random() < self.plain_share, bool(rng.random() < self.mixture_share)
        epsilon = None if plain or not self._epsilons else self._epsilons[rng.integers(len(self._epsilons))]
        pool = self._pools.get((epsilon, mixture)) or self._pools.get((None, mixture)) or list(self.federations)
        weights = np.array([self.difficulty[task] for task in pool]) + FLOOR
        return pool[rng.choice(len(pool), p=weights / weights.sum())]

    def learned(self, tasks: list[Task], losses: list[float]) -> None:
        """Take note of the losses (nats) of a batch's groups."""
        for task, loss in zip(tasks, losses, strict=True):
            self.difficulty[task] = KEPT * self.difficulty[task] + (1 - KEPT) * loss

    def _draw_average(self, rng: np.random.Generator, task: Task, federation: list[SetRef]) -> Average:
        """An average over some members of ``federation``, or over sets anywhere with its task."""
        kind = 1.0 if task[0] is None else rng.random()
        if kind < OWN_FEDERATION:
            members = federation
            count = int(rng.integers(1, len(members) + 1))  # some may have dropped out
        else:
            same = task[0] is None or kind < OWN_FEDERATION + OWN_EPSILON
            members = self.sets[task] if same else self._of_any_epsilon[task[1]]
            count = min(len(members), int(rng.choice(self.counts)))
        snapshots = self.shards[members[0][0]].tensors["tiny"].shape[0]
        snapshot = max(int(rng.integers(snapshots)), int(rng.integers(snapshots)))  # late ones more often
        chosen = [members[i] for i in rng.choice(len(members), count, replace=False)]
        weights = torch.from_numpy(rng.dirichlet([WEIGHT_CONCENTRATION] * count)).float()
        return Average(snapshot, chosen, weights)

    def average(self, drawn: Average, blocks: slice = ALL_BLOCKS) -> Tensor:
        """These ``blocks`` of an average [L1, n1]."""
        parts = torch.stack([self.shards[n].tensors["tiny"][drawn.snapshot, k, blocks] for n, k in drawn.members])
        average: Tensor = torch.tensordot(drawn.weights, parts, 1)
        return average

    def _any_federation(self, rng: np.random.Generator, task: Task) -> list[SetRef]:
        federations = self.federations[task]
        return federations[rng.integers(len(federations))]

    def draws(self, rng: np.random.Generator, groups: int, rows: int) -> list[Draw]:
        """A batch of ``groups`` federations and ``rows`` public rows of each, drawn and not read yet."""
        drawn = []
        for task in [self.draw_task(rng) for _ in range(groups)]:
            federation = self._any_federation(rng, task)
            average = self._draw_average(rng, task, federation)
            number = federation[0][0]
            members = torch.tensor([k for _, k in federation])
            sets = members[torch.from_numpy(rng.integers(len(members), size=rows))]
            held = self.shards[number].tensors["input_ids"].shape[1]
            drawn.append(Draw(task, average, number, sets, torch.from_numpy(rng.integers(held, size=rows))))
        return drawn

    def batch(self, rng: np.random.Generator, groups: int, rows: int) -> Batch:
        """Inputs of ``groups`` federations and ``rows`` public rows of each."""
        drawn = self.draws(rng, groups, rows)
        updates = torch.stack([self.average(draw.average) for draw in drawn])
        ids, labels = token_tensors([token_rows(self.shards[draw.shard], draw.sets, draw.rows) for draw in drawn])
        return Batch(updates, TokenRows(ids, torch.ones_like(ids), labels), [draw.task for draw in drawn])

    def tuples(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """(TinyLM updates [count, L1, n1], LLM updates [count, L2, n2] of sets with the same hidden task)."""
        tiny, llm = [], []
        for _ in range(count):
            task = self._paired[rng.integers(len(self._paired))]
            tiny.append(self.average(self._draw_average(rng, task, self._any_federation(rng, task))))
            twins = self.pairs[task[1]]
            number, k = twins[rng.integers(len(twins))]
            tensors = self.shards[number].tensors
            snapshots = tensors["llm_last"] if "llm_last" in tensors else tensors["llm"][None]
            llm.append(snapshots[int(rng.integers(len(snapshots))), k].float())
        return torch.stack(tiny), torch.stack(llm)


def _some(items: list[T], most: int) -> list[T]:
    """All ``items``, or ``most`` of them, always the same ones, in their order."""
    if len(items) <= most:
        return items
    return [items[i] for i in sorted(np.random.default_rng(0).choice(len(items), most, replace=False))]
