"""Validation on GENERATED updates of shadow federations that training never sees.

A teacher-forced loss is no guide: generation feeds the model its own blocks. Held-out federations are of tasks that
other federations train, or of mixtures; their sets, rows and updates are drawn for nothing else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import torch

from gradtf_fl.curation import Shard
from gradtf_fl.errors import ConfigError
from gradtf_fl.transformer.objectives import Objectives
from gradtf_fl.transformer.sampling import FederationRef, ShadowSampler
from gradtf_fl.transformer.train_config import TrainConfig

BATCHES = 4
"""Batches of a validation, the same ones each time."""


def hold_out(shards: list[Shard], share: float, seed: int) -> frozenset[FederationRef]:
    """About ``share`` of the federations of each kind (epsilon, mixture or not, with or without LLM updates).

    The last federation of a task that is no mixture stays in training. Raises ConfigError when none can be held out.
    """
    kinds: dict[str, list[FederationRef]] = {}
    left: dict[str, int] = {}
    tasks: dict[FederationRef, str] = {}
    for number, shard in enumerate(shards):
        for g, about in enumerate(shard.about["groups"]):
            mixture = len(about["parts"]) > 1
            kind = json.dumps([about["epsilon"], mixture, "llm" in shard.tensors])
            task = json.dumps([about["epsilon"], about["task"]])
            kinds.setdefault(kind, []).append((number, g))
            tasks[number, g] = task
            left[task] = left.get(task, 0) + (2 if mixture else 1)
    rng = np.random.default_rng([seed, 17])
    held: set[FederationRef] = set()
    for kind in sorted(kinds):
        refs = kinds[kind]
        wanted = min(max(1, round(share * len(refs))), len(refs) - 1)
        for place in rng.permutation(len(refs)):
            task = tasks[refs[place]]
            if wanted and left[task] > 1:
                held.add(refs[place])
                left[task] -= 1
                wanted -= 1
    if not held:
        raise ConfigError("no federation can be held out for validation: every task of the store has one only")
    return frozenset(held)


@dataclass(frozen=True)
class Validation:
    """The federations held out, and a sampler that draws from them alone."""

    federations: frozenset[FederationRef]
    sampler: ShadowSampler

    @classmethod
    def of(cls, shards: list[Shard], config: TrainConfig) -> Validation:
        """ConfigError when none can be held out, or for objective ``mse`` none with LLM updates."""
        held = hold_out(shards, config.validation_share, config.seed)
        everyone = {(number, g) for number, shard in enumerate(shards) for g in range(len(shard.about["groups"]))}
        sampler = ShadowSampler(shards, config.plain_share, config.mixture_share, everyone - held, config.averaged)
        if config.objective == "mse" and not sampler.pairs:
            raise ConfigError("no federation with LLM updates can be held out for validation: the store has too few")
        return cls(held, sampler)

    @torch.no_grad()
    def loss(self, objectives: Objectives, config: TrainConfig) -> float:
        """Mean over `BATCHES` batches of held-out federations, without noise on the inputs.

        Nats of the frozen LLM on public rows; for objective ``mse`` the standardised squared distance of generated
        updates to LLM updates of the same task.
        """
        rng = np.random.default_rng([config.seed, 13])
        objectives.model.eval()
        total = torch.zeros((), device=objectives.place.device)
        for _ in range(BATCHES):
            if config.objective == "mse":
                total += objectives.distance(*self.sampler.tuples(rng, config.groups))
            else:
                batch = self.sampler.batch(rng, config.groups, config.rows)
                total += objectives.functional(batch.updates, batch.rows)[0]
        objectives.model.train()
        return float(objectives.processes.total(total / BATCHES))
