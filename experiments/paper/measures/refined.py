"""Refinement on public prompts (`gradtf_fl.transformer.refinement`) and plain generation: known and new tasks."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from experiments.measuring import Cell, Progress, StepCounter, measure, recovered
from experiments.paper.measures.federations import NO_DP, Federations
from experiments.paper.measures.shipped import CEILING, FLOOR, LEAST_GAP, accuracy, bench, refined_updates
from gradtf_fl.config import Count, Rules, Section
from gradtf_fl.tasks import house_rules_federation, public_rows

SEEDS_APART = 1000
"""Federation f of seed s is drawn with seed 1000 s + f."""


class Refined(Section):
    """Parameters.

    Attributes:
        kinds: of `gradtf_fl.tasks.house_rules_federation`.
        epsilons: of a whole run of three rounds; "none" is without noise.
        federations: of each kind; members: organizations in each.
        prompts: public prompts that the provider has.
    """

    kinds: list[Rules]
    epsilons: list[Annotated[float, Field(gt=0)] | Literal["none"]]
    federations: Count
    members: Count
    rows: Count
    test_rows: Count
    steps: Count
    prompts: Count


@measure(Refined, shipped=True)
def refined(parameters: Refined, seed: int, progress: Progress) -> list[Cell]:
    """Accuracy of TinyLM and LLM, PGR with and without refinement, and the share of federations where it was taken."""
    counter = StepCounter(progress, len(parameters.kinds) * (1 + len(parameters.epsilons)))
    cells: list[Cell] = []
    for kind in parameters.kinds:
        cells += _kind(kind, parameters, seed, counter)
    return cells


def _kind(kind: Rules, parameters: Refined, seed: int, counter: StepCounter) -> list[Cell]:
    counter.begin(f"{kind}: ceiling")
    drawn = [
        house_rules_federation(
            kind, parameters.members, parameters.rows, parameters.test_rows, seed * SEEDS_APART + number
        )
        for number in range(parameters.federations)
    ]
    federations = Federations.of(drawn, parameters.steps)
    ceiling = federations.pooled_ceiling(seed) if parameters.members == 1 else federations.own_ceiling(seed)
    prompts = [row.prompt for row in public_rows(kind, parameters.prompts, seed)]
    cells = []
    for epsilon in parameters.epsilons:
        counter.begin(f"{kind}: epsilon {epsilon}")
        cells += _epsilon(f"{kind}, epsilon {epsilon}", epsilon, federations, ceiling, prompts, parameters, seed)
    return cells


def _epsilon(
    row: str,
    epsilon: float | str,
    federations: Federations,
    ceiling: list[float],
    prompts: list[str],
    parameters: Refined,
    seed: int,
) -> list[Cell]:
    pair = bench().pair
    updates, first = federations.together(NO_DP if isinstance(epsilon, str) else epsilon, seed)
    found = refined_updates(pair, updates, tuple(prompts), first)
    per_organization = {
        name: federations.per_organization(made)
        for name, made in ((FLOOR, updates), ("generated", found.plain), ("refined", found.updates))
    }
    scores = {
        name: accuracy(pair.tiny if name == FLOOR else pair.llm, made, federations.test)
        for name, made in per_organization.items()
    } | {CEILING: ceiling}
    cells = [Cell(row, f"accuracy, {name}", float(np.mean(values))) for name, values in scores.items()]
    if float(np.mean(ceiling)) - float(np.mean(scores[FLOOR])) >= LEAST_GAP:
        ours = ("generated", "refined")
        cells += [Cell(row, f"PGR, {name}", recovered(scores[name], scores[FLOOR], ceiling)) for name in ours]
    return [*cells, Cell(row, "share refined", float((found.taken | (found.kinds > 0)).float().mean()))]
