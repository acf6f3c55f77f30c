"""Shadow tasks and federations of text tasks: public rows of one task, or a Dirichlet mixture of several."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gradtf_fl.tasks import DIRICHLET_ALPHA, Row, TaskRows, TokenRows, encode_rows

MIXED = (2, 3)
"""Tasks in a mixture."""


@dataclass(frozen=True)
class TextGroup:
    """One shadow federation: its tasks, each member's share of them, and the epsilon it trains under."""

    tasks: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]  # [members][tasks]
    epsilon: float | None = None  # None: without DP

    @property
    def members(self) -> int:
        return len(self.weights)

    def about(self) -> dict[str, Any]:
        """As the store keeps it (see `store.Shard`). No tag tells the parts of a mixture apart, so each is a task."""
        weights = [list(map(float, member)) for member in self.weights]
        mixed = [round(float(share), 4) for share in np.mean(weights, 0)]
        name = self.tasks[0] if len(self.tasks) == 1 else json.dumps([self.tasks, mixed])
        return {"task": name, "parts": list(self.tasks), "weights": weights, "epsilon": self.epsilon}


def single(task: str, epsilon: float | None = None) -> TextGroup:
    """A federation of one member on one task."""
    return TextGroup((task,), ((1.0,),), epsilon)


def mixture(rng: np.random.Generator, tasks: Sequence[str]) -> TextGroup:
    """One member whose rows are a Dirichlet(.5) mixture of two or three of ``tasks``."""
    count = min(len(tasks), int(rng.choice(MIXED)))
    chosen = sorted(rng.choice(len(tasks), count, replace=False))
    return TextGroup(tuple(tasks[i] for i in chosen), (tuple(rng.dirichlet([DIRICHLET_ALPHA] * count)),))


def draw_rows(rng: np.random.Generator, group: TextGroup, rows: int, public: Mapping[str, TaskRows]) -> list[list[Row]]:
    """``rows`` public rows of each member, none twice in a set, in random order (paper, appendix C.1)."""
    drawn = []
    for weights in group.weights:
        counts = rng.multinomial(rows, weights)
        member: list[Row] = []
        for name, count in zip(group.tasks, counts, strict=True):
            pool = public[name].public
            member += [pool[i].row for i in rng.choice(len(pool), count, replace=False)]
        drawn.append([member[i] for i in rng.permutation(rows)])
    return drawn


def encode_causal(rows: Sequence[Row], tokenizer: Any, max_tokens: int, *, end: bool = False) -> TokenRows:
    """`encode_rows` without the mask on the padding: a causal model never looks right, so it changes no loss."""
    encoded = encode_rows(rows, tokenizer, max_tokens, end=end)
    return TokenRows(encoded.input_ids, torch.ones_like(encoded.input_ids), encoded.labels)
