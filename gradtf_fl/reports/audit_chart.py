"""Geometry of the chart of epsilon over rounds: numbers for an SVG, no drawing."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradtf_fl.reports.audit import LedgerReport

WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 38, 18, 24, 38
"""Margins. Above the plot there is a line of text (what the axis is, the budget), below it two (ticks, what they are),
so that no label meets the curve, whatever the figures."""
CAPTION_Y, TICK_Y, X_CAPTION_Y = 12, HEIGHT - BOTTOM + 15, HEIGHT - 4
FAR = 10
"""A budget more than this many times the largest epsilon would flatten every curve: it is named, not drawn."""


@dataclass(frozen=True)
class Tick:
    """A label and its place on one axis, in SVG units."""

    at: float
    label: str


@dataclass(frozen=True)
class Point:
    """Epsilon after one round, in SVG units, with the words shown for it."""

    x: float
    y: float
    settled: bool
    label: str


@dataclass(frozen=True)
class Chart:
    """One organization's chart. ``budget`` names a finite one; ``budget_y`` is None where no line is drawn for it."""

    points: tuple[Point, ...]
    line: str
    area: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    budget: str | None
    budget_y: float | None
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM
    caption_y: int = CAPTION_Y
    tick_y: int = TICK_Y
    x_caption_y: int = X_CAPTION_Y


def highest(reports: list[LedgerReport]) -> float:
    """Top of the epsilon axis that all organizations share: the largest epsilon or near budget (`FAR`), and 8 %."""
    spent = max([report.epsilon.prv for report in reports if math.isfinite(report.epsilon.prv)], default=0.0)
    budgets = [report.budget for report in reports if math.isfinite(report.budget)]
    near = [budget for budget in budgets if budget <= FAR * spent] if spent else budgets
    return max([spent, *near, 0.1]) * 1.08


def chart(report: LedgerReport, top: float) -> Chart | None:
    """Chart of one ledger on an epsilon axis of 0..``top``; None when epsilon is infinite."""
    if not math.isfinite(report.epsilon.prv):
        return None
    count = max(1, len(report.rounds))

    def x(position: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * position / count, 1)

    def y(epsilon: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * epsilon / top, 1)

    points = tuple(
        Point(
            x(i),
            y(cost.epsilon_after),
            cost.charge.state == "settled",
            f"round {cost.charge.round} ({cost.charge.state}): epsilon {cost.epsilon_after:.3f}",
        )
        for i, cost in enumerate(report.rounds, 1)
        if cost.epsilon_after is not None
    )
    corners = [(x(0), y(0)), *((p.x, p.y) for p in points)]
    line = " ".join(f"{a},{b}" for a, b in corners)
    x_step = max(1, math.ceil(nice_step(count, 6)))
    y_step = nice_step(top, 5)
    limited, drawn = math.isfinite(report.budget), report.budget <= top
    return Chart(
        points=points,
        line=line,
        area=f"{line} {corners[-1][0]},{y(0)}",
        x_ticks=tuple(Tick(x(i), str(i)) for i in range(0, count + 1, x_step)),
        y_ticks=tuple(Tick(y(i * y_step), f"{i * y_step:g}") for i in range(int(top / y_step) + 1)),
        budget=f"budget {report.budget:g}" + ("" if drawn else ", beyond this chart") if limited else None,
        budget_y=y(report.budget) if drawn else None,
    )


def nice_step(span: float, most: int) -> float:
    """1, 2 or 5 times a power of ten, so that at most ``most`` intervals cover ``span``."""
    rough = span / most
    power = 10.0 ** math.floor(math.log10(rough))
    return next(float(f"{m * power:.12g}") for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
