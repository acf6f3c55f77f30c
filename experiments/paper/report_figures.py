"""One PNG for a preset's results: curves over an axis, or rows with their intervals; a panel for each unit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.paper.results_table import ResultsTable

COLOURS = ("#1f6feb", "#b4531f", "#1a7f37", "#8250df", "#bf3989", "#6e7781", "#0a7ea4", "#9a6700", "#444c56", "#cf222e")
MARKERS = "osD^vP*Xd<"
WIDE, CURVES, LEAST, ROW, LEGEND_ROW, BELOW = 6.5, 4.2, 3.2, 0.32, 0.24, 0.7
"""Inches: a panel's width, its height with curves, its least height with rows, the height of a row for one column and
of a line of the legend, and how far below the axis the legend begins."""
ENDS = {"PGR": (0.0, 1.0)}
"""Dotted lines: floor and ceiling."""
LONG = 30
"""Letters of a name that needs the figure's whole width."""
LOGARITHMIC = 30.0
"""An axis is logarithmic when its largest positive value is this many times the smallest."""


class Look(NamedTuple):
    """How a column is drawn."""

    colour: str
    marker: str


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw the results ``document`` as its preset's ``kind`` says, and replace ``path``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tables = ResultsTable.of(document).by_unit()
    is_line = document["kind"] == "line"
    long_names = not is_line and max(len(row) for table in tables for row in table.rows) > LONG
    across = 1 if long_names or len(tables) == 1 else 2
    heights = [
        max(_height(table, is_line) for table in tables[first : first + across])
        for first in range(0, len(tables), across)
    ]
    figure, axes = pyplot.subplots(
        len(heights),
        across,
        figsize=(WIDE * (1.5 if across == 1 else across), sum(heights)),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for spare in list(axes.flat)[len(tables) :]:
        spare.axis("off")
    looks = _looks(tables)
    for number, (axis, table) in enumerate(zip(axes.flat, tables, strict=False)):
        if is_line:
            _curves(axis, table, looks, document["x"])
        else:
            _rows(axis, table, looks, bars=document["kind"] == "bar")
        axis.grid(alpha=0.3)
        columns = 1 if max(map(len, table.measured)) > LONG else 2
        below = (0.5, -BELOW / heights[number // across])
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=below, ncols=columns)
    figure.suptitle(document["title"], fontsize=12)
    draft = path.with_name(f".{path.name}.new")
    figure.savefig(draft, dpi=110, format="png")
    pyplot.close(figure)
    os.replace(draft, path)


def _height(table: ResultsTable, is_line: bool) -> float:
    """Inches of a panel with its legend."""
    columns = len(table.measured)
    panel = CURVES if is_line else max(LEAST, 1.2 + len(table.rows) * ROW * (0.6 + 0.4 * columns))
    return panel + LEGEND_ROW * columns


def _looks(tables: list[ResultsTable]) -> dict[str, Look]:
    """One colour and marker for a heading, whatever the panel."""
    headings = dict.fromkeys(table.heading(column) for table in tables for column in table.measured)
    return {
        heading: Look(COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)])
        for number, heading in enumerate(headings)
    }


def _limits(table: ResultsTable) -> tuple[float, float]:
    """An axis' ends: room for all means, while the intervals of few seeds, which may be far longer, are cut."""
    found = [table.interval(row, column) for row in table.rows for column in table.measured]
    means = [value[0] for value in found if value is not None] + list(ENDS.get(table.unit, ()))
    if table.unit == "accuracy":
        return -0.03, max(1.03, *means)
    widest = max(value[1] for value in found if value is not None)
    room = min(widest, 0.5 * (max(means) - min(means))) + 0.05 * (max(means) - min(means) or 1.0)
    return min(means) - room, max(means) + room


def _curves(axis: Any, table: ResultsTable, looks: Mapping[str, Look], x: str) -> None:
    """A curve for each column, its points a little aside so that no interval hides another."""
    for number, column in enumerate(table.measured):
        found = [(float(row), table.interval(row, column)) for row in table.rows]
        points = [(place, *value) for place, value in found if value is not None]
        at, means, widths = zip(*points, strict=True)
        label = table.heading(column)
        aside = 1 + 0.012 * (number - len(table.measured) / 2)
        axis.errorbar(
            [place * aside for place in at],
            means,
            yerr=widths,
            fmt=f"-{looks[label].marker}",
            color=looks[label].colour,
            label=label,
            capsize=3,
            markersize=4,
        )
    axis.set_ylim(_limits(table))
    for end in ENDS.get(table.unit, ()):
        axis.axhline(end, color="#444c56", linewidth=1, linestyle=":")
    places = sorted(float(row) for row in table.rows)
    if places[0] > 0 and places[-1] / places[0] >= 8:
        axis.set_xscale("log", base=2)
    axis.set_xticks(places, [f"{place:g}" for place in places])
    axis.minorticks_off()
    axis.set_xlabel(x)
    axis.set_ylabel(table.unit)


def _rows(axis: Any, table: ResultsTable, looks: Mapping[str, Look], bars: bool) -> None:
    """A line of the figure for each row, the first on top; columns side by side in it."""
    count = len(table.measured)
    means: list[float] = []
    for number, column in enumerate(table.measured):
        offset = (number - (count - 1) / 2) * 0.8 / count
        found = [(place + offset, table.interval(row, column)) for place, row in enumerate(table.rows)]
        points = [(place, *value) for place, value in found if value is not None]
        at, values, widths = zip(*points, strict=True)
        means += values
        label = table.heading(column)
        colour, marker = looks[label]
        if bars:
            axis.barh(at, values, height=0.75 / count, xerr=widths, color=colour, label=label, capsize=2)
        else:
            axis.errorbar(
                values, at, xerr=widths, fmt=marker, color=colour, label=label, capsize=3, markersize=5, linewidth=1.2
            )
    for end in ENDS.get(table.unit, ()):
        axis.axvline(end, color="#444c56", linewidth=1, linestyle=":")
    axis.set_yticks(range(len(table.rows)), table.rows, fontsize=9)
    axis.set_ylim(len(table.rows) - 0.5, -0.5)
    axis.set_xlabel(table.unit)
    if table.unit == "seconds" and min(means) > 0 and max(means) / min(means) > LOGARITHMIC:
        axis.set_xscale("log")
    else:
        axis.set_xlim(_limits(table))
