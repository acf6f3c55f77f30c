"""Shadow tasks and federations for House Rules: what the provider, who has only public rows, fine-tunes on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gradtf_fl.tasks import DIRICHLET_ALPHA, IGNORED, MIXTURE_OPERATIONS, HiddenTask, TokenRows
from gradtf_fl.tasks import house_rules as hr

GROUP_SIZES = (1, 2, 3, 5)
EPSILONS = (8.0, 4.0, 2.0, 1.0, 0.5)
FEDERATIONS = (
    *((5, 8.0), (1, 8.0), (1, 8.0), (1, 8.0)),
    *((1, 4.0), (1, 4.0)),
    *((1, 2.0), (1, 2.0)),
    *((5, 1.0), (1, 1.0), (1, 1.0)),
    *((1, 0.5), (1, 0.5), (1, 0.5)),
)
"""(members, epsilon) of each rule's DP federations. Drawn at random, a rule in four had none at epsilon 8, and the
Grad-Transformer took it for its neighbour there. Noise differs between federations more than inside one, so most have
one member; averages over several stand for larger ones."""
EXTRA_EPSILON = 1.0
"""Where noise begins to hide which rule it is, more federations are worth most."""
AS_IN_ROUNDS = 0.75
"""Share of mixtures that show the operation, as the ``mixed`` federation does; the others show other tags."""


@dataclass(frozen=True)
class ShadowGroup:
    """One shadow federation: a hidden task, each member's share of its rules, and the epsilon it trains under."""

    task: HiddenTask
    weights: tuple[tuple[float, ...], ...]  # [members][rules]
    epsilon: float | None  # None: plain fine-tuning

    @property
    def members(self) -> int:
        return len(self.weights)

    def about(self) -> dict[str, Any]:
        """As the store keeps it (see `store.Shard`)."""
        rules, shown = [rule.name for rule in self.task.rules], list(self.task.shown)
        return {
            "task": json.dumps([rules, shown]),
            "parts": rules,
            "shown": shown,
            "weights": [list(map(float, weights)) for weights in self.weights],
            "epsilon": self.epsilon,
        }


def single_task(rule: hr.Rule) -> HiddenTask:
    """All tags masked: the rule is wholly hidden."""
    return HiddenTask((rule,))


def mixture_task(rng: np.random.Generator) -> HiddenTask:
    """Some tags shown, the rest bound at random among public rules.

    Most are as the ``mixed`` federation has it (three operations shown, input and output form hidden); the
    others show one or two other tags, so that the parts of a rule are also seen apart from each other.
    """
    public = hr.split_rules()[0]
    if rng.random() < AS_IN_ROUNDS:
        shown = (False, True, False)
    else:
        shown = ((True, False, False), (False, False, True), (True, True, False), (False, True, True))[rng.integers(4)]
    by_shown: dict[tuple[int, ...], list[hr.Rule]] = {}
    for rule in public:
        parts = (rule.input_form, rule.operation, rule.output_form)
        by_shown.setdefault(tuple(p for p, s in zip(parts, shown, strict=True) if s), []).append(rule)
    keys = sorted(by_shown)
    picked = rng.choice(len(keys), MIXTURE_OPERATIONS, replace=False)
    rules = [by_shown[keys[i]][rng.integers(len(by_shown[keys[i]]))] for i in sorted(picked)]
    return HiddenTask(tuple(rules), shown)


def draw_group(rng: np.random.Generator, task: HiddenTask, members: int, epsilon: float | None) -> ShadowGroup:
    """A federation on ``task`` whose members hold Dirichlet(.5) mixtures of its rules.

    A member of a plain one (``epsilon`` None) holds the rows of 1-5 organizations: the mean of as many mixtures.
    """
    weights: list[tuple[float, ...]] = []
    for _ in range(members):
        pooled = int(rng.choice(GROUP_SIZES)) if epsilon is None else 1
        weights.append(tuple(rng.dirichlet([DIRICHLET_ALPHA] * len(task.rules), pooled).mean(0)))
    return ShadowGroup(task, tuple(weights), epsilon)


def group_rows(rng: np.random.Generator, group: ShadowGroup, rows: int) -> TokenRows:
    """Public rows of all members, [members * rows, 11], member by member."""
    parts = [group.task.draw(rng, rows, "public", np.array(w)) for w in group.weights]
    return as_token_rows(np.concatenate(parts))


def as_token_rows(tokens: hr.Ints) -> TokenRows:
    """House Rules token ids [N, 11] with labels on the two answer digits."""
    ids = torch.from_numpy(tokens)
    labels = ids.clone()
    labels[:, : hr.PROMPT_TOKENS] = IGNORED
    return TokenRows(ids, torch.ones_like(ids), labels)
