"""Is this Grad-Transformer good enough to deploy? Judged on public rows that no shadow set has seen.

The provider plays one organization for each source, and one that holds a mixture of all: the TinyLM is tuned on judged
rows, an LLM update is made from its update in every way there is, and each is scored on other judged rows by loss per
character. What counts is the share of the LLM's own gain from tuning on the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

from gradtf_fl.adapters import Vector
from gradtf_fl.baselines import Controls, score_rows
from gradtf_fl.curation import TaskCuration, encode_causal
from gradtf_fl.errors import ConfigError
from gradtf_fl.preparation.library import from_library
from gradtf_fl.tasks import Row, TokenRows
from gradtf_fl.training import StackedAdapters, fine_tune_stacked
from gradtf_fl.transformer import GradTransformer, TaskLibrary

BASE, TUNED, OURS = "LLM base", "LLM tuned", "Grad-Transformer"
TINY_BASE, TINY_TUNED = "TinyLM base", "TinyLM tuned"
WAYS_OF_TINY, WAYS_OF_LLM = 2, 7
"""How many losses of each model are measured for an organization: base, tuned, and by every way to make an update."""
MIXTURE = "mixture of all"
LEAST_ROWS, MOST_TEST = 4, 128
GOOD = 0.8
"""Share of the LLM's own gain from which on a Grad-Transformer is called good enough."""


@dataclass(frozen=True)
class Judgement:
    """Losses, nats a character, by way of making the LLM and by organization played.

    Attributes:
        organizations: what each held.
        losses: way -> one value for each of them.
        rows: that each was tuned on, and test_rows: scored on.
    """

    organizations: tuple[str, ...]
    losses: Mapping[str, tuple[float, ...]]
    rows: int
    test_rows: int

    @property
    def shares(self) -> dict[str, float]:
        """Share of the LLM's own gain by every way of making an update, over the means of all organizations."""
        mean = {way: float(np.mean(values)) for way, values in self.losses.items()}
        gain = mean[BASE] - mean[TUNED]
        ways = [way for way in mean if way not in (BASE, TUNED, TINY_BASE, TINY_TUNED)]
        return {way: (mean[BASE] - mean[way]) / gain for way in ways} if gain > 0 else {}

    @property
    def verdict(self) -> str:
        """One line for a person."""
        shares = self.shares
        if not shares:
            return "no verdict: tuning does not improve the LLM on these rows, so there is nothing to recover"
        ours = shares[OURS]
        best = max((way for way in shares if way != OURS), key=shares.__getitem__)
        lead = ours - shares[best]
        against = f"{best} reaches {shares[best]:.2f}"
        if ours < GOOD:
            return f"not good enough: it recovers {ours:.2f} of the LLM's own gain, {GOOD} is required ({against})"
        if lead <= 0:
            return f"good, but no better than a simpler way: it recovers {ours:.2f} of the LLM's own gain, {against}"
        return f"good enough: it recovers {ours:.2f} of the LLM's own gain; of the simpler ways {against}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {
            "organizations": list(self.organizations),
            "nats_per_character": {way: list(values) for way, values in self.losses.items()},
            "share_of_gain": self.shares,
            "verdict": self.verdict,
            "rows": self.rows,
            "test_rows": self.test_rows,
        }


def judge(
    curation: TaskCuration,
    transformer: GradTransformer,
    controls: Controls,
    library: TaskLibrary,
    tiny: StackedAdapters,
    llm: StackedAdapters,
) -> Judgement:
    """Play the organizations.

    Raises:
        ConfigError: a source has too few judged rows.
    """
    names, train, test = played(curation)
    seeds = [[curation.seed, 8, number] for number in range(len(names))]
    updates = []
    for side, recipe in ((tiny, curation.plain), (llm, curation.llm_recipe)):
        rows = encode_causal(
            list(chain.from_iterable(train)), side.tokenizer, curation.room(side.model), end=curation.end
        )
        updates.append(fine_tune_stacked(side, rows, len(names), recipe, seeds, [recipe.steps])[0])
    given = [np.asarray(update.cpu().numpy(), dtype=np.float32) for update in updates[0]]
    made: dict[str, list[Vector]] = {
        OURS: [transformer.generate(update) for update in given],
        "library (nearest task, tuned as long)": [from_library(library, update) for update in given],
        "nearest shadow update": [controls.nearest(update) for update in given],
        "ridge": [controls.ridge(update) for update in given],
        "mean update": [controls.mean_update() for _ in given],
    }
    losses = {
        TINY_BASE: _losses(curation, tiny, torch.zeros_like(updates[0]), test),
        TINY_TUNED: _losses(curation, tiny, updates[0], test),
        BASE: _losses(curation, llm, torch.zeros_like(updates[1]), test),
        TUNED: _losses(curation, llm, updates[1], test),
    }
    losses |= {way: _losses(curation, llm, torch.from_numpy(np.stack(ones)), test) for way, ones in made.items()}
    return Judgement(tuple(names), losses, len(train[0]), len(test[0]))


def played(curation: TaskCuration) -> tuple[list[str], list[list[Row]], list[list[Row]]]:
    """Names, training and test rows of each organization, equally many of each."""
    rng = np.random.default_rng([curation.seed, 10])
    pools, problems = {}, []
    for name in curation.tasks:
        pool = [example.row for example in curation.task_rows(name).judged]
        pools[name] = [pool[i] for i in rng.permutation(len(pool))]
        if len(pool) < 2 * LEAST_ROWS:
            problems.append(f"task {name}: {len(pool)} public rows to judge on, at least {2 * LEAST_ROWS} are required")
    if problems:
        raise ConfigError(problems)
    least = min(map(len, pools.values()))
    tests = min(MOST_TEST, max(LEAST_ROWS, least // 3))
    rows = min(curation.rows, least - tests)
    names = list(pools)
    test = [pool[:tests] for pool in pools.values()]
    train = [pool[tests : tests + rows] for pool in pools.values()]
    if len(names) > 1:
        for part, count in ((train, rows), (test, tests)):
            mixed = [part[number % len(names)][number // len(names)] for number in range(count)]
            part.append(mixed)
        names.append(MIXTURE)
    return names, train, test


def _losses(
    curation: TaskCuration, side: StackedAdapters, updates: torch.Tensor, test: Sequence[Sequence[Row]]
) -> tuple[float, ...]:
    theta = side.initial + updates.to(side.initial.device)

    def logits(rows: TokenRows) -> torch.Tensor:
        return side.answer_logits(theta, rows)

    return score_rows(logits, test, side.tokenizer, curation.room(side.model), batch=64).loss_per_character
