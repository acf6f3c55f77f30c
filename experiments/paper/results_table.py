"""A preset's results as a table: mean and 95 % interval over seeds of each cell, each unit apart from the others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.measuring import ROWS_LEAVE, interval
from experiments.paper.runner import cells_by_seed

UNITS = re.compile(r"\b(PGR|accuracy|seconds|share|ratio|nats|distance|spread|cosine)\b")
"""Words by which a column says what it is measured in; other columns are in the preset's unit."""

TITLED = ("accuracy", "PGR")


@dataclass(frozen=True)
class ResultsTable:
    """Rows and columns in the order in which the measure gave them.

    Attributes:
        unit: of the columns that don't say theirs.
        values: one number for each seed, by row and column.
    """

    unit: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Mapping[tuple[str, str], tuple[float, ...]]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> ResultsTable:
        """From a results document (see `experiments.paper.runner`)."""
        values: dict[tuple[str, str], list[float]] = {}
        for cells in cells_by_seed(document).values():
            for cell in cells:
                values.setdefault((cell.row, cell.column), []).append(cell.value)
        rows, columns = (tuple(dict.fromkeys(key[side] for key in values)) for side in (0, 1))
        return cls(document["unit"], rows, columns, {key: tuple(found) for key, found in values.items()})

    def by_unit(self) -> list[ResultsTable]:
        """A table for each unit, only with the rows that have a value there; whether rows leave stands in each."""
        parts: dict[str, list[str]] = {}
        for column in self.columns:
            if column != ROWS_LEAVE:
                found = UNITS.search(column)
                parts.setdefault(found[0] if found else self.unit, []).append(column)
        aside = tuple(column for column in self.columns if column == ROWS_LEAVE)
        tables = []
        for unit, columns in parts.items():
            rows = tuple(row for row in self.rows if any((row, column) in self.values for column in columns))
            tables.append(ResultsTable(unit, rows, (*columns, *aside), self.values))
        return tables

    @property
    def measured(self) -> tuple[str, ...]:
        """The columns without `ROWS_LEAVE`."""
        return tuple(column for column in self.columns if column != ROWS_LEAVE)

    def heading(self, column: str) -> str:
        """``column`` without ``accuracy`` or ``PGR``, which the table's title says."""
        if self.unit not in TITLED:
            return column
        return re.sub(rf"^{self.unit}, |[:,]? {self.unit}\b", "", column)

    def interval(self, row: str, column: str) -> tuple[float, float] | None:
        """(mean, half width) over seeds; None where the measure gave nothing."""
        found = self.values.get((row, column))
        return None if found is None else interval(found)

    def text(self, row: str, column: str) -> str:
        """``.912 ± .034``; one seed has no interval, and whether rows leave is yes or no."""
        found = self.interval(row, column)
        if found is None:
            return ""
        if column == ROWS_LEAVE:
            return "yes" if found[0] else "no"
        mean, width = found
        return number(mean) if len(self.values[(row, column)]) == 1 else f"{number(mean)} ± {number(width)}"


def number(value: float) -> str:
    """Three places, but two figures of what is smaller than .01, and none after the point above 100."""
    if value != 0 and abs(value) < 0.01:
        return f"{value:.2g}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
