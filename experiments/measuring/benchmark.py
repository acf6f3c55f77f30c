"""What every ``gradtf bench`` has in common: its rows, the machine it ran on, and how CPU time is taken."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Progress = Callable[[str, int, int], None]
"""Called with (what goes on now, steps done, steps in all)."""


@dataclass(frozen=True)
class Row:
    """One measured line.

    Attributes:
        what: the quantity.
        unit: of ``ours``, ``theirs`` and ``limit``.
        size: the problem's size by symbol, e.g. {"d": 1e6, "n": 50}.
        ours: median of ``runs``.
        peer, theirs: whose code did the same job on the same data, and its figure.
        limit: what this machine could do at best, measured in the same run.
        rate: more is better; otherwise the row is a cost.
        runs: measurements of ours behind the median.
        note: how a figure came about where that is not plain.
        beside: further figures of the same round, by name.
    """

    what: str
    size: Mapping[str, float]
    unit: str
    ours: float
    peer: str | None = None
    theirs: float | None = None
    limit: float | None = None
    rate: bool = False
    runs: int = 1
    note: str = ""
    beside: Mapping[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """How many times better than the peer: theirs / ours for a cost, ours / theirs for a rate."""
        if self.theirs is None:
            return None
        return self.ours / self.theirs if self.rate else self.theirs / self.ours

    def to_json(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in ("what", "size", "unit", "ours", "peer", "theirs", "ratio")}
        return {**fields, "limit": self.limit, "runs": self.runs, "note": self.note, **self.beside}


@dataclass
class CpuClock:
    """CPU seconds of this process (all threads) inside its ``with`` blocks, summed."""

    seconds: float = 0.0
    _began: float = field(default=0.0, repr=False)

    def __enter__(self) -> CpuClock:
        self._began = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.process_time() - self._began


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    with CpuClock() as clock:
        work()
    return clock.seconds


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def machine(packages: Iterable[str]) -> dict[str, Any]:
    """Processor, cores, load at the start, and versions of Python, ``packages`` and OpenSSL."""
    versions = {name: _version(name) for name in packages}
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        **versions,
        "openssl": _openssl(),
    }


def _openssl() -> str | None:
    try:
        from cryptography.hazmat.backends.openssl import backend
    except ImportError:
        return None
    return backend.openssl_version_text()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
