"""Curation: public rows -> shadow sets -> update-vector tuples in a store (paper, section 4.1).

Two kinds of shards. "dp": shadow federations of 1-5 organizations that train the TinyLM in rounds under DP-SGD at
epsilons between .5 and 8, exactly as organizations do; no LLM is needed. "plain": single shadow sets on which both
models are fine-tuned without DP; they give the paper's tuples, the controls, and the output's scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradtf_fl.adapters import AdapterSpec
from gradtf_fl.curation.shadow import (
    EPSILONS,
    GROUP_SIZES,
    ShadowGroup,
    as_token_rows,
    draw_group,
    group_rows,
    mixture_task,
    single_task,
)
from gradtf_fl.curation.store import TupleStore, as_int32
from gradtf_fl.models import load_model, model_hash
from gradtf_fl.tasks import house_rules as hr
from gradtf_fl.tasks.rows import TokenRows
from gradtf_fl.training.stacked import (
    DpRecipe,
    PlainRecipe,
    StackedAdapters,
    dp_fine_tune_stacked,
    fine_tune_stacked,
    stack_rows,
)

Progress = Callable[[str, int, int], None]
DELTA = 1e-5


@dataclass(frozen=True)
class CurationConfig:
    """What is curated. The defaults make the store that the shipped Grad-Transformer was trained on.

    Attributes:
        rows: rows in a shadow set.
        single_groups: DP federations for each public rule.
        mixture_groups: DP federations on mixtures of three rules.
        plain_singles: plain shadow sets for each public rule (both models).
        plain_mixtures: plain shadow sets on mixtures (both models).
        stack: shadow sets fine-tuned at once.
        last_k: LLM updates of this many last steps are kept too (the paper's extra tuples).
        rules: how many public rules are used (fewer make a quick trial).
    """

    seed: int = 0
    tiny: str = "embedded:tiny"
    llm: str = "embedded:llm"
    rows: int = 1024
    single_groups: int = 2
    mixture_groups: int = 64
    plain_singles: int = 3
    plain_mixtures: int = 64
    stack: int = 32
    last_k: int = 1
    rules: int = 64
    plain: PlainRecipe = PlainRecipe()
    dp: DpRecipe = DpRecipe()
    snapshots: tuple[int, ...] = (20, 40, 75, 110, 150)


def curate(config: CurationConfig, out: str | Path, progress: Progress | None = None) -> TupleStore:
    """Fill the store ``out``; shards that are there are kept, so a killed run resumes where it stopped.

    Raises ConfigError when ``out`` holds a store with other settings or a model can't be loaded.
    """
    spec = AdapterSpec()
    tiny = StackedAdapters(load_model(config.tiny)[0], spec)
    llm = StackedAdapters(load_model(config.llm)[0], spec)
    header = {
        "config": asdict(config),
        "spec": spec.to_json(),
        "tiny": {"name": config.tiny, "sha256": model_hash(config.tiny), "layout": tiny.layout.to_json()},
        "llm": {"name": config.llm, "sha256": model_hash(config.llm), "layout": llm.layout.to_json()},
    }
    store = TupleStore.create(out, header)
    plans = _plan_shards(config)
    for done, (name, groups) in enumerate(plans):
        if progress is not None:
            progress(name, done, len(plans))
        if name in store.names:
            store.read(name)  # verifies it
            continue
        seed = [config.seed, 7, done]
        tensors = _plain_shard(config, tiny, llm, groups, seed) if name.startswith("plain") else None
        store.add(name, tensors or _dp_shard(config, tiny, groups, seed), _describe(groups))
    if progress is not None:
        progress("done", len(plans), len(plans))
    return store


def _plan_shards(config: CurationConfig) -> list[tuple[str, list[ShadowGroup]]]:
    """All shards and the federations in them, drawn from the seed alone (so that a resumed run plans the same)."""
    rng = np.random.default_rng([config.seed, 1])
    public = hr.split_rules()[0][: config.rules]
    dp_tasks = [single_task(rule) for _ in range(config.single_groups) for rule in public]
    dp_tasks += [mixture_task(rng) for _ in range(config.mixture_groups)]
    dp = [draw_group(rng, t, int(rng.choice(GROUP_SIZES)), float(rng.choice(EPSILONS))) for t in dp_tasks]
    plain_tasks = [single_task(rule) for _ in range(config.plain_singles) for rule in public]
    plain_tasks += [mixture_task(rng) for _ in range(config.plain_mixtures)]
    plain = [draw_group(rng, task, 1, None) for task in plain_tasks]
    shards = []
    for kind, groups in (("plain", plain), ("dp", dp)):
        packed: list[list[ShadowGroup]] = []
        for i in rng.permutation(len(groups)):
            if not packed or sum(g.members for g in packed[-1]) + groups[i].members > config.stack:
                packed.append([])
            packed[-1].append(groups[i])
        shards += [(f"{kind}-{number:04d}", part) for number, part in enumerate(packed)]
    return shards


def _describe(groups: list[ShadowGroup]) -> dict[str, Any]:
    return {
        "groups": [
            {
                "rules": [r.name for r in g.task.rules],
                "shown": list(g.task.shown),
                "weights": [list(map(float, w)) for w in g.weights],
                "epsilon": g.epsilon,
            }
            for g in groups
        ]
    }


def _rows_tensors(rows: TokenRows, sets: int, groups: list[ShadowGroup]) -> dict[str, torch.Tensor]:
    members = [number for number, group in enumerate(groups) for _ in range(group.members)]
    return {
        "input_ids": as_int32(rows.input_ids.reshape(sets, -1, rows.input_ids.shape[1])),
        "labels": as_int32(rows.labels.reshape(sets, -1, rows.labels.shape[1])),
        "group": torch.tensor(members, dtype=torch.int32),
    }


def _plain_shard(
    config: CurationConfig, tiny: StackedAdapters, llm: StackedAdapters, groups: list[ShadowGroup], seed: list[int]
) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    sets = sum(group.members for group in groups)
    rows = stack_rows([group_rows(rng, group, config.rows) for group in groups])
    seeds = [[*seed, number] for number in range(sets)]
    last = range(config.plain.steps - config.last_k + 1, config.plain.steps + 1)
    tensors = _rows_tensors(rows, sets, groups)
    tensors["tiny"] = fine_tune_stacked(tiny, rows, sets, config.plain, seeds, config.snapshots)
    final = fine_tune_stacked(llm, rows, sets, config.plain, seeds, list(last))
    tensors["llm"] = final[-1].clone()
    if config.last_k > 1:
        tensors["llm_last"] = final.half()
    return tensors


def _dp_shard(
    config: CurationConfig, tiny: StackedAdapters, groups: list[ShadowGroup], seed: list[int]
) -> dict[str, torch.Tensor]:
    from gradtf_fl.privacy import noise_multiplier

    rng = np.random.default_rng(seed)
    sets = sum(group.members for group in groups)
    rows = stack_rows([group_rows(rng, group, config.rows) for group in groups])
    tensors = _rows_tensors(rows, sets, groups)
    steps = config.dp.rounds * config.dp.steps
    q = config.dp.batch / config.rows
    sigma = {e: noise_multiplier(e, DELTA, q, steps) for e in EPSILONS}
    sigmas = [sigma[group.epsilon] for group in groups if group.epsilon for _ in range(group.members)]
    members = tensors["group"].tolist()
    tensors["tiny"] = dp_fine_tune_stacked(tiny, rows, members, sigmas, config.dp, [*seed, 1])
    return tensors


__all__ = ["CurationConfig", "as_token_rows", "curate"]
