"""Figures 4 and 7: accuracy and PGR over epsilon, for federations of one and of five organizations."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from experiments.embedded import LLM_RECIPE, ROWS, TEST_ROWS, draw, tune
from experiments.measuring import Cell, Progress, StepCounter, measure
from experiments.paper.dp_accuracy import measure as accuracy_under_dp
from experiments.paper.dp_accuracy import pgr, rules_of
from experiments.paper.measures.shipped import CEILING, accuracy, bench
from gradtf_fl.config import Count, Epsilon, Section

CURVES = {"tiny": "TinyLM", "generated": "generated LLM", "nearest": "nearest update"}


class Private(Section):
    """Parameters.

    Attributes:
        kind: seen rules with a gap to recover, or unseen ones.
        rules: drawn for each seed; a federation of each size for each.
        organizations: sizes of federations; 1 must be among them, it is the floor.
        epsilons: of a row, for a whole run of three rounds.
    """

    kind: Literal["seen", "unseen"]
    rules: Annotated[int, Field(ge=1, le=16)]
    organizations: list[Count]
    epsilons: list[Epsilon]


@measure(Private, shipped=True)
def over_epsilon(parameters: Private, seed: int, progress: Progress) -> list[Cell]:
    """A row for each epsilon. Floor: the TinyLM that one organization tuned under the same DP; ceiling: without DP."""
    rules = rules_of(seed, parameters.rules, parameters.kind)
    counter = StepCounter(progress, 1 + len(parameters.epsilons))
    counter.begin("ceiling")
    private, test = draw(rules, ROWS, "private", seed), draw(rules, TEST_ROWS, "test", seed)
    ceiling = accuracy(bench().llm, tune(bench().llm, private, len(rules), LLM_RECIPE, seed), test)
    cells = []
    for epsilon in parameters.epsilons:
        counter.begin(f"epsilon {epsilon:g}")
        scores = accuracy_under_dp(bench(), rules, epsilon, seed, parameters.organizations)
        row = f"{epsilon:g}"
        for size in parameters.organizations:
            who = f"{size} organization{'s' if size > 1 else ''}"
            cells += [
                Cell(row, f"{what}, {who}", float(np.mean(scores[f"{key}_{size}"]))) for key, what in CURVES.items()
            ]
            cells.append(Cell(row, f"PGR, {who}", pgr({**scores, "llm_ceiling": ceiling}, size)))
        cells.append(Cell(row, CEILING, float(np.mean(ceiling))))
    return cells
