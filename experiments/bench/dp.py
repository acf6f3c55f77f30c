"""``gradtf bench dp``: what privacy adds to a training step, compared with other ways to get the rows' gradients.

The ways (dp_peers.py) take one step each in turn on the same drawn rows, in random order, so that a busy moment of
the machine and the caches that a neighbour leaves meet all of them; figures are medians. The limit of every row is
the plain step: same model, rows, loss and Adam, no privacy. Milliseconds are elapsed time; next to them stand the
ratios in CPU time of all threads, which other programs on the machine disturb less.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.bench.dp_peers import OURS, PLAIN, WAYS, ways
from experiments.measuring import Progress, Row, machine, median
from gradtf_fl.adapters import AdaptedModel, AdapterSpec
from gradtf_fl.tasks import TokenRows, house_rules

PACKAGES = ("torch", "transformers", "peft", "opacus")
ROWS = 1024
SIGMA = 1.0
REQUIRED = 1.10
"""Ours may take at most this many times the plain step."""


@dataclass(frozen=True)
class DpBench:
    """What is measured: ``rounds`` steps of every way for each batch size and number of threads.

    Attributes:
        tokens: length of a random row.
        rounds: fewer where they would take longer than ``seconds``, but never below ``least``.
        warm_up: rounds before these that are not counted.
    """

    batches: tuple[int, ...] = (16, 64)
    threads: tuple[int, ...] = (1, 2) if (os.cpu_count() or 1) > 1 else (1,)
    tokens: int = 32
    rounds: int = 300
    least: int = 40
    seconds: float = 60.0
    warm_up: int = 10


FULL_DP = DpBench()
QUICK_DP = DpBench(batches=(16,), threads=(1,), rounds=30)


def bench_dp(models: Sequence[str], plan: DpBench, progress: Progress) -> dict[str, Any]:
    """The document of ``gradtf bench dp --json``.

    Args:
        models: names as `load_model` takes them; "embedded:tiny" is measured on House Rules rows, any other model
            on rows of ``plan.tokens`` random tokens, half of them prompt.

    Raises:
        ConfigError: a model that can't be loaded.
    """
    found = machine(PACKAGES)
    rows: list[Row] = []
    adapted: dict[str, Any] = {name: AdaptedModel.load(name, AdapterSpec()).attach() for name in models}
    cases = list(product(models, plan.batches, plan.threads))
    for done, (name, batch, threads) in enumerate(cases):
        progress(f"batch {batch}, threads {threads}", done, len(cases))
        model = adapted[name]
        with _threads(threads):
            rows += _rows(model, _token_rows(name, model, plan.tokens), batch, threads, plan)
    progress("done", len(cases), len(cases))
    return {"machine": found, "rows": [row.to_json() for row in rows]}


@dataclass(frozen=True)
class StepTimes:
    """One way's steps: seconds elapsed, and CPU seconds of all threads."""

    elapsed: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def _rows(model: nn.Module, rows: TokenRows, batch: int, threads: int, plan: DpBench) -> Iterator[Row]:
    """Ours compared with every other way, the plain step among them."""
    times = step_times(model, rows, batch, plan)
    elapsed = {name: median(taken.elapsed) * 1e3 for name, taken in times.items()}
    cpu = {name: median(taken.cpu) for name, taken in times.items()}
    size = {
        "batch": batch,
        "tokens": rows.input_ids.shape[1],
        "adapter": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "weights": sum(p.numel() for p in model.parameters()),
        "threads": threads,
    }
    for peer in times:
        if peer == OURS:
            continue
        yield Row(
            "private step",
            size,
            "ms",
            elapsed[OURS],
            peer,
            elapsed[peer],
            limit=elapsed[PLAIN],
            runs=len(times[peer].elapsed),
            note=f"the limit is the plain step; required: ours at most {REQUIRED:g} of it",
            beside={
                "ours_over_plain": elapsed[OURS] / elapsed[PLAIN],
                "theirs_over_plain": elapsed[peer] / elapsed[PLAIN],
                "ours_over_plain_cpu": cpu[OURS] / cpu[PLAIN],
                "theirs_over_plain_cpu": cpu[peer] / cpu[PLAIN],
            },
        )


def step_times(
    model: nn.Module, rows: TokenRows, batch: int, plan: DpBench, names: Sequence[str] = tuple(WAYS)
) -> dict[str, StepTimes]:
    """Every step's times by the name of the way."""
    generator, order = torch.Generator().manual_seed(0), random.Random(0)
    until = time.monotonic() + plan.seconds
    with ways(model, rows, batch, SIGMA, names) as made:
        times = {name: StepTimes() for name in made}
        for turn in range(plan.warm_up + plan.rounds):
            if turn >= plan.warm_up + plan.least and time.monotonic() > until:
                break
            drawn = torch.randperm(len(rows), generator=generator)[:batch]
            for name in order.sample(list(made), len(made)):
                began, cpu_began = time.perf_counter(), time.process_time()
                made[name].step(drawn)
                cpu_ended, ended = time.process_time(), time.perf_counter()
                if turn >= plan.warm_up:
                    times[name].elapsed.append(ended - began)
                    times[name].cpu.append(cpu_ended - cpu_began)
    return times


def _token_rows(name: str, model: nn.Module, tokens: int) -> TokenRows:
    if name == "embedded:tiny":
        pairs = house_rules.code_pairs("private")[:ROWS]
        no_masks = np.zeros((ROWS, 3), bool)
        ids = torch.from_numpy(house_rules.encode(np.full(ROWS, 7), pairs[:, 0], pairs[:, 1], no_masks))
        prompt = house_rules.PROMPT_TOKENS
    else:
        configured: Any = model
        return random_rows(configured.config.vocab_size, tokens, tokens // 2)
    return _answered(ids, prompt)


def random_rows(vocabulary: int, tokens: int, prompt: int) -> TokenRows:
    """`ROWS` rows of random tokens, of which the first ``prompt`` have no loss."""
    return _answered(torch.randint(vocabulary, (ROWS, tokens), generator=torch.Generator().manual_seed(0)), prompt)


def _answered(ids: Tensor, prompt: int) -> TokenRows:
    labels = ids.clone()
    labels[:, :prompt] = -100
    return TokenRows(ids, torch.ones_like(ids), labels)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
