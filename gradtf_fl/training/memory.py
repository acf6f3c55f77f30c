"""How much memory work takes and how much there is: what a step may hold is known before it is taken."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakSet, finalize

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, as CUDA, Apple's GPUs, the CPU's allocator or Python say it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def release(device: torch.device) -> None:
    """Give back what the device's allocator keeps for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def available_bytes(device: torch.device) -> int:
    """Memory that this process can still get on ``device``."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return min([_system_bytes(), *_cgroup_bytes()])


def held_bytes(device: torch.device) -> int:
    """Memory that this process holds on ``device`` now; 0 where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def begin_peak(device: torch.device) -> None:
    """From now on `peak_held_bytes` counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is what is held now


def peak_held_bytes(device: torch.device) -> int:
    """Most memory that this process held on ``device`` since `begin_peak`; 0 where the system does not say.

    Unlike `peak_bytes` it counts what kernels take and allocators keep, and it needs the work really done.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    try:
        lines = Path("/proc/self/status").read_text().splitlines() if device.type == "cpu" else []
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration, IndexError, ValueError):
        return 0


def _system_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, IndexError, ValueError):  # no Linux: half of all there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _cgroup_bytes() -> list[int]:
    """What a container's limit leaves; empty without a limit."""
    left = []
    for limit, used in _CGROUPS:
        try:
            left.append(max(0, int(Path(limit).read_text()) - int(Path(used).read_text())))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return left


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes of new tensors that ``work`` holds at one time, on whatever device.

    What kernels take inside themselves, and what allocators round up or keep, is not in it.
    """
    with _Watch() as watch:
        work()
    return int(watch.peak)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that operators make, until they are freed. The backward pass is seen too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = self.peak = 0
        self._seen: WeakSet[Any] = WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        known = {_storage(tensor)._cdata for tensor in _tensors((args, kwargs or {}))}
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            storage = _storage(tensor)
            if storage._cdata not in known and storage not in self._seen:
                self._seen.add(storage)
                size = storage.nbytes()
                self.held += size
                self.peak = max(self.peak, self.held)
                finalize(storage, self._freed, size)
        return made

    def _freed(self, size: int) -> None:
        self.held -= size


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()


def _tensors(values: object) -> list[Tensor]:
    return [value for value in torch.utils._pytree.tree_leaves(values) if isinstance(value, Tensor)]
