"""Table 3: five organizations whose sum is all that the provider sees; rivals that need no more than that."""

from __future__ import annotations

from experiments.measuring import Cell, Progress, StepCounter, measure
from experiments.paper.measures.federations import NO_DP, Federations
from experiments.paper.measures.shipped import (
    CEILING,
    FLOOR,
    RefinedBaseline,
    accuracy,
    accuracy_cells,
    bench,
    contest,
    pgr_cells,
    update_rivals,
)
from gradtf_fl.baselines import Case
from gradtf_fl.config import Count, Epsilon, Rules, Section
from gradtf_fl.tasks import house_rules_federation, public_rows

GROUPS: dict[Rules, str] = {"same": "one seen rule", "mixed": "mixtures of seen rules", "unseen": "one unseen rule"}
TOGETHER = "TinyLM, summed update"


class FiveClients(Section):
    """Parameters.

    Attributes:
        rules: as `gradtf simulate --rules`; mixtures are Dirichlet(.5).
        epsilons: besides training without DP; of a row, for the whole run.
        federations: drawn for each seed and each of ``rules``.
        rows, test_rows: of each organization.
        steps: in each of the three rounds.
        public_prompts: what the provider refines on.
    """

    rules: list[Rules]
    epsilons: list[Epsilon]
    federations: Count
    organizations: Count
    rows: Count
    test_rows: Count
    public_prompts: Count
    steps: Count


@measure(FiveClients, shipped=True)
def five_clients(parameters: FiveClients, seed: int, progress: Progress) -> list[Cell]:
    """Accuracy and PGR, means over organizations. Floor: each organization's TinyLM tuned alone under the same DP."""
    budgets, rivals = [NO_DP, *parameters.epsilons], (*update_rivals(), RefinedBaseline())
    counter = StepCounter(progress, len(parameters.rules) * (1 + 3 * len(budgets)))
    cells: list[Cell] = []
    for rules in parameters.rules:
        federations = drawn(rules, parameters, seed)
        prompts = tuple(row.prompt for row in public_rows(rules, parameters.public_prompts, seed))
        counter.begin(f"{GROUPS[rules]}: ceiling")
        ceiling = federations.pooled_ceiling(seed)
        for epsilon in budgets:
            group = GROUPS[rules] + (", no DP" if epsilon == NO_DP else f", epsilon {epsilon:g}")
            counter.begin(f"{group}: each alone")
            floor = accuracy(bench().tiny, federations.alone(epsilon, seed).last, federations.test)
            counter.begin(f"{group}: together")
            updates, first = federations.together(epsilon, seed)
            counter.begin(f"{group}: rivals")
            case = Case(updates, seed, public_prompts=prompts, first_updates=first)
            scores = contest(rivals, case, federations.test)
            ends = {FLOOR: floor, TOGETHER: accuracy(bench().tiny, updates, federations.test), CEILING: ceiling}
            cells += [*accuracy_cells(group, ends), *accuracy_cells(group, scores)]
            cells += pgr_cells(group, scores, floor, ceiling)
    return cells


def drawn(rules: Rules, parameters: FiveClients, seed: int) -> Federations:
    """The federations of one seed; each has a hidden task of its own."""
    p = parameters
    made = [
        house_rules_federation(rules, p.organizations, p.rows, p.test_rows, 1000 * seed + number)
        for number in range(p.federations)
    ]
    return Federations.of(made, p.steps)
