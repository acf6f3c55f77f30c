"""Why `mse` gains little from more shadow sets (Figure 8): one task's LLM updates differ more than the tasks do.

    python -m experiments.paper.shrinkage --out experiments/results/shrinkage.json

The best answer by squared error is the mean of a task's updates. It is shorter than any of them by what they differ
within the task: of ``within`` of their variance there, generated updates keep sqrt(1 - within) of the spread. Stores
and trials are those of preset figure8, kept in build/trials: from nothing this takes 40 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.measuring import PACKAGES, Progress, machine, revision
from experiments.paper.measures.trial import run_trials, store_folder
from experiments.paper.measures.tuples import TupleParameters
from experiments.paper.preset import load_preset
from gradtf_fl.curation import TupleStore
from gradtf_fl.files import write_whole

TRIALS = ((48, 1), (192, 1), (768, 1), (192, 4), (768, 4))
"""Shadow sets, and how many times the preset's steps of `mse`."""


def within_share(updates: Iterable[tuple[str, Tensor]]) -> float:
    """Share of the variance of (task, update) pairs that lies between updates of one task, by unbiased estimates.

    Raises ValueError unless there are two tasks, one of them with two updates.
    """
    by_task: dict[str, list[Tensor]] = defaultdict(list)
    for task, update in updates:
        by_task[task].append(update.flatten().float())
    stacks = [torch.stack(found) for found in by_task.values()]
    pooled = sum(len(stack) - 1 for stack in stacks)
    if len(stacks) < 2 or not pooled:
        raise ValueError("within_share wants two tasks, one of them with two updates")
    together = torch.cat(stacks)
    total = float((together - together.mean(0)).square().sum()) / (len(together) - 1)
    within = sum(float((stack - stack.mean(0)).square().sum()) for stack in stacks) / pooled
    return within / total


def updates_of(store: TupleStore, role: str) -> list[tuple[str, Tensor]]:
    """Task and last update of every shadow set on one rule; ``role`` is "tiny" or "llm"."""
    found = []
    for shard in store.shards():
        updates = shard.tensors[role] if role == "llm" else shard.tensors[role][-1]
        for group, update in zip(shard.about["groups"], updates, strict=True):
            if len(group["parts"]) == 1:
                found.append((group["task"], update))
    return found


def shrinkage(
    parameters: TupleParameters, seed: int, progress: Progress, of: Iterable[tuple[int, int]] = TRIALS
) -> dict[str, Any]:
    """The document: shares within tasks, and accuracy and spread of `mse` over sets and steps (see `trial.score`)."""
    trials = {}
    for sets, times in of:
        trial = parameters.trial(seed, objective="mse", steps=times * parameters.mse_steps)
        trials[f"{sets} sets, {times * parameters.mse_steps} steps"] = replace(trial, sets=sets)
    scores = run_trials(trials, parameters.private(seed), parameters.site, progress)
    store = TupleStore.open(store_folder(parameters.site, parameters.trial(seed).store))
    within = {role: within_share(updates_of(store, role)) for role in ("tiny", "llm")}
    return {
        "seed": seed,
        "within": within,
        "best_spread_by_squared_error": max(0.0, 1 - within["llm"]) ** 0.5,
        "mse": {
            name: {"seen": found["seen one generated"], "spread": found["seen spread"]}
            for name, found in scores.items()
        },
    }


def _told(what: str, done: int, total: int) -> None:
    print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    began, described = time.monotonic(), machine(PACKAGES)
    parameters = TupleParameters(**load_preset("figure8").file.parameters)
    document = shrinkage(parameters, options.seed, _told)
    document |= {"revision": revision(), "machine": described, "seconds": round(time.monotonic() - began, 1)}
    text = json.dumps(document, indent=1) + "\n"
    print(text, end="")
    if options.out:
        write_whole(options.out, text)


if __name__ == "__main__":
    main()
