"""Rows of each shadow set (paper, Figure 5): stores that differ in nothing else, the tuning steps included."""

from __future__ import annotations

from dataclasses import replace

from experiments.measuring import Cell, Progress, measure
from experiments.paper.measures.trial import run_trials
from experiments.paper.measures.trial_parameters import TrialParameters
from gradtf_fl.config import Count


class RowParameters(TrialParameters):
    """``counts``: rows of each shadow set."""

    counts: list[Count]


@measure(RowParameters)
def shadow_rows(parameters: RowParameters, seed: int, progress: Progress) -> list[Cell]:
    """Accuracy over the rows of a shadow set, of the generated LLM and of the nearest shadow update."""
    base = parameters.trial(seed)
    trials = {str(rows): replace(base, store=replace(base.store, rows=rows)) for rows in parameters.counts}
    scores = run_trials(trials, parameters.private(seed), parameters.site, progress)
    cells = []
    for rows, found in scores.items():
        for group in ("seen", "unseen"):
            cells.append(Cell(rows, f"generated, {group}", found[f"{group} one generated"]))
            cells.append(Cell(rows, f"nearest update, {group}", found[f"{group} one nearest_update"]))
            cells.append(Cell(rows, f"TinyLM tuned, {group}", found[f"{group} tiny_tuned"]))
    return cells
