"""What an experiment's measure gives back, how its parameters are checked, and the figures over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from experiments.measuring.benchmark import Progress
from gradtf_fl.config import Section, validate

ROWS_LEAVE = "rows leave"
"""A column of 0 and 1: whether private rows leave the organization."""

STUDENT_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Two-sided 95 % quantile of Student's t for 2, 3, ... 10 values."""


class Cell(NamedTuple):
    """One number of a table, for one seed."""

    row: str
    column: str
    value: float


class StepCounter:
    """A measure's progress: what begins, in the order in which it begins, and ``total`` such steps in all."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._begun = progress, total, 0

    def begin(self, what: str) -> None:
        """``what`` begins; all steps that began before are behind."""
        self._progress(what, self._begun, self._total)
        self._begun += 1

    def within(self, part: str) -> Callable[[str], None]:
        """`begin` for the steps of ``part``, which is named before each."""
        return lambda what: self.begin(f"{part}: {what}")


class Measure(Protocol):
    """What a preset names; `measure` makes one.

    Attributes:
        shipped: whether it measures the Grad-Transformer in the package, whose hash then goes into the results.
    """

    shipped: bool

    def __call__(self, parameters: Mapping[str, Any], seed: int, progress: Progress) -> list[Cell]:
        """All cells of one seed."""

    def check(self, parameters: Mapping[str, Any], where: Callable[[str], str]) -> None:
        """ConfigError with every problem of ``parameters``; ``where`` names the place of a key for the reader."""


P = TypeVar("P", bound=Section)


def measure(schema: type[P], *, shipped: bool = False) -> Callable[[Callable[[P, int, Progress], list[Cell]]], Measure]:
    """Decorate ``function(parameters: schema, seed, progress)``: the preset's parameters are checked, then typed.

    ``shipped``: it measures the Grad-Transformer in the package.

    In a list-valued key of a TOML file the schema says ``list``, since types are strict (see `gradtf_fl.config`).
    """

    def decorate(function: Callable[[P, int, Progress], list[Cell]]) -> Measure:
        def typed(parameters: Mapping[str, Any], where: Callable[[str], str]) -> P:
            return validate(schema, parameters, where)

        @wraps(function)
        def run(parameters: Mapping[str, Any], seed: int, progress: Progress) -> list[Cell]:
            return function(typed(parameters, lambda key: f"parameters.{key}"), seed, progress)

        run.check = typed  # type: ignore[attr-defined]
        run.shipped = shipped  # type: ignore[attr-defined]
        return run  # type: ignore[return-value]

    return decorate


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half width of the 95 % interval) by Student's t; the width is 0 for one value.

    Above 10 values the quantile of 10 is taken: a little too wide.
    """
    n = len(values)
    if n == 1:
        return float(values[0]), 0.0
    quantile = STUDENT_95[min(n - 2, len(STUDENT_95) - 1)]
    return float(np.mean(values)), quantile * float(np.std(values, ddof=1)) / math.sqrt(n)


def recovered(made: Sequence[float], floor: Sequence[float], ceiling: Sequence[float]) -> float:
    """PGR of means over rules: (made - floor) / (ceiling - floor); nan without a gap."""
    low = float(np.mean(floor))
    gap = float(np.mean(ceiling)) - low
    return (float(np.mean(made)) - low) / gap if gap else math.nan
