"""Where shards are made: in this process, in a pool of processes, or as Ray tasks over processes and machines."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait
from typing import Any, Literal

import torch
from torch import Tensor

from gradtf_fl.errors import ConfigError

Workers = int | Literal["ray"]
MakeShard = Callable[[int], dict[str, Tensor]]
Finished = Iterator[tuple[str, dict[str, Tensor]]]


def finished_shards(make: MakeShard, wanted: Sequence[tuple[int, str]], workers: Workers | None) -> Finished:
    """(name, tensors) of each of the ``wanted`` shards (number, name), as it is finished.

    Args:
        make: can be pickled; gives a shard by its number, the same wherever it runs.
        workers: processes with one thread each, None for one per core; "ray" for tasks of one CPU each on the
            cluster that RAY_ADDRESS names, or on a local one, whose nodes see the same models and data.

    Raises ConfigError when Ray is wanted and not installed, or its cluster can't be reached.
    """
    if workers == "ray":
        return _by_ray(make, wanted)
    count = workers or os.cpu_count() or 1
    if count == 1 or len(wanted) < 2:
        return ((name, make(number)) for number, name in wanted)
    return _by_processes(make, wanted, count)


def worker_pool(count: int) -> ProcessPoolExecutor:
    """``count`` processes of one thread each, which end with the process that started them.

    A pool whose owner is killed would go on with the work at hand, for minutes, with nobody to hand it to.
    """
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin_worker)


def _begin_worker() -> None:
    torch.set_num_threads(1)
    if (owner := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(owner.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _by_processes(make: MakeShard, wanted: Sequence[tuple[int, str]], count: int) -> Finished:
    with worker_pool(count) as pool:
        running = {pool.submit(make, number): name for number, name in wanted}
        for finished in as_completed(running):
            yield running[finished], finished.result()


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
    return make(number)
