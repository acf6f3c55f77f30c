"""A picture of who holds what: one bar an organization, one colour a label; of many, all side by side and sorted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

MOST_LABELS = 12
"""Labels with a colour of their own; the rarest of more are drawn as one."""
OTHERS = "others"
MOST_NAMED = 60
"""Organizations with a line and a name of their own."""


def draw_holdings(holdings: Sequence[tuple[str, Mapping[str, int]]], path: Path) -> None:
    """Write a PNG.

    Args:
        holdings: name and training rows by label of each organization, top to bottom. Above `MOST_NAMED` they stand
            left to right, by the label that they hold most of, then by their rows.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown, many = largest_labels([held for _, held in holdings]), len(holdings) > MOST_NAMED
    drawn = _by_main_label(holdings, shown) if many else list(holdings)
    figure = Figure(figsize=(8.0, 4.5 if many else 1.6 + 0.34 * len(drawn)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = list(range(1, len(drawn) + 1))
    so_far = [0] * len(drawn)
    for number, label in enumerate(shown):
        counts = [count_of(held, label, shown) for _, held in drawn]
        color = f"C{number}" if number < 10 else str(0.9 - number / 20)
        if many:
            axes.bar(places, counts, bottom=so_far, width=1.0, linewidth=0, label=label, color=color)
        else:
            axes.barh(places, counts, left=so_far, label=label, color=color)
        so_far = [start + count for start, count in zip(so_far, counts, strict=True)]
    if many:
        axes.set_xlim(0.5, len(drawn) + 0.5)
        axes.set_xlabel(f"{len(drawn):,} organizations, by the label that they hold most of, then by rows")
        axes.set_ylabel("training rows")
    else:
        axes.set_yticks(places, [name for name, _ in drawn])
        axes.invert_yaxis()
        axes.set_xlabel("training rows")
    axes.set_title("Who holds which rows", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def _by_main_label(
    holdings: Sequence[tuple[str, Mapping[str, int]]], shown: Sequence[str]
) -> list[tuple[str, Mapping[str, int]]]:
    def place(one: tuple[str, Mapping[str, int]]) -> tuple[int, int]:
        counts = [count_of(one[1], label, shown) for label in shown]
        return counts.index(max(counts)), -sum(counts)

    return sorted(holdings, key=place)


def largest_labels(holdings: Sequence[Mapping[str, int]]) -> list[str]:
    """The labels to draw, the most frequent first; `OTHERS` last where there are more."""
    totals: dict[str, int] = {}
    for held in holdings:
        for label, count in held.items():
            totals[label] = totals.get(label, 0) + count
    ordered = sorted(totals, key=lambda label: (-totals[label], label))
    return ordered if len(ordered) <= MOST_LABELS else [*ordered[: MOST_LABELS - 1], OTHERS]


def count_of(held: Mapping[str, int], label: str, shown: Sequence[str]) -> int:
    """Rows of a label, or of all that are not shown."""
    if label == OTHERS and label not in held:
        return sum(count for name, count in held.items() if name not in shown)
    return held.get(label, 0)
