"""A project whose unit is a person, from its file to its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradtf_fl.config import OrganizationConfig, load_toml
from gradtf_fl.privacy import Unit, read_ledger
from gradtf_fl.tasks import read_rows
from tests.cli.conftest import gradtf
from tests.curation.text_pair import TextFiles, write_files


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextFiles:
    return write_files(tmp_path_factory.mktemp("pair"))


def project(text: TextFiles, folder: Path, unit: str = "customer") -> Path:
    """120 rows of sixty customers: half of them have one row, the others three."""
    rows = [
        {"prompt": f"cat {customer} {number} ", "answer": "dog", "customer": f"C{customer}"}
        for customer in range(60)
        for number in range(1 + 2 * (customer % 2))
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "federation.toml"
    path.write_text(
        f'[pair]\ntiny = "{text.tiny}"\nllm = "{text.llm}"\n[task]\nsource = "rows.jsonl"\npublic = 0.2\n'
        "max_new_tokens = 4\n[federation]\norganizations = 3\nrows = 0\n"
        f'[privacy]\nunit = "{unit}"\nrows_per_person = 2\n'
        '[rounds]\nrounds = 1\nsteps = 3\nbatch = 4\n[provider]\ntransformer = "none"\n'
    )
    return path


def test_a_federation_of_persons_says_so_everywhere(text: TextFiles, tmp_path: Path) -> None:
    path, out = project(text, tmp_path), tmp_path / "run"
    checked = gradtf("check", "--config", path)
    assert checked.exit_code == 0, checked.output
    assert "persons" in checked.output
    result = gradtf("simulate", "--config", path, "--out", out)
    assert result.exit_code == 0, result.stderr
    said = " ".join(result.stdout.split())
    assert "Unit: one person, with all training rows of one value of 'customer'" in said
    assert "one training row" not in said
    report = json.loads((out / "report.json").read_text())
    assert "one person" in report["unit"]
    assert report["adjacency"] == "add or remove one person with all of their rows"
    assert report["config"]["unit"] == "customer"
    held: list[str] = []
    for one in report["organizations"]:
        folder = out / "organizations" / one["name"]
        config = load_toml(OrganizationConfig, folder / "organization.toml")
        assert (config.privacy.unit, config.privacy.rows_per_person) == ("customer", 2)
        persons = {str(row.person) for row in read_rows(folder / "train.jsonl", person="customer")}
        assert one["persons"] == len(persons) < one["rows"]
        held += persons
        (charge,) = read_ledger(folder / "ledger.sqlite").content.charges
        assert charge.unit == Unit("customer")
        assert charge.event.q == 4 / len(persons)
        assert 0 < one["epsilon"] <= 8
    assert len(held) == len(set(held))  # nobody is at two organizations
    audit = gradtf("audit", "report", "--ledger", out / "organizations" / "org-1" / "ledger.sqlite")
    assert "one person" in audit.output
    assert "one row" not in audit.output


def test_check_says_what_stops_persons(text: TextFiles, tmp_path: Path) -> None:
    result = gradtf("check", "--config", project(text, tmp_path, "client"), "--json")
    assert result.exit_code == 2
    found = {one["what"]: one["found"] for one in json.loads(result.stdout)["findings"]}
    assert "rows.jsonl, line 1: has no 'client'" in found["rows of rows"]


def test_an_organization_is_made_with_its_unit(text: TextFiles, tmp_path: Path) -> None:
    path = project(text, tmp_path)
    for name, options in (("one", ("--config", path)), ("two", ("--unit", "customer", "--tiny", text.tiny))):
        made = gradtf("org", "init", tmp_path / name, "--data", tmp_path / "rows.jsonl", "--budget", 4, *options)
        assert made.exit_code == 0, made.stderr
        assert 'unit = "customer"' in (tmp_path / name / "organization.toml").read_text()
