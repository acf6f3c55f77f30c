"""Several datasets in one ledger: each pays from its own budget, and all of them are on one chain."""

from __future__ import annotations

import json
import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradtf_fl.config import PrivacySection
from gradtf_fl.errors import BudgetExhausted, ConfigError
from gradtf_fl.privacy import DpEvent, Ledger, SkellamEvent, epsilon_prv, read_ledger
from gradtf_fl.privacy.ledger.reading import ledger_rows
from gradtf_fl.reports.audit import report_ledger
from gradtf_fl.reports.audit_formats import to_csv, to_json

from .conftest import EVENT

SUMS = SkellamEvent(variance=4e8, l2=2e4, l1=6e5, releases=1, noisers=4)
VECTOR = Path(__file__).parents[1] / "vectors" / "ledger-1.json"


@pytest.fixture
def owner(key: Ed25519PrivateKey) -> dict[str, Any]:
    return {"identity_key": key, "organization": "clinic", "delta": 1e-5}


def test_disjoint_datasets_compose_separately(tmp_path: Path, owner: dict[str, Any]) -> None:
    ledger = Ledger.open(tmp_path / "l", budget={"2024": 2.0, "2025": 1.3}, **owner)
    for round in (1, 2):
        ledger.settle(ledger.reserve("run", round, 0, EVENT, dataset="2024"), EVENT)
    ledger.reserve("run", 1, 0, EVENT, dataset="2025", client_level=SUMS)
    assert ledger.events("2024") == (EVENT, EVENT)
    assert ledger.spent("2025").prv == epsilon_prv([EVENT], 1e-5)
    assert ledger.remaining("2024") == pytest.approx(2.0 - 1.697, abs=1e-3)
    for dataset in ("2024", "2025"):
        with pytest.raises(BudgetExhausted, match=f"dataset '{dataset}'"):
            ledger.reserve("run", 3, 0, EVENT, dataset=dataset)
    content = read_ledger(ledger.path).content
    assert [(account.name, account.budget, len(account.charges)) for account in content.datasets] == [
        ("2024", 2.0, 2),
        ("2025", 1.3, 1),
    ]
    assert content.events == (EVENT, EVENT, EVENT)  # of a row that is in both
    assert content.dataset("2025").events == (EVENT,)
    assert content.client_level == (SUMS,)


def test_a_dataset_without_a_budget_is_refused(ledger: Ledger) -> None:
    for use in (
        lambda: ledger.reserve("run", 1, 0, EVENT, dataset="2025"),
        lambda: ledger.spent("2025"),
        lambda: ledger.remaining("2025"),
        lambda: ledger.events("2025"),
    ):
        with pytest.raises(ConfigError, match="dataset '2025' has no budget"):
            use()
    assert len(ledger_rows(ledger.path)) == 2


def test_a_charge_keeps_its_dataset_when_it_is_settled(tmp_path: Path, owner: dict[str, Any]) -> None:
    ledger = Ledger.open(tmp_path / "l", budget={"train": 9.0, "2025": 9.0}, **owner)
    less = DpEvent(EVENT.sigma, EVENT.q, 7)
    ledger.settle(ledger.reserve("run", 1, 0, EVENT, dataset="2025"), less)
    ledger.abort(ledger.reserve("run", 2, 0, EVENT, dataset="2025"), released=False)
    assert (ledger.events("2025"), ledger.events()) == ((less,), ())


def test_datasets_and_budgets_are_added_later_and_never_forgotten(ledger: Ledger, owner: dict[str, Any]) -> None:
    ledger.reserve("run", 1, 0, EVENT)
    again = Ledger.open(ledger.path, budget={"2025": math.inf}, **owner)
    assert again.remaining() == pytest.approx(2.0 - 1.219, abs=1e-3)
    assert again.remaining("2025") == math.inf
    Ledger.open(ledger.path, budget={"2025": 4.0, "train": 2.0}, **owner)
    rows = [json.loads(row.body) for row in ledger_rows(ledger.path) if row.kind == "budget"]
    assert [(row["dataset"], row["budget"]) for row in rows] == [("train", 2.0), ("2025", None), ("2025", 4.0)]
    assert read_ledger(ledger.path).content.budgets == {"train": 2.0, "2025": 4.0}


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 65, "-", "é"])
def test_names_are_plain(tmp_path: Path, owner: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match="dataset"):
        Ledger.open(tmp_path / "l", budget={name: 1.0}, **owner)
    assert not (tmp_path / "l").exists()
    with pytest.raises(ValueError, match="dataset"):
        PrivacySection(budget=1.0, declared=1, dataset=name)
    assert PrivacySection(budget=1.0, declared=1).dataset == "train"


def test_the_report_has_one_entry_for_each_dataset(tmp_path: Path, owner: dict[str, Any]) -> None:
    ledger = Ledger.open(tmp_path / "ledger.sqlite", budget={"2024": 2.0, "2025": 1.3}, **owner)
    ledger.reserve("run", 1, 0, EVENT, dataset="2025", client_level=SUMS)
    first, second = report_ledger(ledger.path)
    assert (first.dataset, first.budget, first.epsilon.prv, first.rounds) == ("2024", 2.0, 0.0, ())
    assert (second.dataset, second.budget, len(second.rounds)) == ("2025", 1.3, 1)
    assert second.epsilon.prv == epsilon_prv([EVENT], 1e-5)
    assert first.client_level == second.client_level is not None  # its unit is the organization
    documents = json.loads(to_json([first, second]))["ledgers"]
    assert [document["dataset"] for document in documents] == ["2024", "2025"]
    assert [line.split(",")[1] for line in to_csv([first, second]).splitlines()] == ["dataset", "2024", "2025"]


@pytest.fixture
def old(tmp_path: Path) -> tuple[Path, Ed25519PrivateKey]:
    """A ledger of format 1, byte for byte what the release before datasets wrote, and its key."""
    vector = json.loads(VECTOR.read_text())
    path = tmp_path / "old" / "ledger.sqlite"
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    for statement in vector["schema"]:
        connection.execute(statement)
    for row in vector["rows"]:
        blobs = [bytes.fromhex(row[name]) for name in ("previous", "hash", "signature")]
        values = [row["number"], row["kind"], row["body"], *blobs]
        connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", values)
    connection.commit()
    connection.close()
    (path.parent / "ledger.head").write_text(vector["head"])
    return path, Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["private_key"]))


def test_a_ledger_of_format_1_is_read_and_verified(old: tuple[Path, Ed25519PrivateKey]) -> None:
    reading = read_ledger(old[0])
    assert reading.problems == ()
    assert reading.content.genesis.format == "gradtf-fl ledger 1"
    assert reading.content.budgets == {"train": 3.0}
    assert reading.content.dataset("train").events == (DpEvent(1.75, 1 / 16, 49), EVENT)
    assert reading.content.client_level == (SUMS,)
    assert [charge.state for charge in reading.content.charges] == ["settled", "released", "reserved"]
    head = old[0].with_name("ledger.head")
    head.write_text(head.read_text().replace('"rows": 8', '"rows": 9'))
    assert [str(problem) for problem in read_ledger(old[0]).problems] == [
        "row 9: rows are cut off: ledger.head knows 9, 8 are left"
    ]


def test_a_ledger_of_format_1_goes_on(old: tuple[Path, Ed25519PrivateKey]) -> None:
    path, key = old
    new_key = Ed25519PrivateKey.generate()
    budget = {"train": 3.0, "2025": 1.3}
    with Ledger.open(path, identity_key=key, organization="clinic", delta=1e-5, budget=budget) as ledger:
        ledger.settle(7, EVENT)
        ledger.reserve("run-2", 1, 0, EVENT, dataset="2025")
        ledger.rotate(new_key)
        ledger.reserve("run-2", 2, 0, DpEvent(9.0, 1 / 16, 1))
    reading = read_ledger(path)
    assert (reading.problems, reading.rows) == ((), 13)
    assert [len(account.events) for account in reading.content.datasets] == [3, 1]
