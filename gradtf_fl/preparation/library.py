"""The task library: the LLM tuned on each source's public rows for as long as the Grad-Transformer is.

It is the rival that only has to recognise a task: whichever source's signature is nearest to the federation's update
gives its LLM update. What is left between it and the Grad-Transformer does not come from more rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from gradtf_fl.adapters import Vector
from gradtf_fl.curation import TupleStore, encode_causal
from gradtf_fl.preparation.work import ProviderWork
from gradtf_fl.training import StackedAdapters, fine_tune_stacked
from gradtf_fl.transformer import TaskLibrary

StepsDone = Callable[[int, int], None]


def tune_library(work: ProviderWork, llm: StackedAdapters, progress: StepsDone) -> TaskLibrary:
    """The library of a project, taken from its file where that is there."""
    if work.library.is_file():
        return TaskLibrary.load(work.library)
    curation, names = work.curation, work.curation.tasks
    seen = work.training.steps * work.training.groups * work.training.rows // len(names)
    recipe = replace(curation.llm_recipe, steps=max(1, seen // curation.llm_recipe.batch))
    rng = np.random.default_rng([curation.seed, 9])
    updates, tokens = [], []
    for number, name in enumerate(names):
        pool = [example.row for example in curation.task_rows(name).public]
        rows = [pool[i] for i in rng.permutation(len(pool))[:seen]]
        encoded = encode_causal(rows, llm.tokenizer, curation.room(llm.model), end=curation.end)

        def told(step: int, steps: int, number: int = number) -> None:
            progress(number * steps + step, len(names) * steps)

        seeds = [[curation.seed, 9, number]]
        updates.append(fine_tune_stacked(llm, encoded, 1, recipe, seeds, [recipe.steps], told)[0, 0].cpu())
        held = torch.zeros(len(llm.tokenizer), dtype=torch.bool)
        held[encoded.input_ids.reshape(-1)] = True
        tokens.append(held)
    library = TaskLibrary(torch.stack(updates), _signatures(work.tuples, names), torch.stack(tokens))
    work.library.parent.mkdir(parents=True, exist_ok=True)
    library.save(work.library)
    return TaskLibrary.load(work.library)


def from_library(library: TaskLibrary, update: Vector) -> Vector:
    """The LLM update [L2, n2] of the task whose signature has the largest cosine with a TinyLM update [L1, n1]."""
    signatures = library.signatures.numpy().reshape(len(library.signatures), -1)
    norms = np.linalg.norm(signatures, axis=1) + 1e-12
    place = int(np.argmax(signatures @ np.asarray(update).reshape(-1) / norms))
    found: Vector = library.updates[place].numpy()
    return found


def _signatures(tuples: Path, names: tuple[str, ...]) -> torch.Tensor:
    """The mean TinyLM update [E, L1, n1] of each source's shadow sets without DP."""
    sums: dict[str, torch.Tensor] = {}
    counts = dict.fromkeys(names, 0)
    for shard in TupleStore.open(tuples).shards():
        if "llm" not in shard.tensors:
            continue
        last = shard.tensors["tiny"][-1]
        for place, group in enumerate(shard.tensors["group"].tolist()):
            task = shard.about["groups"][group]["task"]
            if task in counts:
                sums[task] = last[place].clone() if task not in sums else sums[task] + last[place]
                counts[task] += 1
    return torch.stack([sums[name] / counts[name] for name in names])
