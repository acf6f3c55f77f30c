"""Elapsed seconds and peak memory of work on a CPU or a CUDA device."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from experiments.measuring.benchmark import median

T = TypeVar("T")


@dataclass(frozen=True)
class Clock:
    """Elapsed seconds, and the most memory held so far: the process's on a CPU, the allocator's on a CUDA device."""

    device: torch.device

    def __post_init__(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def timed(self, work: Callable[[], T]) -> tuple[T, float]:
        self._wait()
        began = time.perf_counter()
        made = work()
        self._wait()
        return made, time.perf_counter() - began

    def repeated(self, work: Callable[[], object], times: int, warm_up: int) -> float:
        """Median seconds."""
        return median([self.timed(work)[1] for _ in range(warm_up + times)][warm_up:])

    def peak(self) -> int:
        """Bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
