"""Where shards are made: in this process, in a pool of processes, or as Ray tasks over processes and machines."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from functools import partial
from multiprocessing.queues import SimpleQueue
from typing import Any, Literal

import torch
from torch import Tensor

from gradtf_fl.deployment import end_with_parent
from gradtf_fl.errors import ConfigError
from gradtf_fl.training import StepsDone

TOLD_EVERY_S = 1.0
"""Between two words of a worker about its shard."""
Workers = int | Literal["ray"]
MakeShard = Callable[[int, StepsDone], dict[str, Tensor]]
ShardSteps = Callable[[str, int, int], None]
"""Told of a shard in the making: its name, optimizer steps done, and all."""
Reports = SimpleQueue[tuple[int, int, int]]
Finished = Iterator[tuple[str, dict[str, Tensor]]]


def finished_shards(
    make: MakeShard, wanted: Sequence[tuple[int, str]], workers: Workers | None, told: ShardSteps
) -> Finished:
    """(name, tensors) of each of the ``wanted`` shards (number, name), as it is finished.

    Args:
        make: can be pickled; gives a shard by its number, the same wherever it runs, and says how far it is.
        workers: processes with one thread each, None for one per core; "ray" for tasks of one CPU each on the
            cluster that RAY_ADDRESS names, or on a local one, whose nodes see the same models and data.
        told: called in this process while shards are made; not with Ray, whose tasks may be on other machines.

    Raises ConfigError when Ray is required and not installed, or its cluster can't be reached.
    """
    if workers == "ray":
        return _by_ray(make, wanted)
    count = workers or os.cpu_count() or 1
    if count == 1 or len(wanted) < 2:
        return ((name, make(number, partial(told, name))) for number, name in wanted)
    return _by_processes(make, wanted, count, told)


def worker_pool(count: int, reports: Reports | None = None) -> ProcessPoolExecutor:
    """``count`` processes of one thread each, which end with the process that started them."""
    return ProcessPoolExecutor(count, _SPAWN, _begin_worker, (reports,))


_SPAWN = multiprocessing.get_context("spawn")
_reports: Reports | None = None
"""Of a worker: where it says how far its shard is."""


def _begin_worker(reports: Reports | None) -> None:
    global _reports
    _reports = reports
    torch.set_num_threads(1)
    end_with_parent()


def _by_processes(make: MakeShard, wanted: Sequence[tuple[int, str]], count: int, told: ShardSteps) -> Finished:
    names, reports = dict(wanted), _SPAWN.SimpleQueue()
    with worker_pool(count, reports) as pool:
        running = {pool.submit(_made_by_worker, make, number): name for number, name in wanted}
        while running:
            finished, _ = wait_for(running, TOLD_EVERY_S, FIRST_COMPLETED)
            while not reports.empty():
                number, done, steps = reports.get()
                told(names[number], done, steps)
            for future in finished:
                yield running.pop(future), future.result()


def _made_by_worker(make: MakeShard, number: int) -> dict[str, Tensor]:
    last = time.monotonic()

    def tell(done: int, steps: int) -> None:
        nonlocal last
        if _reports is not None and time.monotonic() - last >= TOLD_EVERY_S:
            last = time.monotonic()
            _reports.put((number, done, steps))

    return make(number, tell)


def _by_ray(make: MakeShard, wanted: Sequence[tuple[int, str]]) -> Finished:
    try:
        import ray
    except ImportError:
        raise ConfigError('--workers ray: Ray is not installed; pip install "gradtf-fl[ray]"') from None
    own = not ray.is_initialized()
    if own:
        try:
            ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
        except (ConnectionError, RuntimeError) as error:
            raise ConfigError(f"--workers ray: no cluster can be had ({error})") from error
    try:
        task = ray.remote(num_cpus=1)(_with_one_thread)
        running: dict[Any, str] = {task.remote(make, number): name for number, name in wanted}
        while running:
            ready, _ = ray.wait(list(running))
            for reference in ready:
                yield running.pop(reference), ray.get(reference)
    finally:
        if own:
            ray.shutdown()


def _with_one_thread(make: MakeShard, number: int) -> dict[str, Tensor]:
    torch.set_num_threads(1)
    return make(number, lambda done, steps: None)
