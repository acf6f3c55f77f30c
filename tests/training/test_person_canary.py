"""A person with several rows refutes a claim that was made of rows, and not one that was made of persons."""

from __future__ import annotations

import pytest

from gradtf_fl.errors import ConfigError
from gradtf_fl.training.audit_plan import AuditPlan, AuditUnit
from gradtf_fl.training.dp_sgd import train_dp
from gradtf_fl.training.empirical_audit import Play, play

COPIES = 8


def played(unit: AuditUnit, seed: int) -> tuple[AuditPlan, Play]:
    """One run with q = .2 on canaries of eight rows each, epsilon 1 claimed of the unit that is trained by."""
    total = 16 + 312 * (COPIES if unit == "row" else 1)
    plan = AuditPlan.make(
        epsilon=1.0,
        steps=10,
        batch=total // 5,
        rows=16,
        gradient_canaries=300,
        row_canaries=12,
        seed=seed,
        unit=unit,
        rows_per_canary=COPIES,
    )
    return plan, play(plan, plan.sigma, seed, train_dp, lambda _: None)


def test_a_plan_counts_units() -> None:
    rows, persons = (
        AuditPlan.make(batch=64, rows=16, gradient_canaries=300, row_canaries=12, seed=0, unit=unit, rows_per_canary=8)
        for unit in ("row", "person")  # type: ignore[attr-defined]
    )
    assert (rows.total_units, persons.total_units) == (16 + 8 * 312, 16 + 312)
    assert rows.to_json()["unit"] == "row"
    assert rows.sha256 != persons.sha256
    with pytest.raises(ConfigError, match="rows of a canary"):
        AuditPlan.make(batch=64, rows_per_canary=0)


@pytest.mark.parametrize("seeds", [[100], pytest.param(range(20), marks=pytest.mark.slow)], ids=["one", "twenty"])
def test_a_person_refutes_the_claim_of_rows_alone(seeds: list[int]) -> None:
    for seed in seeds:
        plan, by_rows = played("row", seed)
        assert by_rows.refuting
        assert by_rows.lower_bound > plan.claimed_epsilon
        plan, by_persons = played("person", seed)
        assert not by_persons.refuting
        assert by_persons.lower_bound < plan.claimed_epsilon
