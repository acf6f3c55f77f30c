"""Number of shadow sets (paper, Figure 8): the first N of one store, by both objectives.

`mse` learns from the pair of updates of every set; `functional` learns from the TinyLM's update and the rows of the
same sets, and takes only mean and scale from the LLM's.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.measuring import Cell, Progress, measure
from experiments.paper.measures.trial import run_trials
from experiments.paper.measures.trial_parameters import TrialParameters
from gradtf_fl.config import Count

OBJECTIVES = ("functional", "mse")


class TupleParameters(TrialParameters):
    """``counts`` are multiples of ``stack``; the largest is the store's number of pairs.

    Attributes:
        mse_steps: steps of `mse`, which cost less than those of `functional`.
    """

    counts: list[Count]
    mse_steps: Count = 1500


@measure(TupleParameters)
def tuples(parameters: TupleParameters, seed: int, progress: Progress) -> list[Cell]:
    """Accuracy over the number of shadow sets; floor and ceiling are the same for all."""
    steps = {"functional": parameters.steps, "mse": parameters.mse_steps}
    trials = {
        f"{objective} {count}": replace(parameters.trial(seed, objective=objective, steps=steps[objective]), sets=count)
        for objective in OBJECTIVES
        for count in parameters.counts
    }
    scores = run_trials(trials, parameters.private(seed), parameters.site, progress)
    cells = []
    for count in parameters.counts:
        for group in ("seen", "unseen"):
            for objective in OBJECTIVES:
                found = scores[f"{objective} {count}"]
                cells.append(Cell(str(count), f"{objective}, {group}", found[f"{group} one generated"]))
            cells.append(Cell(str(count), f"nearest update, {group}", found[f"{group} one nearest_update"]))
            cells.append(Cell(str(count), f"TinyLM tuned, {group}", found[f"{group} tiny_tuned"]))
    return cells
