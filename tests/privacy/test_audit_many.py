"""A folder of many ledgers: several processes read them, and all that is wrong is said at once."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradtf_fl.cli.audit.audit import audit
from gradtf_fl.cli.audit.files import MANY
from gradtf_fl.errors import ConfigError, VerificationFailed
from gradtf_fl.privacy import ROW_UNIT, DpEvent, Ledger, epsilon_prv
from gradtf_fl.privacy.accounting import prv
from gradtf_fl.privacy.ledger.books import DatasetAccount
from gradtf_fl.privacy.ledger.records import Charge
from gradtf_fl.privacy.planning import MOST_ROUNDS, rounds_within
from gradtf_fl.reports import audit_formats
from gradtf_fl.reports.audit import CURVE_POINTS, FEWEST_POINTS, read_for_report, report_all
from gradtf_fl.reports.audit_formats import to_json
from gradtf_fl.reports.projection import EXACT, projected_rounds

from .conftest import EVENT


def run(*arguments: object) -> Result:
    return CliRunner().invoke(audit, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, paths = tmp_path_factory.mktemp("many"), []
    for number in range(MANY + 1):
        path = folder / f"org-{number}" / "ledger.sqlite"
        key = Ed25519PrivateKey.generate()
        with Ledger.open(path, identity_key=key, organization=path.parent.name, delta=1e-5, budget=9.0) as ledger:
            for round in range(1 + number % 3):
                ledger.reserve("run", round, 0, EVENT)
        paths.append(path)
    return paths


def test_all_are_reported_in_their_order(many: list[Path]) -> None:
    result = run("report", *many, "--json")
    assert result.exit_code == 0, result.exception
    ledgers = json.loads(result.stdout)["ledgers"]
    assert [ledger["organization"] for ledger in ledgers] == [f"org-{number}" for number in range(MANY + 1)]
    assert [ledger["epsilon"]["prv"] for ledger in ledgers[:3]] == [epsilon_prv([EVENT] * n, 1e-5) for n in (1, 2, 3)]
    assert "audit report" in result.stderr
    assert run("verify", *many).stdout.count("sound") == len(many)


def test_everything_that_is_wrong_is_said_at_once(many: list[Path], tmp_path: Path) -> None:
    (tmp_path / "junk").write_text("junk")
    error = run("verify", *many, tmp_path / "junk", tmp_path / "none").exception
    assert isinstance(error, ConfigError)
    assert len(error.problems) == 2
    (tmp_path / "ledger.sqlite").write_bytes(many[0].read_bytes()[:5000])
    error = run("verify", *many, tmp_path / "junk", tmp_path / "ledger.sqlite").exception
    assert isinstance(error, VerificationFailed)
    assert len(str(error).splitlines()) == 2


def test_curves_get_coarser_the_more_there_are(many: list[Path]) -> None:
    readings = [read_for_report(path) for path in many]
    assert {report.curve_points for report in report_all(readings[:2])} == {CURVE_POINTS}
    assert {report.curve_points for report in report_all(readings * 50)} == {FEWEST_POINTS}


@pytest.mark.parametrize(
    ("history", "event", "budget"),
    [
        ([EVENT] * 2, EVENT, 2.0),  # none fits
        ([EVENT], EVENT, 2.0),
        ([EVENT] * 2, EVENT, 8.0),
        ([EVENT] * 4, EVENT, 2.0),  # past the budget already
        ([DpEvent(0.6, 1 / 16, 20)], DpEvent(6.0, 1 / 16, 40), 8.0),  # another rate than so far
        ([DpEvent(6.0, 1 / 16, 20)], DpEvent(0.6, 1 / 16, 5), 8.0),
        ([DpEvent(0.0, 1 / 16, 1)], EVENT, 2.0),  # epsilon is infinite
        ([EVENT], DpEvent(500.0, 1 / 16, 1), 8.0),  # ends at MOST_ROUNDS
    ],
)
def test_projected_rounds_are_those_that_the_ledger_grants(
    history: list[DpEvent], event: DpEvent, budget: float
) -> None:
    exact = rounds_within([*history, event], event, 1e-5, budget)
    assert exact <= EXACT or exact == MOST_ROUNDS
    assert projected_rounds(account([*history, event], budget), 1e-5) == exact


def test_a_far_projection_is_as_good_as_exact() -> None:
    event, budget = DpEvent(6.0, 1 / 16, 5), 4.0
    rounds = projected_rounds(account([event], budget), 1e-5)
    assert rounds is not None
    assert rounds > EXACT
    assert abs(rounds - rounds_within([event], event, 1e-5, budget)) <= 1


def test_many_charges_are_json_all_the_same(many: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    reports = report_all([read_for_report(path) for path in many[:2]])
    indented = to_json(reports)
    monkeypatch.setattr(audit_formats, "MOST_INDENTED", 0)
    assert json.loads(to_json(reports)) == json.loads(indented)
    assert len(to_json(reports).splitlines()) == len(reports) + 2


def test_there_is_no_projection_without_a_budget_or_a_round() -> None:
    assert projected_rounds(account([EVENT], math.inf), 1e-5) is None
    assert projected_rounds(account([], 8.0), 1e-5) is None
    assert projected_rounds(account([DpEvent(1.0, 0.5, 0)], 8.0), 1e-5) is None


def test_equal_histories_are_projected_with_few_compositions(monkeypatch: pytest.MonkeyPatch) -> None:
    """PRV takes half a second on long histories: 100 ledgers of one plan must not pay for it 100 times."""
    composed: list[int] = []
    compose = prv.epsilon

    def counting(events: tuple[DpEvent, ...], delta: float) -> float:
        composed.append(sum(event.steps for event in events))
        return compose(events, delta)

    monkeypatch.setattr(prv, "epsilon", counting)
    event = DpEvent(5.0, 1 / 16, 7)
    assert len({projected_rounds(account([event] * 30, 3.0), 1e-5) for _ in range(100)}) == 1
    assert len(composed) <= 4  # of which one is the epsilon that is reported


def account(events: list[DpEvent], budget: float) -> DatasetAccount:
    charges = (Charge(3 + i, "run", i, 0, event, "", "not recorded", "") for i, event in enumerate(events))
    return DatasetAccount("train", budget, ROW_UNIT, tuple(charges))
