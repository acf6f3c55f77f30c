"""Private sets that trials are scored on: fresh private and test rows of seen and unseen rules, and what tuning on
them gives: TinyLM updates of one and of five organizations, and the LLM's own (the ceiling)."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments.embedded import LLM_RECIPE, MEMBERS, TINY_RECIPE, draw, tune
from gradtf_fl.adapters import AdapterSpec, Place
from gradtf_fl.tasks import TokenRows
from gradtf_fl.tasks import house_rules as hr
from gradtf_fl.training import StackedAdapters


@dataclass(frozen=True)
class PrivatePlan:
    """What is drawn. Seen rules come from those that leave the LLM something to add.

    Attributes:
        rules: of each group, seen and unseen.
        rows, test_rows: of each organization.
        steps: of the plain recipe.
    """

    seed: int
    rules: int = 8
    rows: int = 1024
    test_rows: int = 256
    steps: int = 150


@dataclass(frozen=True)
class PrivateGroup:
    """Seen or unseen rules.

    Attributes:
        one, five: TinyLM updates [rules, L1, n1] of one organization, and means of five.
        llm: updates [rules, L2, n2] of the LLM tuned on the first organization's rows.
        test: test rows, rule by rule.
        tiny_tuned, llm_ceiling: accuracies with ``one`` and ``llm``, means over rules.
    """

    name: str
    one: Tensor
    five: Tensor
    llm: Tensor
    test: TokenRows
    tiny_tuned: float
    llm_ceiling: float


@dataclass(frozen=True)
class PrivateSets:
    """Both groups."""

    groups: tuple[PrivateGroup, ...]


def private_rules(plan: PrivatePlan) -> dict[str, list[hr.Rule]]:
    """The rules of each group."""
    rng = np.random.default_rng([plan.seed, 4])
    pools = {"seen": [hr.rule_named(name) for name in hr.RULES_WITH_A_GAP], "unseen": list(hr.split_rules()[1])}
    return {name: [pool[i] for i in rng.permutation(len(pool))[: plan.rules]] for name, pool in pools.items()}


def make_private(
    plan: PrivatePlan, tiny: str, llm: str, spec: AdapterSpec, path: Path, device: str = "cpu"
) -> PrivateSets:
    """The private sets; their tensors are read from ``path`` when it is there, else made and written there."""
    rules = private_rules(plan)
    if not path.exists():
        tensors: dict[str, Tensor] = {}
        stacks = [StackedAdapters.load(model, spec, Place.find(device)) for model in (tiny, llm)]
        for name, chosen in rules.items():
            tensors |= {f"{name}.{key}": t.cpu() for key, t in _tune(plan, chosen, *stacks).items()}
        staging = Path(f"{path}.new")
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, staging)
        os.replace(staging, path)
    kept = load_file(path)
    return PrivateSets(tuple(_group(name, plan, chosen, kept) for name, chosen in rules.items()))


def _group(name: str, plan: PrivatePlan, rules: list[hr.Rule], kept: dict[str, Tensor]) -> PrivateGroup:
    test = draw(rules, plan.test_rows, "test", plan.seed)
    tiny_tuned, llm_ceiling = (float(kept[f"{name}.{key}"].mean()) for key in ("tiny_tuned", "llm_ceiling"))
    one, five, llm = (kept[f"{name}.{key}"] for key in ("one", "five", "llm"))
    return PrivateGroup(name, one, five, llm, test, tiny_tuned, llm_ceiling)


def _tune(plan: PrivatePlan, rules: list[hr.Rule], tiny: StackedAdapters, llm: StackedAdapters) -> dict[str, Tensor]:
    """Updates and accuracies [rules]; members of a rule follow each other and the first is the one organization."""
    rows = draw(rules, plan.rows, "private", plan.seed, MEMBERS)
    test = draw(rules, plan.test_rows, "test", plan.seed).to(tiny.initial.device)
    updates = tune(tiny, rows, len(rules) * MEMBERS, replace(TINY_RECIPE, steps=plan.steps), plan.seed)
    of_rule = updates.reshape(len(rules), MEMBERS, *updates.shape[1:])
    first = (torch.arange(len(rules)) * MEMBERS * plan.rows)[:, None] + torch.arange(plan.rows)
    recipe = replace(LLM_RECIPE, steps=plan.steps)
    own = tune(llm, rows.take(first.reshape(-1)), len(rules), recipe, plan.seed)
    return {
        "one": of_rule[:, 0],
        "five": of_rule.mean(1),
        "llm": own,
        "tiny_tuned": tiny.accuracy(tiny.initial + of_rule[:, 0], test),
        "llm_ceiling": llm.accuracy(llm.initial + own, test),
    }
