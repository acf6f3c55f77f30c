"""Table 7 and appendix E.1.2: organizations with different tasks, and with mixtures of tasks, without DP."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from experiments.measuring import Cell, Progress, StepCounter, measure, recovered
from experiments.paper.dp_accuracy import rules_of
from experiments.paper.measures.federations import NO_DP, Federations
from experiments.paper.measures.shipped import OURS, Step, accuracy, bench, contest, ours, refined_updates
from gradtf_fl.baselines import Case
from gradtf_fl.config import Count, Rules, Section
from gradtf_fl.tasks import Example, HiddenTask, OrganizationData, house_rules_federation, public_rows, tokens_to_rows
from gradtf_fl.tasks import house_rules as hr

OWN, SUM = f"{OURS} from its own update", f"{OURS} from the sum"
REFINED_OWN, REFINED_SUM = f"{OWN}, refined", f"{SUM}, refined"
TINY, LLM_OWN, LLM_POOLED = (
    "TinyLM tuned on own rows (floor)",
    "LLM tuned on own rows (ceiling)",
    "LLM, all rows pooled",
)
HIDDEN, SHOWN = (False, False, False), (False, True, False)
GROUPS = {"nothing shows the task": HIDDEN, "the prompt shows the operation": SHOWN}
PROMPTS: dict[tuple[bool, bool, bool], Rules] = {HIDDEN: "same", SHOWN: "mixed"}
"""Whose public prompts show as much."""


class ClientTasks(Section):
    """Parameters.

    Attributes:
        federations: of five organizations, for each seed and each way of showing the task.
        rows, test_rows: of each organization.
        steps: in each of three rounds.
        public_prompts: what the provider refines on.
    """

    federations: Annotated[int, Field(ge=1, le=7)]
    rows: Count
    test_rows: Count
    steps: Count
    public_prompts: Count


@measure(ClientTasks, shipped=True)
def task_per_client(parameters: ClientTasks, seed: int, progress: Progress) -> list[Cell]:
    """Five organizations, five seen rules; with the operation shown, rules of five different operations."""
    counter = StepCounter(progress, 6 * len(GROUPS))
    cells: list[Cell] = []
    for group, shown in GROUPS.items():
        rules = _rules(shown, parameters.federations, seed)
        rng = np.random.default_rng([seed, 0x5441534B])
        made = [[_organization(rng, rule, shown, parameters) for rule in five] for five in rules]
        federations = Federations.of(made, parameters.steps)
        prompts = _prompts(PROMPTS[shown], parameters.public_prompts, seed)
        found = _compared(federations, prompts, seed, counter.within(group))
        cells += [Cell(name, f"{quantity}, {group}", value) for quantity, name, value in found]
    return cells


class Mixtures(Section):
    """Parameters.

    Attributes:
        alphas: of the Dirichlet distribution that an organization's shares of three seen rules are drawn from.
        federations: for each seed and alpha.
        rows, test_rows: of each organization.
        steps: in each of three rounds.
        public_prompts: what the provider refines on.
    """

    alphas: list[Annotated[float, Field(gt=0)]]
    federations: Count
    organizations: Count
    rows: Count
    test_rows: Count
    steps: Count
    public_prompts: Count


@measure(Mixtures, shipped=True)
def mixtures(parameters: Mixtures, seed: int, progress: Progress) -> list[Cell]:
    """Accuracy and PGR over alpha; the same three rules, and the same seeds, for each alpha."""
    p, counter = parameters, StepCounter(progress, 6 * len(parameters.alphas))
    prompts = _prompts("mixed", p.public_prompts, seed)
    cells: list[Cell] = []
    for alpha in p.alphas:
        made = [
            house_rules_federation("mixed", p.organizations, p.rows, p.test_rows, 1000 * seed + number, alpha)
            for number in range(p.federations)
        ]
        row = f"{alpha:g}"
        found = _compared(Federations.of(made, p.steps), prompts, seed, counter.within(f"alpha {row}"))
        cells += [Cell(row, f"{quantity}, {name}", value) for quantity, name, value in found]
    return cells


def _prompts(kind: Rules, count: int, seed: int) -> tuple[str, ...]:
    return tuple(row.prompt for row in public_rows(kind, count, seed))


def _compared(
    federations: Federations, prompts: tuple[str, ...], seed: int, step: Step
) -> list[tuple[str, str, float]]:
    """(quantity, method, mean over organizations) of every way of generating, between floor and ceiling."""
    pair = bench().pair
    step("each alone")
    alone = federations.alone(NO_DP, seed)
    floor = accuracy(pair.tiny, alone.last, federations.test)
    step("together")
    together = federations.together(NO_DP, seed)
    summed = federations.per_organization(together.last)
    step("ceiling, own rows")
    ceiling = federations.own_ceiling(seed)
    step("ceiling, all rows")
    pooled = federations.pooled_ceiling(seed)
    step("generate")
    made = {
        name: contest([ours()], Case(updates, seed), federations.test)[OURS]
        for name, updates in ((OWN, alone.last), (SUM, summed))
    }
    step("refine")
    refined = {
        REFINED_OWN: refined_updates(pair, alone.last, prompts, alone.first).updates,
        REFINED_SUM: federations.per_organization(
            refined_updates(pair, together.last, prompts, together.first).updates
        ),
    }
    made |= {name: accuracy(pair.llm, updates, federations.test) for name, updates in refined.items()}
    methods = {TINY: floor, **made, LLM_POOLED: pooled, LLM_OWN: ceiling}
    return [
        *(("accuracy", name, float(np.mean(values))) for name, values in methods.items()),
        *(("PGR", name, recovered(methods[name], floor, ceiling)) for name in (*made, LLM_POOLED)),
    ]


def _rules(shown: tuple[bool, bool, bool], federations: int, seed: int) -> list[list[hr.Rule]]:
    """Five different seen rules with a gap for each federation; where the operation is shown, one of each operation."""
    if shown == HIDDEN:
        rules = rules_of(seed, 5 * federations)
        return [rules[5 * number : 5 * number + 5] for number in range(federations)]
    seen = hr.split_rules()[0]
    order = np.random.default_rng([seed, 12]).permutation(len(seen))
    by_operation = [[seen[i] for i in order if seen[i].operation == operation] for operation in range(5)]
    return [[rules[number] for rules in by_operation] for number in range(federations)]


def _organization(
    rng: np.random.Generator, rule: hr.Rule, shown: tuple[bool, bool, bool], sizes: ClientTasks
) -> OrganizationData:
    task = HiddenTask((rule,), shown)
    train = tokens_to_rows(task.draw(rng, sizes.rows, "private"))
    test = tokens_to_rows(task.draw(rng, sizes.test_rows, "test"))
    examples = [Example(row, (row.answer,), row.prompt, rule.name) for row in test]
    return OrganizationData(rule.name, train, examples, rule.describe(), {rule.name: len(train)})
