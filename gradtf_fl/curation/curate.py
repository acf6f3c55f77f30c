"""Curation: public rows -> shadow sets -> update-vector tuples in a store (paper, section 4.1).

Three kinds of shards. "dp": shadow federations of 1-5 organizations that train the TinyLM in rounds under DP-SGD at
epsilons between .5 and 8, exactly as organizations do. "plain": shadow sets on which the TinyLM is fine-tuned without
DP. "pairs": shadow sets on which both models are, the paper's tuples: they give the controls and the output's scale.
TinyLM shadows cost little and the functional objective learns from them alone, so most shadow sets have no LLM half.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradtf_fl.adapters import AdapterSpec, initial_state
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
from gradtf_fl.update_vectors import BlockLayout

Progress = Callable[[str, int, int], None]
DELTA = 1e-5


@dataclass(frozen=True)
class CurationConfig:
    """What is curated. The defaults make the store that the shipped Grad-Transformer was trained on.

    Attributes:
        rows: rows in a shadow set.
        single_groups: DP federations for each public rule: so many of `FEDERATIONS`, over and over.
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


def curate(
    config: CurationConfig, out: str | Path, progress: Progress | None = None, workers: int | None = 1
) -> TupleStore:
    """Fill the store ``out``; shards that are there are kept, so a killed run resumes where it stopped.

    Args:
        workers: processes, one thread each; ``None`` takes one per core. A shard comes out the same in any of them.

    Raises ConfigError when ``out`` holds a store with other settings or a model can't be loaded.
    """
    store = TupleStore.create(out, _header(config))
    plans = _plan_shards(config)
    for name in store.names:
        store.read(name)  # verifies it
    missing = [(number, name) for number, (name, _) in enumerate(plans) if name not in store.names]
    done = len(plans) - len(missing)
    for name, tensors in _shards(config, missing, workers or os.cpu_count() or 1):
        if progress is not None:
            progress(name, done, len(plans))
        store.add(name, tensors, _describe(dict(plans)[name]))
        done += 1
    store.order([name for name, _ in plans])
    if progress is not None:
        progress("done", len(plans), len(plans))
    return store


def _header(config: CurationConfig) -> dict[str, Any]:
    spec = AdapterSpec()
    header: dict[str, Any] = {"config": asdict(config), "spec": spec.to_json()}
    for role, name in (("tiny", config.tiny), ("llm", config.llm)):
        layout = BlockLayout.from_state(initial_state(load_model(name)[0], spec), spec.train_a)
        header[role] = {"name": name, "sha256": model_hash(name), "layout": layout.to_json()}
    return header


def _shards(
    config: CurationConfig, wanted: list[tuple[int, str]], workers: int
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """(name, tensors) of each wanted shard as it is finished."""
    if workers == 1 or len(wanted) < 2:
        for number, name in wanted:
            yield name, make_shard(config, number)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        running = {pool.submit(make_shard, config, number): name for number, name in wanted}
        for finished in as_completed(running):
            yield running[finished], finished.result()


def make_shard(config: CurationConfig, number: int) -> dict[str, torch.Tensor]:
    """Tensors of shard ``number`` of the plan, from the seed alone."""
    name, groups = _plan_shards(config)[number]
    spec, seed = AdapterSpec(), [config.seed, 7, number]
    tiny = StackedAdapters(load_model(config.tiny)[0], spec)
    if name.startswith("dp"):
        return _dp_shard(config, tiny, groups, seed)
    llm = StackedAdapters(load_model(config.llm)[0], spec) if name.startswith("pairs") else None
    return _plain_shard(config, tiny, llm, groups, seed)


def _plan_shards(config: CurationConfig) -> list[tuple[str, list[ShadowGroup]]]:
    """All shards and the federations in them, drawn from the seed alone (so that a resumed run plans the same)."""
    rng = np.random.default_rng([config.seed, 1])
    public = hr.split_rules()[0][: config.rules]
    tasks = {
        kind: [single_task(rule) for _ in range(singles) for rule in public]
        + [mixture_task(rng) for _ in range(mixtures)]
        for kind, singles, mixtures in (
            ("pairs", config.pair_singles, config.pair_mixtures),
            ("plain", config.plain_singles, config.plain_mixtures),
            ("dp", config.single_groups, config.mixture_groups),
        )
    }
    drawn = {kind: [draw_group(rng, task, 1, None) for task in tasks[kind]] for kind in ("pairs", "plain")}
    designed = [FEDERATIONS[i % len(FEDERATIONS)] for i in range(config.single_groups) for _ in public]
    designed += [(int(rng.choice(GROUP_SIZES)), float(rng.choice(EPSILONS))) for _ in range(config.mixture_groups)]
    drawn["dp"] = [draw_group(rng, task, *kind) for task, kind in zip(tasks["dp"], designed, strict=True)]
    shards = []
    for kind, groups in drawn.items():
        shards += _packed(kind, [groups[i] for i in rng.permutation(len(groups))], config.stack)
    extra = [single_task(rule) for _ in range(config.extra_singles) for rule in public]
    return shards + _packed("dp-extra", [draw_group(rng, task, 1, EXTRA_EPSILON) for task in extra], config.stack)


def _packed(kind: str, groups: list[ShadowGroup], stack: int) -> list[tuple[str, list[ShadowGroup]]]:
    """Named shards of at most ``stack`` sets each (a larger federation is a shard of its own)."""
    packed: list[list[ShadowGroup]] = []
    for group in groups:
        if not packed or sum(g.members for g in packed[-1]) + group.members > stack:
            packed.append([])
        packed[-1].append(group)
    return [(f"{kind}-{number:04d}", part) for number, part in enumerate(packed)]


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
    config: CurationConfig,
    tiny: StackedAdapters,
    llm: StackedAdapters | None,
    groups: list[ShadowGroup],
    seed: list[int],
) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    sets = sum(group.members for group in groups)
    rows = stack_rows([group_rows(rng, group, config.rows) for group in groups])
    seeds = [[*seed, number] for number in range(sets)]
    last = range(config.llm_recipe.steps - config.last_k + 1, config.llm_recipe.steps + 1)
    tensors = _rows_tensors(rows, sets, groups)
    tensors["tiny"] = fine_tune_stacked(tiny, rows, sets, config.plain, seeds, config.snapshots)
    if llm is None:
        return tensors
    final = fine_tune_stacked(llm, rows, sets, config.llm_recipe, seeds, list(last))
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
