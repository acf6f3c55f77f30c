"""A round at an organization whose unit is a person."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clients import local_training
from clients.node.checks import check_organization
from gradtf_fl.privacy import Unit, noise_multiplier, read_ledger
from gradtf_fl.training.dp_sgd import train_dp
from tests.strategies.federation_kit import Kit

from .test_client_border import BEGIN, Bench


@pytest.fixture
def bench(make_kit: Callable[..., Kit]) -> Bench:
    """The first organization's 64 rows are 32 persons': half of them one row's, the others three rows each."""
    kit = make_kit(budget=50.0)
    privacy = kit.config(0).privacy
    kit.change(0, privacy=privacy.model_copy(update={"unit": "patient", "rows_per_person": 2}))
    name_persons(kit, lambda number: f"P{number}" if number < 16 else f"p{16 + (number - 16) // 3}")
    return Bench(kit)


def name_persons(kit: Kit, person: Callable[[int], str | None]) -> None:
    train = kit.folders[0] / "train.jsonl"
    rows = [json.loads(line) for line in train.read_text().splitlines()]
    named = [row | {"patient": person(number)} for number, row in enumerate(rows)]
    train.write_text("".join(json.dumps(row) + "\n" for row in named))
    kit.change(0, policy=kit.config(0).policy.model_copy(update={"min_rows": 1}))
    declared = len({row["patient"] for row in named} - {None})
    kit.change(0, privacy=kit.config(0).privacy.model_copy(update={"declared": declared}))


def ledger_of(bench: Bench) -> Path:
    return bench.kit.folders[0] / "ledger.sqlite"


def test_persons_are_drawn_charged_and_recorded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Any] = []

    def spy(*rows: Any, **options: Any) -> Any:
        used.append(options["persons"])
        return train_dp(*rows, **options)

    monkeypatch.setattr(local_training, "train_dp", spy)
    assert bench.code(BEGIN, bench.begin().to_fields()) is None
    (persons,) = used
    assert (len(persons), persons.most, sorted(persons.sizes)) == (32, 2, [1] * 16 + [3] * 16)
    (charge,) = read_ledger(ledger_of(bench)).content.charges
    plan = bench.kit.plan
    assert charge.unit == Unit("patient")
    assert charge.event.q == plan.batch / 32
    steps = plan.rounds * plan.steps
    assert charge.event.sigma == noise_multiplier(plan.epsilon, plan.delta, plan.batch / 32, steps)


def test_a_row_of_nobody_is_refused_and_not_charged(bench: Bench) -> None:
    name_persons(bench.kit, lambda number: None if number == 40 else f"p{number % 20}")
    assert bench.code(BEGIN, bench.begin().to_fields()) == "policy"
    assert read_ledger(ledger_of(bench)).content.events == ()
    assert "train.jsonl, line 41: " in (bench.kit.folders[0] / "client.log").read_text()


def test_a_batch_of_more_than_all_persons_is_refused(bench: Bench) -> None:
    """There are rows enough, and too few persons."""
    name_persons(bench.kit, lambda number: f"p{number % 8}")
    assert bench.kit.plan.batch > 8
    assert bench.code(BEGIN, bench.begin().to_fields()) == "policy"
    assert "larger than the 8 persons we declare" in (bench.kit.folders[0] / "client.log").read_text()
    assert not ledger_of(bench).exists()


def test_a_ledger_of_rows_is_not_charged_for_persons(bench: Bench) -> None:
    """What was trained by rows stays what it is: another unit of the same dataset is no round."""
    privacy = bench.kit.config(0).privacy
    bench.kit.change(0, privacy=privacy.model_copy(update={"unit": "row"}))
    assert bench.code(BEGIN, bench.begin().to_fields()) is None
    bench.kit.change(0, privacy=privacy)
    other = Bench(bench.kit)
    assert other.code(BEGIN, other.begin(2).to_fields()) is not None
    assert [charge.unit.name for charge in read_ledger(ledger_of(bench)).content.charges] == ["row"]
    assert "fixed for good" in (bench.kit.folders[0] / "client.log").read_text()


def test_check_tells_persons(bench: Bench) -> None:
    def unit() -> str:
        found = {one.what: one for one in check_organization(bench.kit.folders[0], offline=True)}
        return f"{found['unit'].level}: {found['unit'].found}"

    assert unit() == (
        "ok: a person, by 'patient': 32 persons of 1 to 3 rows (median 2), at most 2 of each in a step: 16 of 64 rows "
        "are beyond that"
    )
    name_persons(bench.kit, lambda number: None if number == 40 else "p")
    assert unit().startswith("fail: ")
    assert "line 41" in unit()
    bench.kit.change(0, privacy=bench.kit.config(0).privacy.model_copy(update={"unit": "row"}))
    assert "unit" not in {one.what for one in check_organization(bench.kit.folders[0], offline=True)}
