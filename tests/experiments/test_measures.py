"""Measures that evaluate the shipped checkpoint, at their smallest: what they compare, and how figures follow."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from experiments.measuring.cells import Measure
from experiments.paper.measures import shipped
from experiments.paper.measures.client_tasks import (
    HIDDEN,
    LLM_OWN,
    LLM_POOLED,
    OWN,
    REFINED_OWN,
    REFINED_SUM,
    SHOWN,
    SUM,
    TINY,
    mixtures,
    task_per_client,
)
from experiments.paper.measures.client_tasks import _rules as client_rules
from experiments.paper.measures.federations import NO_DP, Federations
from experiments.paper.measures.five_clients import TOGETHER, five_clients
from experiments.paper.measures.private import over_epsilon
from experiments.paper.measures.shipped import CEILING, FLOOR, OURS, RefinedBaseline, as_rows, contest, ours, pgr_cells
from experiments.paper.measures.single_client import single_client
from gradtf_fl.baselines import Case
from gradtf_fl.config import HOUSE_RULES_ANSWER_TOKENS
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import house_rules_federation
from gradtf_fl.training.stacked import PlainRecipe
from gradtf_fl.transformer.known_tasks import KnownRecipe, KnownTasks, embedded_tasks
from gradtf_fl.transformer.refinement import RefinementRecipe, refine

Table = dict[tuple[str, str], float]
SIZES = {"federations": 1, "rows": 64, "test_rows": 64, "steps": 1}
REFINED = RefinedBaseline().name
GENERATED = (OWN, SUM, REFINED_OWN, REFINED_SUM)
FROM_UPDATE = {OURS, "mean", "nearest", "ridge", "pca-ridge", "cross-lora", "proxy-tuning"}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def short_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refining and putting together take a second instead of ten; what they give is other tests' matter."""
    recipe = KnownRecipe(probes=8, least_kind=4, tuning=PlainRecipe(steps=3, batch=16))

    def quickly(prompts: tuple[str, ...]) -> KnownTasks:
        return KnownTasks(shipped.bench().pair.llm, embedded_tasks(), prompts, HOUSE_RULES_ANSWER_TOKENS, recipe)

    monkeypatch.setattr(shipped, "known_tasks", quickly)
    search = partial(refine, recipe=RefinementRecipe(steps=2))
    monkeypatch.setattr(shipped, "refine", search)


def table(measure: Measure, parameters: Mapping[str, Any], seed: int = 0) -> Table:
    """Cells by row and column; every step is told before it begins."""
    told: list[tuple[int, int]] = []
    cells = measure(parameters, seed, lambda what, done, total: told.append((done, total)))
    assert [done for done, _ in told] == list(range(told[0][1]))
    assert {total for _, total in told} == {len(told)}
    found = {(cell.row, cell.column): cell.value for cell in cells}
    assert len(found) == len(cells)
    assert all(0 <= value <= 1 for (_, column), value in found.items() if "PGR" not in column)
    return found


def check_gaps(found: Table, group: str, floor: str, ceiling: str) -> int:
    """Every PGR of ``group`` follows from the accuracies beside it; how many there are."""
    low, high = (found[(end, f"accuracy, {group}")] for end in (floor, ceiling))
    gaps = {row: value for (row, column), value in found.items() if column == f"PGR, {group}"}
    for row, value in gaps.items():
        assert value == pytest.approx((found[(row, f"accuracy, {group}")] - low) / (high - low))
    return len(gaps)


def test_one_organization_meets_every_rival_on_seen_and_unseen_rules() -> None:
    sizes = {"rules": 1, "rows": 64, "test_rows": 32, "public_prompts": 16, "texts": 8, "steps": 4}
    found = table(single_client, sizes)
    tuned = {REFINED, "w2s", "conf", "vissup", "public-w2s", "dp-synthetic-text", "dp-synthetic-text-whole"}
    leave = {row: value for (row, column), value in found.items() if column == "rows leave"}
    assert leave.keys() == FROM_UPDATE | tuned
    assert {row for row, value in leave.items() if value} == {"w2s", "conf", "vissup"}
    for kind in ("seen", "unseen"):
        assert check_gaps(found, f"{kind} rules", FLOOR, CEILING) == len(leave)


def test_five_organizations_with_and_without_dp() -> None:
    sizes = {**SIZES, "rules": ["mixed"], "epsilons": [1.0], "organizations": 3, "public_prompts": 32}
    found = table(five_clients, sizes)
    rivals = FROM_UPDATE | {REFINED}
    assert {row for row, _ in found} == rivals | {FLOOR, CEILING, TOGETHER}
    plain, private = "mixtures of seen rules, no DP", "mixtures of seen rules, epsilon 1"
    assert {column.partition(", ")[2] for _, column in found} == {plain, private}
    assert check_gaps(found, plain, FLOOR, CEILING) == check_gaps(found, private, FLOOR, CEILING) == len(rivals)
    assert found[(CEILING, f"accuracy, {plain}")] == found[(CEILING, f"accuracy, {private}")]


def test_pgr_needs_a_gap() -> None:
    assert pgr_cells("any", {"ours": [0.99]}, [0.99, 0.98], [1.0, 0.99]) == []
    assert pgr_cells("any", {"ours": [0.75]}, [0.5], [1.0]) == [("ours", "PGR, any", 0.5)]


def test_a_sum_is_the_mean_of_its_federation_and_noise_is_of_dp_alone() -> None:
    made = [house_rules_federation("same", 2, 64, 8, seed) for seed in (1, 2)]
    federations = Federations.of(made, 1)
    assert (federations.count, federations.members, len(federations.private)) == (2, 2, 4 * 64)
    assert as_rows(federations.test, 4)[3] == tuple(made[1][1].test)
    together, first = federations.together(NO_DP, 0)
    assert torch.equal(together, federations.together(NO_DP, 0).last)  # all follows from the seed
    last_round, first_round = federations._train([0, 0, 1, 1], NO_DP, [0, 6])
    assert torch.equal(together[1], last_round[2:].mean(0))
    assert torch.equal(first[1], first_round[2:].mean(0))
    assert 0 < float(first.norm()) < float(together.norm())  # one step of three
    alone = federations.alone(NO_DP, 0).last
    assert alone.shape == (4, *together.shape[1:])
    assert (federations.alone(0.5, 0).last - alone).norm() > 0.5 * alone.norm()
    spread = federations.per_organization(together)
    assert torch.equal(spread[1], together[0])
    assert torch.equal(spread[2], together[1])
    both = contest([ours()], Case(together, 0), federations.test)[OURS]
    each = contest([ours()], Case(spread, 0), federations.test)[OURS]
    assert both == pytest.approx([np.mean(each[:2]), np.mean(each[2:])])


def test_every_client_has_a_task_of_its_own() -> None:
    found = table(task_per_client, {**SIZES, "public_prompts": 96})
    assert {row for row, _ in found} == {TINY, *GENERATED, LLM_POOLED, LLM_OWN}
    for group in ("nothing shows the task", "the prompt shows the operation"):
        assert check_gaps(found, group, TINY, LLM_OWN) == 5
    for five in client_rules(HIDDEN, 3, seed=0):
        assert len(set(five)) == 5
    for five in client_rules(SHOWN, 3, seed=0):
        assert [rule.operation for rule in five] == [0, 1, 2, 3, 4]


def test_mixtures_are_skewed_at_small_alpha_and_even_at_large_ones() -> None:
    found = table(mixtures, {**SIZES, "alphas": [0.1, 10.0], "organizations": 2, "public_prompts": 96})
    assert {row for row, _ in found} == {"0.1", "10"}
    assert {column for _, column in found} == {
        *(f"accuracy, {name}" for name in (TINY, *GENERATED, LLM_POOLED, LLM_OWN)),
        *(f"PGR, {name}" for name in (*GENERATED, LLM_POOLED)),
    }

    def largest_share(alpha: float) -> float:
        organizations = house_rules_federation("mixed", 20, 64, 8, 0, alpha)
        shares = []
        for one in organizations:
            shown = [row.prompt[3:6] for row in one.train]
            shares.append(max(map(shown.count, set(shown))) / len(shown))
        return float(np.mean(shares))

    assert largest_share(0.1) > 0.8
    assert largest_share(10.0) < 0.6


def test_a_row_for_each_epsilon_and_the_floor_of_one_organization(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, tuple[int, ...]]] = []

    def scores(
        bench: object, rules: list[object], epsilon: float, seed: int, sizes: list[int]
    ) -> dict[str, list[float]]:
        asked.append((epsilon, tuple(sizes)))
        names = ("tiny", "generated", "nearest")
        return {f"{name}_{size}": [0.1 * size + epsilon / 100] for name in names for size in sizes}

    monkeypatch.setattr("experiments.paper.measures.private.accuracy_under_dp", scores)
    monkeypatch.setattr("experiments.paper.measures.private.tune", lambda stack, *_: stack.initial[None] * 0)
    monkeypatch.setattr("experiments.paper.measures.private.accuracy", lambda *_: [0.9])
    found = table(over_epsilon, {"kind": "unseen", "rules": 1, "organizations": [1, 5], "epsilons": [0.5, 8.0]})
    assert asked == [(0.5, (1, 5)), (8.0, (1, 5))]
    assert found[("8", "TinyLM, 5 organizations")] == pytest.approx(0.58)
    assert found[("8", "PGR, 1 organization")] == 0.0
    assert found[("8", "PGR, 5 organizations")] == pytest.approx((0.58 - 0.18) / (0.9 - 0.18))
    assert found[("0.5", CEILING)] == 0.9


@pytest.mark.parametrize(
    ("measure", "parameters", "told"),
    [
        (single_client, {"rules": 17}, "parameters.rules: "),
        (
            five_clients,
            {**SIZES, "public_prompts": 32, "rules": ["any"], "epsilons": [0.0], "organizations": 3},
            "parameters.rules.0: ",
        ),
        (
            over_epsilon,
            {"kind": "seen", "rules": 1, "organizations": [1], "epsilons": [1.0], "seed": 1},
            "parameters.seed",
        ),
    ],
)
def test_parameters_are_checked(measure: Measure, parameters: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        measure(parameters, 0, lambda *_: None)
