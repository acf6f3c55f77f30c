"""What each part of the training is worth: one small Grad-Transformer for each part left out or changed.

All variants of a seed see the same store (B only: one of its own, from the same rows) and the same private sets, so
that differences within a seed are paired.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from experiments.measuring import Cell, Progress, measure
from experiments.paper.measures.trial import Scores, Trial, accuracy_cells, beside_cells, pgr, run_trials
from experiments.paper.measures.trial_parameters import TrialParameters
from gradtf_fl.config import Count

STANDARD = "functional (standard)"
UNSCALED = ("mse, no scaling", "functional, no scaling")
B_ONLY = "B only (FFA)"
NEARNESS = {
    "distance to the mean update": "distance",
    "spread over inputs": "spread",
    "cosine with the mean update": "cosine",
}
"""Of generated updates on seen rules; see `trial.score`."""


class AblationParameters(TrialParameters):
    """``mse_steps``: steps of `mse`, which cost less than those of `functional`."""

    mse_steps: Count = 1500


@measure(AblationParameters)
def ablations(parameters: AblationParameters, seed: int, progress: Progress) -> list[Cell]:
    """A row for each variant: accuracy and PGR of one organization and of sums of five, and how near the mean it is."""
    trials = variants(parameters, seed)
    scores = run_trials(trials, parameters.private(seed), parameters.site, progress)
    cells = [cell for name, found in scores.items() for cell in _cells(name, found)]
    b_only = scores[B_ONLY]
    for group in ("seen", "unseen"):
        for row, name in (("TinyLM tuned, B only", "tiny_tuned"), ("LLM tuned, B only", "llm_ceiling")):
            cells.append(Cell(row, f"{group} accuracy", b_only[f"{group} {name}"]))
    return cells + beside_cells(scores[STANDARD])


def variants(parameters: AblationParameters, seed: int) -> dict[str, Trial]:
    """The variants by name.

    Without scaling, input noise in units of the inputs' scale would drown the inputs: those variants have none, and
    are read against the one that has only no noise.
    """
    base = parameters.trial(seed)
    mse: dict[str, Any] = {"objective": "mse", "steps": parameters.mse_steps}
    silent: dict[str, Any] = {"input_noise": 0.0}
    frozen_a = replace(base.store, spec=replace(base.store.spec, train_a=False))
    return {
        STANDARD: base,
        "mse": parameters.trial(seed, **mse),
        "mse-then-functional": parameters.trial(seed, objective="mse-then-functional"),
        UNSCALED[0]: parameters.trial(seed, **mse, **silent, scaled=False),
        UNSCALED[1]: parameters.trial(seed, **silent, scaled=False),
        "no input noise": parameters.trial(seed, **silent),
        "no averages in training": parameters.trial(seed, averaged=False),
        B_ONLY: replace(base, store=frozen_a),
        "mixtures 0": parameters.trial(seed, mixture_share=0.0),
        "mixtures .5": parameters.trial(seed, mixture_share=0.5),
    }


def _cells(row: str, scores: Scores) -> list[Cell]:
    cells = accuracy_cells(row, scores)
    for group in ("seen", "unseen"):
        five = scores[f"{group} five generated"]
        cells.append(Cell(row, f"{group} accuracy, sum of five", five))
        cells.append(Cell(row, f"{group} PGR, sum of five", pgr(scores, group, five)))
    return cells + [Cell(row, column, scores[f"seen {name}"]) for column, name in NEARNESS.items()]
