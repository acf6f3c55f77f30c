"""Partition strategies (paper, Table 4): how update vectors are cut into tokens, all else equal."""

from __future__ import annotations

from experiments.measuring import Cell, Progress, measure
from experiments.paper.measures.trial import accuracy_cells, beside_cells, run_trials
from experiments.paper.measures.trial_parameters import TrialParameters
from gradtf_fl.transformer import PLANS


@measure(TrialParameters)
def partitions(parameters: TrialParameters, seed: int, progress: Progress) -> list[Cell]:
    """A row for each strategy, and the floor, ceiling and controls of the same store."""
    trials = {name: parameters.trial(seed, partition=name) for name in PLANS}
    scores = run_trials(trials, parameters.private(seed), parameters.site, progress)
    cells = [cell for name, found in scores.items() for cell in accuracy_cells(name, found)]
    return cells + beside_cells(scores["block"])
