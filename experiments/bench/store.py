"""``python -m experiments.bench.store``: what training on a tuple store of the paper's shapes holds in memory.

Makes a store of random tuples [36, 12800] -> [28, 22528] (a TinyLM of Qwen2.5-3B's shapes, an LLM of Qwen2.5-7B's, rank
2 on query and value), half of them under DP. Then a process of its own trains a small Grad-Transformer on it by `mse`,
which runs no LLM: the models that the store names are the embedded ones. Measured are the most anonymous memory that
this process held beyond what it held before (``RssAnon``; pages of mapped files are ``RssFile``, which the operating
system takes back when memory is needed), and how fast batches of tuples are drawn from the mapped store and from the
same shards copied to memory, with a warm page cache. 2,000 tuples take 8.7 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.measuring import PACKAGES, machine, median, revision
from gradtf_fl.adapters import AdaptedModel, AdapterSpec, BlockLayout, model_hash
from gradtf_fl.curation import Shard, TupleStore
from gradtf_fl.files import write_whole
from gradtf_fl.transformer import ShadowSampler, TrainConfig, train_grad_transformer

STACK, TASKS, ROWS, TOKENS = 8, 100, 2, 8
TIMED_BATCHES = 9
EVERY_S = 0.02
"""Between two looks at the process's memory."""


def paper_layouts() -> dict[str, BlockLayout]:
    """Of both sides' update vectors."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    shapes = {  # hidden size, layers, heads, key and value heads
        "tiny": (2048, 36, 16, 2),
        "llm": (3584, 28, 28, 4),
    }
    layouts = {}
    for role, (hidden, layers, heads, shared) in shapes.items():
        config = Qwen2Config(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=shared,
            intermediate_size=64,
            vocab_size=8,
        )
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        layouts[role] = AdaptedModel.of(model, None, AdapterSpec()).space.layout
    return layouts


def write_store(folder: Path, tuples: int, layouts: dict[str, BlockLayout]) -> TupleStore:
    """A store of random tuples, every second one's TinyLM update under DP; shards that are there are kept."""
    sides = {
        role: {"name": f"embedded:{role}", "sha256": model_hash(f"embedded:{role}"), "layout": layout.to_json()}
        for role, layout in layouts.items()
    }
    store = TupleStore.create(folder, {"tuples": tuples, "spec": AdapterSpec().to_json(), **sides})
    for first in range(0, tuples, STACK):
        name, sets = f"pairs-{first // STACK:05d}", range(first, min(tuples, first + STACK))
        if name in store.names:
            continue
        generator = torch.Generator().manual_seed(first)
        ids = torch.randint(2, 12, (len(sets), ROWS, TOKENS), generator=generator, dtype=torch.int32)
        tensors = {
            role: 0.1 * torch.randn(len(sets), layout.blocks, layout.block_dim, generator=generator)
            for role, layout in layouts.items()
        }
        tensors["tiny"] = tensors["tiny"][None]
        tensors |= {"input_ids": ids, "labels": ids.clone(), "group": torch.arange(len(sets), dtype=torch.int32)}
        groups = []
        for number in sets:
            task = f"task {number % TASKS}"
            epsilon = None if number // TASKS % 2 else 8.0
            groups.append({"task": task, "parts": [task], "weights": [[1.0]], "epsilon": epsilon})
        store.add(name, tensors, {"groups": groups})
    return store


def memory() -> dict[str, int]:
    """Bytes that this process holds, ``RssAnon`` and ``RssFile``."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: 1024 * int(words[1]) for words in lines if words[0] in ("RssAnon:", "RssFile:")}


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """The most that `memory` says while the context lasts."""
    most, ended = memory(), threading.Event()

    def watch() -> None:
        while not ended.wait(EVERY_S):
            for name, held in memory().items():
                most[name] = max(most[name], held)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        ended.set()
        watcher.join()


def train_watched(folder: Path, config: TrainConfig) -> dict[str, Any]:
    """Train on the store ``folder`` in this process: its memory before and at most, and seconds."""
    before, began = memory(), time.monotonic()
    steps: list[float] = []
    with watched() as most, tempfile.TemporaryDirectory() as scratch:
        made = train_grad_transformer(
            config, folder, Path(scratch) / "checkpoint", lambda done, total, loss: steps.append(time.monotonic())
        )
    parameters = sum(parameter.numel() for parameter in made.model.parameters())
    return {
        "config": asdict(config),
        "parameters": parameters,
        "seconds_to_first_step_done": round(steps[0] - began, 1),
        "seconds_for_a_step": round((steps[-1] - steps[0]) / max(1, len(steps) - 1), 2),
        "before_bytes": before,
        "most_bytes": most,
        "anonymous_beyond_start_bytes": most["RssAnon"] - before["RssAnon"],
        "model_gradients_adam_bytes": 4 * 4 * parameters,
    }


def sampling_rates(shards: list[Shard], groups: int) -> dict[str, Any]:
    """Tuples a second, drawn from mapped shards and from copies of them in memory; medians over the same batches."""
    copies = [Shard(s.name, {key: value.clone() for key, value in s.tensors.items()}, s.about) for s in shards]
    samplers = {"mapped": ShadowSampler(shards, 0.5, 0.0), "in_memory": ShadowSampler(copies, 0.5, 0.0)}
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    for number in range(TIMED_BATCHES + 1):
        for name, sampler in samplers.items():
            began = time.perf_counter()
            sampler.tuples(np.random.default_rng(number), groups)
            seconds[name].append(time.perf_counter() - began)
    rates = {name: groups / median(taken[1:]) for name, taken in seconds.items()}
    return {
        "tuples": sum(len(shard.tensors["group"]) for shard in shards),
        "batch": groups,
        "tuples_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "mapped_against_memory": round(rates["mapped"] / rates["in_memory"], 3),
    }


def measure_store(folder: Path, tuples: int, compared: int, config: TrainConfig) -> dict[str, Any]:
    """The document that `main` prints."""
    layouts = paper_layouts()
    store = write_store(folder, tuples, layouts)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        trained = pool.submit(train_watched, folder, config).result()
    return {
        "command": " ".join(["python -m experiments.bench.store", *sys.argv[1:]]),
        "revision": revision(),
        "machine": machine(PACKAGES),
        "tuples": tuples,
        "shapes": {role: [layout.blocks, layout.block_dim] for role, layout in layouts.items()},
        "store_bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "training": trained,
        "sampling": sampling_rates([store.shard(name) for name in store.names[: compared // STACK]], config.groups),
    }


def main() -> None:
    """Print the document, and write it to ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tuples", type=int, default=2000)
    parser.add_argument("--compared", type=int, default=400, help="tuples that are copied to memory")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--groups", type=int, default=64, help="tuples in a batch")
    parser.add_argument("--folder", type=Path, help="where the store is kept; default: a folder that is deleted")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    config = TrainConfig(objective="mse", steps=given.steps, groups=given.groups)
    with tempfile.TemporaryDirectory(prefix="gradtf-store-") as scratch:
        document = measure_store(given.folder or Path(scratch) / "store", given.tuples, given.compared, config)
    text = json.dumps(document, indent=1) + "\n"
    print(text, end="")
    if given.out:
        write_whole(given.out, text)


if __name__ == "__main__":
    sys.exit(main())
