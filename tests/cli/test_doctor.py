"""doctor: findings come from the machine and the folder, and each that is not ok says what to do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gradtf_fl.cli import diagnosis
from gradtf_fl.cli.diagnosis import OFFLINE_SWITCHES, check_organization, diagnose
from gradtf_fl.config import DataSection, OrganizationConfig, PrivacySection, SecAggSection, to_toml
from gradtf_fl.secagg import Identity
from tests.cli.conftest import gradtf


@pytest.fixture
def organization(tmp_path: Path) -> Path:
    identity = Identity.generate()
    identity.save(tmp_path / "identity.key")
    config = OrganizationConfig(
        name="org-1",
        data=DataSection(train=Path("train.jsonl")),
        privacy=PrivacySection(budget=8.0),
        secagg=SecAggSection(roster=(identity.public.hex(), "a" * 64, "b" * 64), provider_key="c" * 64),
    )
    (tmp_path / "organization.toml").write_text(to_toml(config))
    return tmp_path


def levels(folder: Path) -> list[str]:
    return [finding.level for finding in check_organization(folder)]


def test_a_sound_organization_is_ok(organization: Path) -> None:
    assert set(levels(organization)) == {"ok"}


def test_open_file_modes_fail_with_the_command_to_run(organization: Path) -> None:
    (organization / "ledger.sqlite").touch(mode=0o644)
    (finding,) = [f for f in check_organization(organization) if f.level != "ok"]
    assert (finding.level, finding.remedy) == ("fail", f"chmod 600 {organization / 'ledger.sqlite'}")


def test_an_identity_outside_the_roster_fails(organization: Path) -> None:
    (organization / "identity.key").unlink()
    Identity.generate().save(organization / "identity.key")
    assert "fail" in levels(organization)


def test_every_problem_of_organization_toml_is_a_finding(organization: Path) -> None:
    path = organization / "organization.toml"
    path.write_text(path.read_text().replace("budget = 8.0", "budget = -1.0\ntypo = 1"))
    assert levels(organization) == ["fail", "fail"]


def test_everything_that_is_not_ok_says_what_to_do() -> None:
    assert all(finding.remedy for finding in diagnose([Path("/nowhere")]) if finding.level != "ok")


def test_offline_switches_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (value, _) in OFFLINE_SWITCHES.items():
        monkeypatch.setenv(name, value)
    assert {f.level for f in diagnosis._offline(dict(os.environ))} == {"ok"}
    monkeypatch.delenv("FLWR_TELEMETRY_ENABLED")
    assert [f.what for f in diagnosis._offline(dict(os.environ)) if f.level == "warn"] == ["FLWR_TELEMETRY_ENABLED"]


def test_doctor_prints_one_json_document_and_fails_on_a_bad_folder(tmp_path: Path) -> None:
    result = gradtf("doctor", "--organization", tmp_path, "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 2
    assert document["ok"] is False
    assert any(f["what"] == f"organization {tmp_path}" and f["level"] == "fail" for f in document["findings"])
