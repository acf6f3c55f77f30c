"""``gradtf audit``: figures, formats and exit codes."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradtf_fl.cli.audit.audit import audit
from gradtf_fl.errors import ConfigError, GradtfError, VerificationFailed
from gradtf_fl.privacy import NOISE_SEEDED, DpEvent, Ledger, epsilon_prv
from gradtf_fl.reports.audit import read_for_report, report_all
from gradtf_fl.reports.audit_chart import chart, highest, nice_step

from .conftest import EVENT


def run(*arguments: object) -> Result:
    return CliRunner().invoke(audit, [str(argument) for argument in arguments])


def failure(*arguments: object) -> GradtfError:
    error = run(*arguments).exception
    assert isinstance(error, GradtfError), error
    return error


@pytest.fixture
def ledgers(tmp_path: Path) -> list[Path]:
    """Two organizations; the second has an open reservation and a name that HTML must escape."""
    paths = []
    for name, rounds in (("clinic", 2), ("bank <& sons>", 1)):
        path = tmp_path / name[:4] / "ledger.sqlite"
        ledger = Ledger.open(path, identity_key=Ed25519PrivateKey.generate(), organization=name, delta=1e-5, budget=2.0)
        for round in range(rounds):
            reservation = ledger.reserve("run-1", round + 1, 0, EVENT)
            if name == "clinic":
                ledger.settle(reservation, EVENT, noise=NOISE_SEEDED)
        paths.append(path)
    return paths


def break_row(path: Path) -> None:
    connection = sqlite3.connect(path)
    (sql,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'entries_are_never_changed'").fetchone()
    connection.execute("DROP TRIGGER entries_are_never_changed")
    connection.execute("UPDATE entries SET body = replace(body, '\"steps\":50', '\"steps\":5') WHERE number = 3")
    connection.execute(sql)
    connection.commit()
    connection.close()


def test_json_has_the_figures_and_what_they_mean(ledgers: list[Path]) -> None:
    result = run("report", "--ledger", *ledgers, "--format", "json")
    assert result.exit_code == 0, result.output
    clinic, bank = json.loads(result.stdout)["ledgers"]
    assert clinic["events"] == [{"sigma": 1.75, "q": 0.0625, "steps": 100}]
    assert clinic["epsilon"]["prv"] == epsilon_prv([DpEvent(1.75, 0.0625, 100)], 1e-5) == pytest.approx(1.697, abs=1e-3)
    assert clinic["epsilon"]["prv"] == pytest.approx(clinic["epsilon"]["pld"], abs=0.02)
    assert clinic["remaining"] == pytest.approx(2.0 - clinic["epsilon"]["prv"])
    assert (clinic["projected_rounds_left"], bank["projected_rounds_left"]) == (0, 1)  # three rounds cost 2.078
    assert [cost["state"] for cost in clinic["rounds"]] == ["settled", "settled"]
    assert clinic["rounds"][0]["epsilon_after"] == pytest.approx(1.219, abs=1e-3)
    assert clinic["chain"]["ok"] is True
    assert len(clinic["chain"]["head"]) == 64
    assert clinic["noise_generator"] == [NOISE_SEEDED]
    assert bank["noise_generator"] == ["not recorded"]
    for word in ("unit", "adjacency", "sampler", "accountant", "delta"):
        assert clinic[word]


def test_an_infinite_epsilon_is_null_in_json(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    key = Ed25519PrivateKey.generate()
    ledger = Ledger.open(path, identity_key=key, organization="o", delta=1e-5, budget=float("inf"))
    ledger.reserve("r", 1, 0, DpEvent(0.0, 0.5, 1))
    (document,) = json.loads(run("report", path, "--json").stdout)["ledgers"]
    assert document["epsilon"]["prv"] is None
    assert document["budget"] is None
    page = tmp_path / "r.html"
    assert run("report", path, "--format", "html", "--out", page).exit_code == 0
    assert "without noise" in page.read_text()


def test_csv_has_one_line_per_charge(ledgers: list[Path]) -> None:
    lines = list(csv.DictReader(io.StringIO(run("report", *ledgers, "--format", "csv").stdout)))
    assert [(line["organization"], line["round"], line["state"]) for line in lines] == [
        ("clinic", "1", "settled"),
        ("clinic", "2", "settled"),
        ("bank <& sons>", "1", "reserved"),
    ]


def test_csv_appends_what_the_figures_refer_to(ledgers: list[Path]) -> None:
    text = run("report", *ledgers, "--format", "csv").stdout
    old = "organization,dataset,delta,budget,chain_ok,run,round,attempt,state,sigma,q,steps,epsilon_after,"
    new = "unit,adjacency,sampler,accountant,epsilon_prv,epsilon_pld,epsilon_rdp,remaining,projected_rounds_left,"
    assert text.splitlines()[0] == f"{old}noise_generator,when,{new}client_level_epsilon,head"
    line = list(csv.DictReader(io.StringIO(text)))[-1]
    (document,) = json.loads(run("report", ledgers[1], "--json").stdout)["ledgers"]
    for name in ("unit", "adjacency", "sampler", "accountant"):
        assert line[name] == document[name]
    for name in ("prv", "pld", "rdp"):
        assert float(line[f"epsilon_{name}"]) == document["epsilon"][name]
    assert float(line["remaining"]) == document["remaining"]
    assert (line["projected_rounds_left"], line["client_level_epsilon"]) == ("1", "")
    assert line["head"] == document["chain"]["head"]


@pytest.mark.parametrize("name", ["=1+2", "+1", "-1", "@SUM(A1)", "\t=1", "clinic"])
def test_a_name_is_no_formula(tmp_path: Path, name: str) -> None:
    path = tmp_path / "ledger.sqlite"
    key = Ed25519PrivateKey.generate()
    with Ledger.open(path, identity_key=key, organization=name, delta=1e-5, budget=2.0) as ledger:
        ledger.reserve(name, 1, 0, EVENT, noise=name)
    (line,) = csv.DictReader(io.StringIO(run("report", path, "--format", "csv").stdout))
    for column in ("organization", "run", "noise_generator"):
        assert line[column] == (name if name == "clinic" else f"'{name}")


def test_the_table_says_what_epsilon_is(ledgers: list[Path]) -> None:
    output = run("report", "--ledger", ledgers[0], "--ledger", ledgers[1]).stdout
    words = ("clinic", "1.697", "1.219", "adjacency", "Poisson", "1e-05", "Not covered")
    assert [word for word in words if word not in output] == []


class Balanced(HTMLParser):
    """Fails on tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_self_contained_and_draws_each_organization(ledgers: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    result = run("report", "--ledger", *ledgers, "--format", "html", "--out", out)
    assert (result.exit_code, result.stdout) == (0, "")
    page = out.read_text()
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert not re.search(r"https?:|<script|<link|@import|url\(|src=", page)
    assert 'name="viewport"' in page
    assert "bank &lt;&amp; sons&gt;" in page
    assert "<& sons>" not in page
    for word in ("adjacency", "sampler", "accountant", "noise generator", "unit", "does not cover", "δ"):
        assert word in page
    drawings = [ET.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    assert len(drawings) == 2
    clinic = drawings[0]
    heights = [float(c.attrib["cy"]) for c in clinic.iter("circle")]
    limit = next(float(line.attrib["y1"]) for line in clinic.iter("line") if line.attrib["class"] == "limit")
    curve = next(clinic.iter("polyline")).attrib["points"].split()
    floor = float(curve[0].split(",")[1])
    assert len(heights) == 2
    # proportions of the drawing are those of the figures: 1.219 and 1.697 of a budget of 2
    assert (floor - heights[0]) / (floor - limit) == pytest.approx(1.219 / 2, abs=0.01)
    assert (floor - heights[1]) / (floor - limit) == pytest.approx(1.697 / 2, abs=0.01)
    assert [c.attrib["class"] for c in drawings[1].iter("circle")] == ["open"]


def test_a_budget_far_above_is_named_and_flattens_nothing(tmp_path: Path) -> None:
    paths = []
    for name, budget in (("near", 2.0), ("far", 1000.0)):
        path = tmp_path / name / "ledger.sqlite"
        key = Ed25519PrivateKey.generate()
        with Ledger.open(path, identity_key=key, organization=name, delta=1e-5, budget=budget) as ledger:
            ledger.reserve("run", 1, 0, EVENT)
        paths.append(path)
    reports = report_all([read_for_report(path) for path in paths])
    assert highest(reports) == pytest.approx(2.0 * 1.08)
    near, far = (chart(report, highest(reports)) for report in reports)
    assert near is not None
    assert far is not None
    assert (near.budget, near.budget_y is None) == ("budget 2", False)
    assert (far.budget, far.budget_y) == ("budget 1000, beyond this chart", None)
    assert highest(reports[1:]) == pytest.approx(1.219 * 1.08, abs=1e-3)


@pytest.mark.parametrize(
    ("span", "most", "step"), [(8.64, 5, 2.0), (1.08, 5, 0.5), (0.108, 5, 0.05), (10, 6, 2), (3, 6, 0.5)]
)
def test_axis_steps_are_round(span: float, most: int, step: float) -> None:
    assert nice_step(span, most) == step


def test_verify_names_the_row_and_fails(ledgers: list[Path]) -> None:
    sound = run("verify", "--ledger", *ledgers)
    assert sound.exit_code == 0
    assert sound.stdout.count("sound") == 2
    break_row(ledgers[0])
    error = failure("verify", "--ledger", *ledgers)
    assert error.exit_code == 5
    assert str(error) == f"{ledgers[0]}: row 3: its content does not match its hash"
    document = json.loads(run("verify", "--json", *ledgers).stdout)
    assert [verdict["ok"] for verdict in document["ledgers"]] == [False, True]


def test_a_report_on_a_broken_ledger_says_so_and_fails(ledgers: list[Path], tmp_path: Path) -> None:
    break_row(ledgers[0])
    result = run("report", *ledgers, "--json")
    assert isinstance(result.exception, VerificationFailed)
    assert [entry["chain"]["ok"] for entry in json.loads(result.stdout)["ledgers"]] == [False, True]
    assert "BROKEN" in run("report", *ledgers).stdout
    run("report", *ledgers, "--format", "html", "--out", tmp_path / "r.html")
    assert "does not match its hash" in (tmp_path / "r.html").read_text()


def test_verify_compares_key_and_head(ledgers: list[Path]) -> None:
    verdict = json.loads(run("verify", ledgers[0], "--json").stdout)["ledgers"][0]
    assert run("verify", ledgers[0], "--public-key", verdict["public_key"], "--head", verdict["head"]).exit_code == 0
    assert "another key" in str(failure("verify", ledgers[0], "--public-key", "ab" * 32))
    assert "not on this chain" in str(failure("verify", ledgers[0], "--head", "ab" * 32))
    assert isinstance(failure("verify", ledgers[0], "--head", "xyz"), ConfigError)
    assert isinstance(failure("verify", *ledgers, "--head", "ab" * 32), ConfigError)


def test_a_folder_stands_for_its_ledger(ledgers: list[Path]) -> None:
    assert run("verify", ledgers[0].parent).stdout == run("verify", ledgers[0]).stdout


def test_all_bad_paths_are_named_at_once(ledgers: list[Path], tmp_path: Path) -> None:
    (tmp_path / "junk.sqlite").write_text("junk\n")
    error = failure("report", ledgers[0], tmp_path / "none.sqlite", tmp_path / "junk.sqlite")
    assert isinstance(error, ConfigError)
    assert len(error.problems) == 2
    assert run("report").exit_code == 2
    assert isinstance(failure("report", ledgers[0], "--out", tmp_path / "no" / "r"), ConfigError)


@pytest.mark.parametrize(
    ("name", "code"), [("none.sqlite", 2), ("junk.sqlite", 2), ("sound/ledger.sqlite", 0), ("broken/ledger.sqlite", 5)]
)
def test_exit_codes_of_the_program(ledgers: list[Path], tmp_path: Path, name: str, code: int) -> None:
    (tmp_path / "junk.sqlite").write_text("junk\n")
    shutil.copytree(ledgers[0].parent, tmp_path / "sound")
    shutil.copytree(ledgers[0].parent, tmp_path / "broken")
    break_row(tmp_path / "broken" / "ledger.sqlite")
    command = [sys.executable, "-m", "gradtf_fl.cli.main", "audit", "verify", "--ledger", str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == (0 if code == 0 else 1)
