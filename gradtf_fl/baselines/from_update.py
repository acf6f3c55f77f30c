"""Ways that make an LLM update from one TinyLM update alone, as baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from gradtf_fl.adapters import Vector
from gradtf_fl.baselines.controls import Controls
from gradtf_fl.baselines.cross_lora import CrossLora
from gradtf_fl.baselines.interface import Case, Outcome, Pair, outcome_of_updates
from gradtf_fl.baselines.pca_ridge import PcaRidge
from gradtf_fl.errors import ConfigError

Generate = Callable[[Vector], Vector]
"""TinyLM update [L1, n1] -> LLM update [L2, n2]."""


@dataclass(frozen=True)
class FromUpdate:
    """A baseline around ``generate``. The Grad-Transformer fits as well: ``FromUpdate("ours", "...", t.generate)``.

    Attributes:
        measure: figures about one update for the outcome's notes (their mean over organizations is noted).
    """

    name: str
    source: str
    generate: Generate
    measure: Callable[[Vector], Mapping[str, float]] | None = None
    private_rows_leave: bool = False

    def run(self, pair: Pair, case: Case) -> Outcome:
        """One call of ``generate`` an organization; ConfigError when it makes updates for another LLM."""
        updates = [update.numpy() for update in case.updates]
        made = torch.from_numpy(np.stack([self.generate(update) for update in updates]))
        expected = tuple(pair.llm.initial.shape)
        if tuple(made.shape[1:]) != expected:
            raise ConfigError(f"{self.name} makes LLM updates {tuple(made.shape[1:])}, this pair's are {expected}")
        found = [self.measure(update) for update in updates] if self.measure else []
        notes = {key: float(np.mean([one[key] for one in found])) for key in (found[0] if found else {})}
        return outcome_of_updates(pair, made, notes)


def update_only_baselines(controls: Controls, pair: Pair) -> tuple[FromUpdate, ...]:
    """Mean, nearest, ridge, per-block PCA ridge (fitted here, on the controls' tuples) and Cross-LoRA."""
    pca = PcaRidge.fit(controls.tiny, controls.llm)
    cross = CrossLora(pair.tiny, pair.llm)

    def truncation(update: Vector) -> Mapping[str, float]:
        error = cross.truncation_error(update)
        return {"subspace_error": error.subspace, "rank_error": error.rank}

    return (
        FromUpdate("mean", "control", lambda _: controls.mean_update()),
        FromUpdate("nearest", "control", controls.nearest),
        FromUpdate("ridge", "control: ridge between flattened updates, dual form", controls.ridge),
        FromUpdate("pca-ridge", "anchor-space ridge regression, OpenReview HF8qoeEo1u", pca.generate),
        FromUpdate("cross-lora", "Xia et al. 2025, arXiv 2508.05232", cross.generate, truncation),
    )
