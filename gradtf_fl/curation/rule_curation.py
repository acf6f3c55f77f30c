"""Curation for House Rules, the embedded benchmark: which shadow federations there are, and their rows.

Three kinds of shards. "dp": shadow federations of 1-5 organizations that train the TinyLM in rounds under DP-SGD at
epsilons between .5 and 8, exactly as organizations do. "plain": shadow sets on which the TinyLM is fine-tuned without
DP. "pairs": shadow sets on which both models are, the paper's tuples: they give the controls and the output's scale.
TinyLM shadows cost little and the functional objective learns from them alone, so most shadow sets have no LLM half.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from gradtf_fl.adapters import AdapterSpec, Place
from gradtf_fl.curation.kept_models import kept_stack
from gradtf_fl.curation.shadow import (
    EPSILONS,
    EXTRA_EPSILON,
    FEDERATIONS,
    GROUP_SIZES,
    ShadowGroup,
    draw_group,
    group_rows,
    mixture_task,
    single_task,
)
from gradtf_fl.curation.shards import ShardRows, dp_shard, packed, plain_shard
from gradtf_fl.tasks import house_rules as hr
from gradtf_fl.training import DpRecipe, PlainRecipe, StepsDone, stack_rows


@dataclass(frozen=True)
class CurationConfig:
    """What is curated. The defaults make the store that the shipped Grad-Transformer was trained on.

    >>> from gradtf_fl import CurationConfig
    >>> trial = CurationConfig(rules=3, single_groups=1, extra_singles=0, mixture_groups=0, plain_mixtures=0)
    >>> [name for name, federations in trial.plan() if name.startswith("dp")]
    ['dp-0000']

    Attributes:
        rows: rows in a shadow set.
        single_groups: DP federations for each public rule: this many of `FEDERATIONS`, over and over.
        extra_singles: DP federations of one member for each public rule at `EXTRA_EPSILON`.
        mixture_groups: DP federations on mixtures of three rules.
        plain_singles: plain TinyLM shadow sets for each public rule.
        plain_mixtures: plain TinyLM shadow sets on mixtures.
        pair_singles: shadow sets for each public rule on which both models are fine-tuned.
        pair_mixtures: the same on mixtures.
        stack: shadow sets fine-tuned at once.
        last_k: LLM updates of this many last steps are kept too (the paper's extra tuples).
        rules: how many public rules are used (fewer make a quick trial).
        plain, llm_recipe, dp: how the TinyLM is fine-tuned without DP, the LLM, and the TinyLM with DP. Larger batches
            make two updates of one rule more alike: the nearest shadow update is of the right rule in .64 of cases
            with 12 rows a step, in .86 with 32.
        snapshots: steps of ``plain`` after which the TinyLM's update is kept.
        spec: of both models' adapters.
    """

    seed: int = 0
    tiny: str = "embedded:tiny"
    llm: str = "embedded:llm"
    rows: int = 1024
    single_groups: int = 14
    extra_singles: int = 6
    mixture_groups: int = 80
    plain_singles: int = 6
    plain_mixtures: int = 800
    pair_singles: int = 3
    pair_mixtures: int = 64
    stack: int = 32
    last_k: int = 1
    rules: int = 64
    plain: PlainRecipe = PlainRecipe(batch=32, rate=1e-2)
    llm_recipe: PlainRecipe = PlainRecipe()
    dp: DpRecipe = DpRecipe()
    snapshots: tuple[int, ...] = (20, 40, 75, 110, 150)
    spec: AdapterSpec = AdapterSpec()

    def header(self) -> dict[str, Any]:
        """Everything that a shard depends on."""
        return {"config": asdict(self)}

    def plan(self) -> list[tuple[str, list[ShadowGroup]]]:
        """All shards and the federations in them, drawn from the seed alone (so that a resumed run plans the same)."""
        rng = np.random.default_rng([self.seed, 1])
        public = hr.split_rules()[0][: self.rules]
        tasks = {
            kind: [single_task(rule) for _ in range(singles) for rule in public]
            + [mixture_task(rng) for _ in range(mixtures)]
            for kind, singles, mixtures in (
                ("pairs", self.pair_singles, self.pair_mixtures),
                ("plain", self.plain_singles, self.plain_mixtures),
                ("dp", self.single_groups, self.mixture_groups),
            )
        }
        drawn = {kind: [draw_group(rng, task, 1, None) for task in tasks[kind]] for kind in ("pairs", "plain")}
        designed = [FEDERATIONS[i % len(FEDERATIONS)] for i in range(self.single_groups) for _ in public]
        designed += [(int(rng.choice(GROUP_SIZES)), float(rng.choice(EPSILONS))) for _ in range(self.mixture_groups)]
        drawn["dp"] = [draw_group(rng, task, *kind) for task, kind in zip(tasks["dp"], designed, strict=True)]
        shards = []
        for kind, groups in drawn.items():
            shards += packed(kind, [groups[i] for i in rng.permutation(len(groups))], self.stack)
        extra = [single_task(rule) for _ in range(self.extra_singles) for rule in public]
        return shards + packed("dp-extra", [draw_group(rng, task, 1, EXTRA_EPSILON) for task in extra], self.stack)

    def make_shard(self, number: int, progress: StepsDone, place: Place | None) -> dict[str, torch.Tensor]:
        """Tensors of shard ``number`` of the plan, from the seed alone."""
        name, groups = self.plan()[number]
        seed = [self.seed, 7, number]
        tiny = kept_stack(self.tiny, self.spec, place)
        rng = np.random.default_rng(seed)
        tokens = stack_rows([group_rows(rng, group, self.rows) for group in groups])
        rows = ShardRows(tokens, tokens)
        if name.startswith("dp"):
            return dp_shard(self, tiny, rows, groups, seed, progress)
        llm = kept_stack(self.llm, self.spec, place) if name.startswith("pairs") else None
        return plain_shard(self, tiny, llm, rows, groups, seed, progress)
