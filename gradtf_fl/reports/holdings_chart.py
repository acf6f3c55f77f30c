"""A picture of who holds what: one bar an organization, one colour a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

MOST_LABELS = 12
"""Labels with a colour of their own; the rarest of more are drawn as one."""
OTHERS = "others"
MOST_ORGANIZATIONS = 60


def draw_holdings(holdings: Sequence[tuple[str, Mapping[str, int]]], path: Path) -> None:
    """Write a PNG.

    Args:
        holdings: name and training rows by label of each organization, top to bottom; of many the first ones.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    whole, drawn = len(holdings), holdings[:MOST_ORGANIZATIONS]
    shown = largest_labels([held for _, held in drawn])
    figure = Figure(figsize=(8.0, 1.6 + 0.34 * len(drawn)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = list(range(len(drawn)))
    left = [0] * len(drawn)
    for number, label in enumerate(shown):
        counts = [count_of(held, label, shown) for _, held in drawn]
        axes.barh(places, counts, left=left, label=label, color=f"C{number}" if number < 10 else str(0.9 - number / 20))
        left = [start + count for start, count in zip(left, counts, strict=True)]
    axes.set_yticks(places, [name for name, _ in drawn])
    axes.invert_yaxis()
    axes.set_xlabel("training rows")
    more = f" (the first {len(drawn)} of {whole} organizations)" if whole > len(drawn) else ""
    axes.set_title(f"Who holds which rows{more}", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


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
