"""A folder of many ledgers: several processes read them, and all that is wrong is said at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradtf_fl.cli.audit import audit
from gradtf_fl.cli.audit_files import MANY
from gradtf_fl.errors import ConfigError, VerificationFailed
from gradtf_fl.privacy import Ledger, epsilon_prv
from gradtf_fl.reports.audit import CURVE_POINTS, FEWEST_POINTS, read_for_report, report_all

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
