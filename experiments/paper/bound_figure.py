"""The figure of `experiments.paper.bound_against_gap`, and its caption, from the JSON document."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def figure(document: dict[str, Any], path: Path) -> None:
    """Bounds and gaps on one logarithmic axis; the caption says what is vacuous."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = document["lines"]
    cap = document["loss"]["clipped_at"]
    fig, axes = plt.subplots(figsize=(10.5, 6.8))
    top = 3 * max(one["bound"] or 0 for one in lines)
    for place, one in enumerate(reversed(lines)):
        gap = max(one["gap"], 1e-5)
        low, high = (max(abs(x), 1e-5) for x in sorted(one["interval"], key=abs))
        if one["interval"][0] < 0 < one["interval"][1]:
            low = 1e-5
        axes.plot([low, high], [place, place], color="tab:green", linewidth=3, alpha=0.4)
        axes.plot(gap, place, "o", color="tab:green")
        infinite = one["bound"] is None
        axes.plot(top if infinite else one["bound"], place, ">" if infinite else "s", color="tab:red")
        axes.text(top * 1.6, place, "infinite" if infinite else f"{one['bound']:.2f}", va="center", fontsize=8)
    axes.axvline(cap, color="black", linestyle="--", linewidth=1)
    axes.text(cap * 0.9, len(lines) - 0.35, f"largest possible gap: {cap:.2f}", ha="right", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(8e-6, top * 12)
    axes.set_ylim(-0.8, len(lines) + 0.2)
    axes.set_yticks(range(len(lines)), [f"{one['what']}\n{one['mechanism']}" for one in reversed(lines)], fontsize=7)
    axes.set_xlabel("nats of clipped loss: measured gap (green, 95 % over rules) and its bound (red)")
    axes.grid(axis="x", alpha=0.3)
    fig.text(0.01, 0.005, caption(document), fontsize=7.5, va="bottom", wrap=True)
    fig.tight_layout(rect=(0, 0.09, 1, 1))
    fig.savefig(path, dpi=130)
    plt.close(fig)


def caption(document: dict[str, Any]) -> str:
    """What the figure shows, with its own numbers."""
    lines, loss = document["lines"], document["loss"]
    means = loss["means"]
    vacuous = [one for one in lines if one["bound"] is None or one["bound"] >= loss["clipped_at"]]
    ratios = sorted(one["bound"] / max(one["gap"], 1e-9) for one in lines if one["bound"] is not None)
    return (
        f"{len(vacuous)} of {len(lines)} bounds are vacuous: above {loss['clipped_at']:.2f}, which no gap of the "
        f"clipped loss can exceed. The finite ones are {ratios[0]:,.1f} to {ratios[-1]:,.0f} times the gap.\n"
        f"Loss on the rows tuned on is {means['public']['none']['tuned_on']:.3f} for public rules and "
        f"{means['unseen']['none']['tuned_on']:.2f} for unseen ones: no bound covers that, KL is infinite "
        f"({document['unseen_rules_with_rows_that_no_public_rule_makes']} of {len(document['rules']['unseen'])} unseen "
        "rules have rows that no public rule makes).\n"
        '"What if": bounds of a Grad-Transformer made from DP tuples alone, beside the gap of the shipped one, which '
        "has read public rows."
    )
