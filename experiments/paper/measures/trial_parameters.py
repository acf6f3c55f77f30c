"""What a preset says of its trials: sizes of the store, the training and the private sets. Defaults are those of all
presets; a preset names what it changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from experiments.paper.measures.private_sets import PrivatePlan
from experiments.paper.measures.trial import Site, Trial
from gradtf_fl.adapters import Place
from gradtf_fl.config import Count, Rate, Section
from gradtf_fl.curation import CurationConfig
from gradtf_fl.transformer import Backbone, TrainConfig

Sets = Annotated[int, Field(ge=0)]


class TrialParameters(Section):
    """Sizes.

    Attributes:
        cache: folder of stores, checkpoints and scores.
        workers: processes, 0: one per core.
        device: of fine-tuning, "auto": a GPU where there is one.
        public_rules: how many are used, 64 at most.
        pair_singles, plain_singles: shadow sets for each public rule with and without an LLM half.
        pair_mixtures, plain_mixtures: the same on mixtures.
        rows: of a shadow set.
        tuning_steps: of every fine-tuning, shadow or private.
        steps, groups, batch_rows, rate, width: of the Grad-Transformer and its training.
        private_rules, private_rows, test_rows: of the private sets.
    """

    cache: str = "build/trials"
    workers: Annotated[int, Field(ge=0)] = 0
    device: str = "auto"
    public_rules: Annotated[int, Field(ge=1, le=64)] = 64
    pair_singles: Sets = 1
    pair_mixtures: Sets = 16
    plain_singles: Sets = 2
    plain_mixtures: Sets = 48
    rows: Count = 512
    stack: Count = 48
    tuning_steps: Count = 150
    steps: Count = 600
    groups: Count = 32
    batch_rows: Count = 2
    rate: Rate = 2e-3
    width: Count = 96
    private_rules: Count = 8
    private_rows: Count = 1024
    test_rows: Count = 256

    @property
    def site(self) -> Site:
        return Site(Path(self.cache), self.workers, str(Place.find(self.device, "float32").device))

    def private(self, seed: int) -> PrivatePlan:
        """The private sets of a seed."""
        return PrivatePlan(seed, self.private_rules, self.private_rows, self.test_rows, self.tuning_steps)

    def trial(self, seed: int, **changes: Any) -> Trial:
        """The trial of a seed with these sizes; ``changes`` are of its training."""
        plain, llm = CurationConfig().plain, CurationConfig().llm_recipe
        last = self.tuning_steps
        store = CurationConfig(
            seed=seed,
            rows=self.rows,
            rules=self.public_rules,
            single_groups=0,
            extra_singles=0,
            mixture_groups=0,
            pair_singles=self.pair_singles,
            pair_mixtures=self.pair_mixtures,
            plain_singles=self.plain_singles,
            plain_mixtures=self.plain_mixtures,
            stack=self.stack,
            plain=replace(plain, steps=last),
            llm_recipe=replace(llm, steps=last),
            snapshots=(max(1, last // 2), last),
        )
        backbone = Backbone(width=self.width, feed_forward=2 * self.width)
        training = TrainConfig(
            steps=self.steps, groups=self.groups, rows=self.batch_rows, rate=self.rate, seed=seed, backbone=backbone
        )
        return Trial(store, replace(training, **changes))
