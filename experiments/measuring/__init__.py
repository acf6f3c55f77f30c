"""What benchmarks and experiments share: machine, clocks, rows, cells, a real model, provenance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from experiments.measuring.benchmark import CpuClock, Progress, Row, cpu_seconds, machine, median
    from experiments.measuring.cells import ROWS_LEAVE, Cell, Measure, StepCounter, interval, measure, recovered
    from experiments.measuring.clock import Clock
    from experiments.measuring.provenance import PACKAGES, default_out, revision
    from experiments.measuring.real_model import MODEL_FOLDER, smollm2_folder
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "MODEL_FOLDER",
    "PACKAGES",
    "ROWS_LEAVE",
    "Cell",
    "Clock",
    "CpuClock",
    "Measure",
    "Progress",
    "Row",
    "StepCounter",
    "cpu_seconds",
    "default_out",
    "interval",
    "machine",
    "measure",
    "median",
    "recovered",
    "revision",
    "smollm2_folder",
]
