"""doctor: findings come from the machine and the folder, and each that is not ok says what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from clients.node.checks import check_organization
from clients.node.setup import join_federation, make_organization
from gradtf_fl.cli import diagnosis
from gradtf_fl.cli.diagnosis import OFFLINE_SWITCHES, diagnose
from gradtf_fl.deployment import Finding, Invitation, read_enrolment
from gradtf_fl.file_names import IDENTITY_KEY, NODE_KEY, ORGANIZATION_CONFIG, ORGANIZATION_PRIVATE
from gradtf_fl.secagg import Identity
from gradtf_fl.tasks import Row, write_rows
from tests.cli.conftest import gradtf

STRANGER = 54321  # a user id that is nobody's


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """An organization that has not joined."""
    rows = tmp_path / "rows.jsonl"
    write_rows(rows, [Row("[_][_][_]37?58=", "13")])
    rows.chmod(0o600)
    make_organization(tmp_path / "o1", "o1", rows, None, 8.0, 1e-5, "embedded:tiny", "embedded:llm")
    return tmp_path / "o1"


@pytest.fixture
def organization(fresh: Path) -> Path:
    """One that has."""
    rows = fresh.parent / "rows.jsonl"
    others = [
        make_organization(fresh.parent / name, name, rows, None, 8.0, 1e-5, "embedded:tiny", "embedded:llm")
        for name in ("o2", "o3")
    ]
    invitation = Invitation(
        server="127.0.0.1:9092",
        provider_key=Identity.generate().public.hex(),
        ca="",
        organizations=(read_enrolment(fresh / "enrolment.json"), *others),
    )
    join_federation(fresh, invitation)
    return fresh


def failed(folder: Path) -> list[Finding]:
    return [finding for finding in check_organization(folder, offline=True) if finding.level == "fail"]


def give_away(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give a file to another user")
    os.chown(path, STRANGER, -1)


SPOILED: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "others": (lambda path: path.chmod(0o644), "mode 0644: others can read it", "chmod 600 {path}"),
    "group": (lambda path: path.chmod(0o640), "mode 0640: others can read it", "chmod 600 {path}"),
    "owner": (
        give_away,
        f"owned by user {STRANGER}, not by user {os.geteuid()}, who runs gradtf",
        f"chown {os.geteuid()} {{path}}",
    ),
}


def test_a_sound_organization_is_ok(organization: Path) -> None:
    assert {finding.level for finding in check_organization(organization, offline=True)} == {"ok"}


@pytest.mark.parametrize("how", SPOILED)
def test_doctor_and_org_check_say_the_same(organization: Path, how: str) -> None:
    spoil, found, remedy = SPOILED[how]
    path = organization / NODE_KEY
    spoil(path)
    check = gradtf("org", "check", organization, "--offline", "--json")
    doctor = gradtf("doctor", "--organization", organization, "--json")
    assert check.exit_code == doctor.exit_code == 2
    said = json.loads(check.stdout)["findings"]
    wrong = {"level": "fail", "what": str(path), "found": found, "do": remedy.format(path=path)}
    assert [finding for finding in said if finding["level"] == "fail"] == [wrong]
    also = json.loads(doctor.stdout)["findings"][-len(said) :]
    for finding in (*said, *also):  # a time is measured anew
        finding["found"] = "" if finding["what"] == "training step" else finding["found"]
    assert also == said


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("name", [name for name in ORGANIZATION_PRIVATE if "ledger" not in name])
def test_every_private_file_is_under_one_rule(organization: Path, name: str, how: str) -> None:
    spoil, found, remedy = SPOILED[how]
    path = organization / name
    path.parent.mkdir(mode=0o700, exist_ok=True)
    if name == "flower":
        path.mkdir(mode=0o700)
        remedy = remedy.replace("600", "700")
    else:
        path.touch(mode=0o600)
    assert failed(organization) == []
    spoil(path)
    (finding,) = failed(organization)
    assert (finding.what, finding.found, finding.remedy) == (str(path), found, remedy.format(path=path))


def test_an_open_folder_and_an_open_ledger_fail(organization: Path) -> None:
    organization.chmod(0o755)
    (organization / "ledger.sqlite").touch(mode=0o644)
    assert [(f.found, f.remedy) for f in failed(organization)][:2] == [
        ("mode 0755: others can read it", f"chmod 700 {organization}"),
        ("mode 0644: others can read it", f"chmod 600 {organization / 'ledger.sqlite'}"),
    ]


@pytest.mark.parametrize("name", [IDENTITY_KEY, NODE_KEY])
def test_a_key_that_is_gone_or_no_key_fails(organization: Path, name: str) -> None:
    path = organization / name
    path.unlink()
    (finding,) = failed(organization)
    assert "cannot read the" in finding.found
    path.touch(mode=0o600)
    path.write_text("no key")
    (finding,) = failed(organization)
    assert "not an unencrypted" in finding.found


def test_an_identity_outside_the_roster_fails(organization: Path) -> None:
    (organization / IDENTITY_KEY).unlink()
    Identity.generate().save(organization / IDENTITY_KEY)
    assert [finding.what for finding in failed(organization)] == ["roster"]


def test_every_problem_of_organization_toml_is_a_finding(organization: Path) -> None:
    path = organization / ORGANIZATION_CONFIG
    path.write_text(path.read_text().replace("budget = 8.0", "budget = -1.0\ntypo = 1"))
    assert [finding.what for finding in failed(organization)] == [f"organization {organization}"] * 2


def test_an_organization_that_has_not_joined_is_told_to_join(fresh: Path) -> None:
    (finding,) = failed(fresh)
    assert finding.found == "o1 has not joined a federation yet"
    assert finding.remedy == f"gradtf org join {fresh} invitation.json"
    assert "training rows" in [f.what for f in check_organization(fresh, offline=False)]
    path = fresh / ORGANIZATION_CONFIG
    path.write_text(path.read_text().replace("budget = 8.0", "budget = -1.0").replace("n_min = 3", "n_min = 7"))
    (finding,) = failed(fresh)
    assert "privacy.budget" in finding.found
    fresh.joinpath(NODE_KEY).chmod(0o644)
    assert str(fresh / NODE_KEY) in [finding.what for finding in failed(fresh)]


def told_of_rows(folder: Path, what: str) -> Finding:
    (finding,) = [finding for finding in check_organization(folder, offline=True) if finding.what == what]
    return finding


def test_rows_are_encoded_by_the_organizations_own_tokenizer(organization: Path) -> None:
    rows = organization.parent / "rows.jsonl"
    good = Row("[_][_][_]37?58=", "13")
    write_rows(rows, [good, good, Row("", "13"), Row("1" * 600, "2")])
    finding = told_of_rows(organization, "training rows")
    said = f"4 in {rows}, 1 cut at 64 tokens, 1 with an empty prompt, 1 there twice"
    assert (finding.level, finding.found) == ("warn", said)
    assert "[data] max_tokens" in finding.remedy
    write_rows(rows, [good, Row("1" * 600, "2")])
    finding = told_of_rows(organization, "training rows")
    assert finding.level == "fail"
    assert "1 of 2 rows are longer than the model's 64 positions" in finding.found
    write_rows(rows, [good, Row("Which ward?", "Ward twelve"), Row("", "7")])
    finding = told_of_rows(organization, "training rows")
    assert finding.level == "fail"
    assert "2 of 3 rows have no token that is scored" in finding.found


@pytest.mark.parametrize(
    ("rows", "level", "said"),
    [
        (63, "fail", "lower [privacy] declared to at most 63"),
        (64, "ok", ""),
        (127, "ok", ""),
        (128, "warn", "[privacy] declared = 128 changes that, and shows the server"),
    ],
)
def test_the_declared_figure_is_compared_with_the_file(organization: Path, rows: int, level: str, said: str) -> None:
    path = organization / ORGANIZATION_CONFIG
    path.write_text(path.read_text().replace("declared = 1\n", "declared = 64\n"))
    write_rows(organization.parent / "rows.jsonl", [Row("[_][_][_]37?58=", "13")] * rows)
    finding = told_of_rows(organization, "declared")
    assert (finding.level, finding.found) == (level, f"64 rows are public, {rows} are there")
    assert said in finding.remedy


def test_bad_test_rows_are_a_warning_and_no_failure(organization: Path) -> None:
    """They stop no round: its models are not scored here."""
    test = organization.parent / "test.jsonl"
    path = organization / ORGANIZATION_CONFIG
    path.write_text(path.read_text().replace("[data]\n", f'[data]\ntest = "{test}"\n'))
    for text, said in (
        (r'{"prompt": "[_]12?34=", "answer": "\ud83d"}', "line 1: holds half a character"),
        ('{"prompt": "Where?", "answer": "Ward"}', "1 of 1 rows have no token that is scored"),
        ("", "no rows"),
    ):
        test.write_text(text)
        test.chmod(0o600)
        finding = told_of_rows(organization, "test rows")
        assert finding.level == "warn"
        assert said in finding.found
        assert "not scored here" in finding.remedy
        assert failed(organization) == []


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
