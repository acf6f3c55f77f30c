"""Table 1: one organization without DP, on seen and unseen House Rules; every rival on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Annotated

from pydantic import Field

from experiments.embedded import draw, tune
from experiments.measuring import ROWS_LEAVE, Cell, Progress, StepCounter, measure
from experiments.paper.dp_accuracy import RuleKind, rules_of
from experiments.paper.measures.shipped import (
    CEILING,
    FLOOR,
    LLM_BASE,
    TINY_BASE,
    Step,
    accuracy,
    accuracy_cells,
    as_rows,
    base_accuracy,
    bench,
    contest,
    every_rival,
    pgr_cells,
    recipes,
)
from gradtf_fl.baselines import Baseline, Case, with_prompt_loss
from gradtf_fl.config import Count, Section

KINDS: tuple[RuleKind, ...] = ("seen", "unseen")


class SingleClient(Section):
    """Parameters.

    Attributes:
        rules: seen rules with a gap to recover, and as many unseen ones, drawn for each seed; one organization each.
        rows, test_rows: private and test rows of an organization.
        public_prompts: what public-w2s labels, of other public rules.
        texts: rows that a TinyLM writes for the synthetic-text rivals.
        steps: of every plain tuning, TinyLM and LLM.
    """

    rules: Annotated[int, Field(ge=1, le=16)]
    rows: Count
    test_rows: Count
    public_prompts: Count
    texts: Count
    steps: Count


@measure(SingleClient, shipped=True)
def single_client(parameters: SingleClient, seed: int, progress: Progress) -> list[Cell]:
    """Accuracy and PGR of every rival, and whether private rows leave."""
    rivals = every_rival(parameters.texts, parameters.steps)
    counter = StepCounter(progress, len(KINDS) * (len(rivals) + 1))
    cells = [cell for kind in KINDS for cell in _rules(kind, rivals, parameters, seed, counter.within(f"{kind} rules"))]
    return cells + [Cell(rival.name, ROWS_LEAVE, float(rival.private_rows_leave)) for rival in rivals]


def _rules(kind: RuleKind, rivals: Sequence[Baseline], parameters: SingleClient, seed: int, step: Step) -> list[Cell]:
    step("floor and ceiling")
    pair, count = bench().pair, parameters.rules
    tiny_recipe, llm_recipe = recipes(parameters.steps)
    rules = rules_of(seed, count, kind)
    private, test = draw(rules, parameters.rows, "private", seed), draw(rules, parameters.test_rows, "test", seed)
    tiny = tune(pair.tiny, private, count, tiny_recipe, seed)
    llm = tune(pair.llm, private, count, llm_recipe, seed)
    writers = tune(pair.tiny, with_prompt_loss(private), count, tiny_recipe, seed)
    prompts = draw(rules_of(seed, 1), parameters.public_prompts, "public", seed)  # masked: no rule can be told
    case = Case(
        tiny,
        seed,
        as_rows(private, count),
        tuple(row.prompt for row in chain.from_iterable(as_rows(prompts, 1))),
        writers,
    )
    floor, ceiling = accuracy(pair.tiny, tiny, test), accuracy(pair.llm, llm, test)
    ends = {
        TINY_BASE: base_accuracy(pair.tiny, test, count),
        FLOOR: floor,
        LLM_BASE: base_accuracy(pair.llm, test, count),
        CEILING: ceiling,
    }
    scores = contest(rivals, case, test, step)
    group = f"{kind} rules"
    return [*accuracy_cells(group, ends), *accuracy_cells(group, scores), *pgr_cells(group, scores, floor, ceiling)]
