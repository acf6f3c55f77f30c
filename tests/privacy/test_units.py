"""Whose an epsilon is: signed in the ledger, fixed for a dataset, and said wherever the epsilon is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console

from gradtf_fl.errors import ConfigError
from gradtf_fl.privacy import ROW_UNIT, DpEvent, Ledger, Unit, epsilons, noise_multiplier, read_ledger, what_if
from gradtf_fl.privacy.ledger.books import replay
from gradtf_fl.privacy.ledger.chain import Entry
from gradtf_fl.privacy.ledger.reading import ledger_rows
from gradtf_fl.privacy.planning import RunPlan
from gradtf_fl.reports.audit import report_ledger
from gradtf_fl.reports.audit_formats import to_csv, to_html, to_json, to_table
from tests.cli.conftest import gradtf

from .conftest import EVENT

PATIENT = Unit("patient")


@pytest.fixture
def owner(key: Ed25519PrivateKey) -> dict[str, Any]:
    return {"identity_key": key, "organization": "clinic", "delta": 1e-5}


@pytest.fixture
def path(tmp_path: Path, owner: dict[str, Any]) -> Path:
    """A charge to a dataset of persons."""
    with Ledger.open(tmp_path / "ledger.sqlite", budget=2.0, unit=PATIENT, **owner) as ledger:
        ledger.settle(ledger.reserve("run", 1, 0, EVENT), EVENT)
    return tmp_path / "ledger.sqlite"


def test_every_row_of_a_ledger_says_the_unit(path: Path) -> None:
    said = {entry.kind: json.loads(entry.body) for entry in ledger_rows(path)}
    assert "one person" in said["genesis"]["unit"]
    assert said["genesis"]["adjacency"] == "add or remove one person with all of their rows"
    for kind in ("budget", "reserve"):
        assert (said[kind]["unit"], said[kind]["person"]) == ("person", "patient")
    reading = read_ledger(path)
    assert reading.problems == ()
    assert reading.content.dataset("train").unit == PATIENT
    assert [charge.unit for charge in reading.content.charges] == [PATIENT]


@pytest.mark.parametrize("unit", [ROW_UNIT, Unit("customer")], ids=str)
def test_a_datasets_unit_is_fixed_for_good(path: Path, owner: dict[str, Any], unit: Unit) -> None:
    before = ledger_rows(path)
    with pytest.raises(ConfigError, match=r"'train' has the unit person \(by 'patient'\), fixed for good"):
        Ledger.open(path, budget=9.0, unit=unit, **owner)
    assert ledger_rows(path) == before
    with Ledger.open(path, budget={"more": 9.0}, unit=unit, **owner) as ledger:  # fresh rows may be counted anew
        ledger.reserve("run", 2, 0, EVENT, dataset="more")
    content = read_ledger(path).content
    assert [account.unit for account in content.datasets] == [PATIENT, unit]
    assert [charge.unit for charge in content.charges] == [PATIENT, unit]


def test_a_ledger_of_rows_does_not_become_one_of_persons(ledger: Ledger, owner: dict[str, Any]) -> None:
    ledger.reserve("run", 1, 0, EVENT)
    with pytest.raises(ConfigError, match=r"has the unit row, fixed for good, not person"):
        Ledger.open(ledger.path, budget=2.0, unit=PATIENT, **owner)


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("reserve", {"unit": "row", "person": None}, "another unit than its own"),
        ("reserve", {"unit": "person", "person": "customer"}, "another unit than its own"),
        ("reserve", {"unit": "household"}, "neither row nor person"),
        ("reserve", {"unit": "row"}, "a person is named"),
        ("reserve", {"unit": "person", "person": None}, "person is not text"),
    ],
    ids=["row", "customer", "household", "both", "nobody"],
)
def test_rows_that_lie_about_the_unit_make_no_sense(path: Path, kind: str, change: dict[str, Any], said: str) -> None:
    def changed(entry: Entry) -> Entry:
        if entry.kind != kind:
            return entry
        body = {name: value for name, value in (json.loads(entry.body) | change).items() if value is not None}
        return entry._replace(body=json.dumps(body))

    content = replay([changed(entry) for entry in ledger_rows(path)])
    assert said in str(content.problems[0])


def test_a_budget_that_changes_the_unit_makes_no_sense(path: Path) -> None:
    entries = ledger_rows(path)
    budget = next(entry for entry in entries if entry.kind == "budget")
    body = json.loads(budget.body) | {"unit": "row", "budget": 100.0}
    del body["person"]
    content = replay([*entries, budget._replace(number=len(entries) + 1, body=json.dumps(body))])
    assert "changes its unit" in str(content.problems[0])
    assert content.budgets == {"train": 2.0}


def test_all_reports_say_person(path: Path) -> None:
    (report,) = report_ledger(path)
    document = json.loads(to_json([report]))["ledgers"][0]
    assert "'patient'" in document["unit"]
    assert document["adjacency"] == "add or remove one person with all of their rows"
    assert document["sampler"].startswith("Poisson: every person")
    assert document["epsilon_valid"]
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(to_table([report]))
    for text in (to_html([report]), console.export_text(), to_csv([report]), json.dumps(document["not_covered"])):
        assert "person" in text
        for row in ("single row", "one row", "every row", "one sequence"):
            assert row not in text


def test_a_report_of_both_units_says_which_is_which(path: Path, owner: dict[str, Any]) -> None:
    with Ledger.open(path, budget={"notes": 9.0}, **owner) as ledger:
        ledger.reserve("run", 2, 0, EVENT, dataset="notes")
    reports = report_ledger(path)
    assert [report.unit for report in reports] == [PATIENT, ROW_UNIT]
    page = to_html(reports)
    assert "a single row or a single person" in page
    assert "People with several rows" in page
    assert "under several names" in page


def test_what_if_counts_the_ledgers_unit(path: Path) -> None:
    plan = ("--epsilon", 1, "--rounds", 1, "--batch", 16, "--rows", 256)
    result = gradtf("audit", "what-if", *plan, "--ledger", path)
    assert result.exit_code == 0, result.output
    assert "16 of 256 persons" in result.output
    assert "one person replaced" in result.output
    document = json.loads(gradtf("audit", "what-if", *plan, "--ledger", path, "--json").stdout)
    assert (document["unit"], document["ledger"]["unit"]) == ("person", "person")
    with pytest.raises(ConfigError, match=r"unit of 'train' is person \(by 'patient'\), not row"):
        what_if(RunPlan(1.0, 1e-5, 1, 16, 256, 50), path, unit=ROW_UNIT)


@pytest.mark.parametrize(("persons", "batch", "steps"), [(64, 16, 150), (256, 16, 150), (1024, 256, 300), (40, 40, 20)])
def test_prv_and_pld_agree_for_plans_of_persons(persons: int, batch: int, steps: int) -> None:
    q = batch / persons
    spent = epsilons([DpEvent(noise_multiplier(2.0, 1e-5, q, steps), q, steps)], 1e-5)
    assert spent.prv <= 2.0
    assert spent.pld == pytest.approx(spent.prv, abs=0.02)
