"""``gradtf audit statement``: the figures of the report, the checks of verify, on one sheet, whatever a ledger says."""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pypdf import PdfReader

from gradtf_fl.cli.audit.audit import audit
from gradtf_fl.errors import ConfigError, VerificationFailed
from gradtf_fl.file_names import ORGANIZATION_CONFIG
from gradtf_fl.privacy import NOISE_CSPRNG, NOISE_SEEDED, DpEvent, Ledger, SkellamEvent, Unit
from gradtf_fl.reports import statement_pdf
from gradtf_fl.reports.audit_words import limit, number
from gradtf_fl.reports.statement import NO_COMPLIANCE, AuditStatement, declared_beside, file_names
from gradtf_fl.reports.statement_rounds import charge_rows, spans

from .conftest import EVENT
from .test_audit_cli import break_row
from .test_audit_page import browse, measure, needs_browser
from .test_hostile_ledgers import FORGED, HOSTILE, foreign

SKELLAM = SkellamEvent(variance=4e8, l2=2e4, l1=6e5, releases=1, noisers=4)
SIGMA = DpEvent(4.0, 1 / 16, 40)
SCRIPT = "<script>alert(1)</script>"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(audit, ["statement", *(str(argument) for argument in arguments)])


def stated(*arguments: object) -> list[dict[str, Any]]:
    """What the verb says of each ledger in JSON, compliant or not."""
    result = run(*arguments, "--json")
    assert result.exception is None or isinstance(result.exception, VerificationFailed), result.exception
    found: list[dict[str, Any]] = json.loads(result.stdout)["statements"]
    assert bool(result.exception) is not all(one["compliant"] for one in found)
    return found


def settled(folder: Path, name: str, event: DpEvent = SIGMA, noise: str = NOISE_CSPRNG, budget: float = 8.0) -> Path:
    """The folder of an organization whose two rounds were trained to their end."""
    key = Ed25519PrivateKey.generate()
    path = folder / "ledger.sqlite"
    with Ledger.open(path, identity_key=key, organization=name, delta=1e-5, budget=budget) as ledger:
        for round in (1, 2):
            ledger.settle(ledger.reserve("run-1", round, 0, event, client_level=SKELLAM), event, noise=noise)
    return folder


@pytest.fixture
def ward(tmp_path: Path) -> Path:
    """A hundred rounds of a client-level federation over one dataset of patients, and one charge to another."""
    key = Ed25519PrivateKey.generate()
    path = tmp_path / "ward" / "ledger.sqlite"
    budget = {"2024": 8.0, "2025": 3.0}
    opened = Ledger.open(path, identity_key=key, organization="ward", delta=1e-5, budget=budget, unit=Unit("patient"))
    with opened as ledger:
        for round in range(1, 101):
            reservation = ledger.reserve("run-1", round, 0, SIGMA, dataset="2024", client_level=SKELLAM)
            ledger.settle(reservation, SIGMA, noise=NOISE_CSPRNG)
        ledger.abort(ledger.reserve("run-2", 7, 0, EVENT, dataset="2025"))
    return path.parent


def page_text(path: Path) -> str:
    """Everything that a browser would show of an HTML file, in one line."""
    body = path.read_text(encoding="utf8").partition("<body>")[2]
    return one_line(html.unescape(re.sub(r"<[^>]*>", " ", body)))


def sheet_text(path: Path) -> str:
    """Everything that a PDF says, in one line."""
    return one_line(" ".join(sheet.extract_text() for sheet in PdfReader(path).pages))


def one_line(text: str) -> str:
    return " ".join(text.split())


def words_of(statement: dict[str, Any]) -> Iterator[str]:
    yield statement["verdict"]
    yield statement["caution"]
    yield from statement["reasons"]
    for check in statement["checks"]:
        yield from check.values()
    for ledger in statement["figures"]:
        for name in ("adjacency", "sampler", "accountant", "unit"):
            yield ledger[name]
        yield from ledger["not_covered"]


def test_the_figures_are_those_of_the_report_on_page_and_sheet(ward: Path, tmp_path: Path) -> None:
    (statement,) = stated("--ledger", ward, "--out", tmp_path / "out")
    reported = CliRunner().invoke(audit, ["report", "--ledger", str(ward), "--json"])
    ledgers = json.loads(reported.stdout)["ledgers"]
    assert statement["figures"] == ledgers
    rows = []
    for one in ledgers:
        spent = one["epsilon"]
        figures = [spent["prv"], spent["pld"], spent["rdp"], spent["replace_one_pld"]]
        limits = [limit(one["budget"]), limit(one["remaining"]), str(one["projected_rounds_left"])]
        clients = number(one["client_level"]["epsilon"])
        rows.append(" ".join([one["dataset"], *map(number, figures), *limits, clients]))
    said = [page_text(Path(statement["files"][0])), sheet_text(Path(statement["files"][1]))]
    expected = [
        *rows,
        ledgers[0]["chain"]["head"],
        ledgers[0]["chain"]["public_key"],
        "delta 1e-05",
        "2024 100 1 to 100 1 100 settled 4.0000 0.06250 4,000",
        "2025 1 7 1 1 aborted 1.7500 0.06250 50",
    ]
    for text in said:
        assert [words for words in expected if words not in text] == []


def test_page_and_sheet_say_the_same_words(ward: Path, tmp_path: Path) -> None:
    (statement,) = stated("--ledger", ward, "--out", tmp_path / "out")
    page, sheet = page_text(Path(statement["files"][0])), sheet_text(Path(statement["files"][1]))
    assert [text for text in words_of(statement) if text not in page] == []
    assert sorted(page.replace("• ", "").split()) == sorted(sheet.replace("• ", "").split())


def test_every_check_has_a_result(ward: Path, tmp_path: Path) -> None:
    (statement,) = stated("--ledger", ward, "--out", tmp_path / "out")
    assert {check["what"]: check["result"] for check in statement["checks"]} == {
        "Hash chain": "holds",
        "Signatures": "holds",
        "Content": "holds",
        "Head": "holds",
        "File": "holds",
        "Key": "not compared",
        "Announced heads": "not compared",
        "Budget": "holds",
        "Accountants": "holds",
        "Sampling": "holds",
        "Noise": "not recorded",
    }
    assert statement["caution"] == "Not compared: key, announced heads. Not recorded: noise."


def test_what_is_compared_is_named(tmp_path: Path) -> None:
    folder = settled(tmp_path / "a", "a")
    (first,) = stated("--ledger", folder, "--out", tmp_path / "first")
    chain = first["figures"][0]["chain"]
    known = ("--public-key", chain["public_key"], "--head", chain["head"])
    (second,) = stated("--ledger", folder, *known, "--out", tmp_path / "second")
    results = {check["what"]: check["result"] for check in second["checks"]}
    assert (results["Key"], results["Announced heads"], second["caution"]) == ("holds", "holds", "")
    (third,) = stated("--ledger", folder, "--public-key", "ab" * 32, "--head", "cd" * 32, "--out", tmp_path / "third")
    failed = [check["what"] for check in third["checks"] if check["result"] == "FAILED"]
    assert failed == ["Key", "Announced heads"]


def test_the_declared_number_is_that_of_the_configuration_beside_the_ledger(tmp_path: Path) -> None:
    folder = settled(tmp_path / "a", "a")
    for text, declared in (
        ('name = "a"\n[privacy]\ndeclared = 1024\n', 1024),
        ('name = "b"\n[privacy]\ndeclared = 1024\n', None),
        ('name = "a"\n[privacy]\ndeclared = 1024\ndataset = "other"\n', None),
        ('name = "a"\n[privacy]\ndeclared = "1024"\n', None),
        ("[" * 90_000, None),
    ):
        (folder / ORGANIZATION_CONFIG).write_text(text)
        assert declared_beside(folder / "ledger.sqlite", "a", "train") == declared
    (folder / ORGANIZATION_CONFIG).write_text('name = "a"\n[privacy]\ndeclared = 1024\n')
    (statement,) = stated("--ledger", folder, "--out", tmp_path / "out")
    assert "train row 1,024 rows q = 0.0625" in page_text(Path(statement["files"][0]))


def _broken(folder: Path) -> None:
    break_row(settled(folder, "o", EVENT) / "ledger.sqlite")


def _headless(folder: Path) -> None:
    settled(folder, "o")
    (folder / "ledger.head").unlink()


def _over(folder: Path) -> None:
    key = Ed25519PrivateKey.generate()
    for budget in (9.0, 1.5):  # lowered afterwards
        path = folder / "ledger.sqlite"
        with Ledger.open(path, identity_key=key, organization="o", delta=1e-5, budget=budget) as ledger:
            if budget > 2:
                ledger.reserve("run", 1, 0, EVENT)
                ledger.reserve("run", 2, 0, EVENT)


def _seeded(folder: Path) -> None:
    settled(folder, "o", noise=NOISE_SEEDED)


def _gone(folder: Path) -> None:
    settled(folder, "o")
    (folder / "ledger.sqlite").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "check", "why"),
    [
        (_broken, "Hash chain", "row 3: its content does not match its hash"),
        (_headless, "Head", "ledger.head is missing"),
        (_over, "Budget", "epsilon 1.697 is above the budget of 1.500"),
        (_seeded, "Noise", "protects nobody"),
        (_gone, "Reading", "the ledger is gone or emptied"),
    ],
)
def test_what_fails_a_check_gets_no_statement_of_compliance(
    damage: Callable[[Path], None], check: str, why: str, tmp_path: Path
) -> None:
    damage(tmp_path / "bad")
    good = settled(tmp_path / "good", "good")
    result = run("--ledger", tmp_path / "bad" / "ledger.sqlite", good, "--out", tmp_path / "out", "--json")
    assert isinstance(result.exception, VerificationFailed)
    assert result.exception.exit_code == 5
    refused, fine = json.loads(result.stdout)["statements"]
    assert (refused["compliant"], fine["compliant"]) == (False, True)
    for text in (page_text(Path(refused["files"][0])), sheet_text(Path(refused["files"][1]))):
        assert NO_COMPLIANCE in text
        assert "Verified:" not in text
        assert f"{check} FAILED" in text
        assert ("prove nothing" in text) is (check in ("Hash chain", "Head"))
        assert why in text
    assert "Verified: epsilon is within the budget" in page_text(Path(fine["files"][0]))


def test_without_a_budget_there_is_nothing_to_comply_with(tmp_path: Path) -> None:
    (statement,) = stated("--ledger", settled(tmp_path / "a", "a", budget=float("inf")), "--out", tmp_path / "out")
    assert statement["verdict"] == "Verified; the ledger sets no budget to comply with"


def test_a_hostile_ledger_stops_no_others_page(tmp_path: Path) -> None:
    paths = [foreign(tmp_path / f"org-{n}.jsonl", [EVENT], f"org-{n}") for n in range(3)]
    hostile = foreign(tmp_path / "hostile.jsonl", HOSTILE["steps"], FORGED)
    statements = stated("--ledger", paths[0], hostile, *paths[1:], "--out", tmp_path / "out")
    assert [one["compliant"] for one in statements] == [True, False, True, True]
    refused = statements[1]
    assert refused["reasons"][0].startswith("Figures: ")
    assert "no training of one organization" in refused["reasons"][0]
    for text in (Path(refused["files"][0]).read_text(encoding="utf8"), sheet_text(Path(refused["files"][1]))):
        assert NO_COMPLIANCE in text
        assert all(line.isprintable() for line in text.splitlines())
        assert r"bank\n/srv/bank/ledger.sqlite" in text


def test_a_name_is_text_on_the_page_and_a_harmless_file_name(tmp_path: Path) -> None:
    names = [SCRIPT, "../../etc/passwd", "東京病院", "", "a" * 3000, "clinic", "Clinic"]
    paths = [foreign(tmp_path / f"{n}.jsonl", [EVENT], name) for n, name in enumerate(names)]
    out = tmp_path / "out"
    statements = stated("--ledger", *paths, "--out", out)
    assert sorted(path.name for path in out.glob("*.html")) == [
        "Clinic-2.html",
        f"{'a' * 40}.html",
        "clinic.html",
        "etc-passwd.html",
        "ledger-2.html",
        "ledger.html",
        "script-alert-1-script.html",
    ]
    page = Path(statements[0]["files"][0]).read_text(encoding="utf8")
    assert "<script" not in page
    assert f"<br>{html.escape(SCRIPT)}</h1>" in page
    assert f"Privacy statement {SCRIPT}" in sheet_text(Path(statements[0]["files"][1]))
    assert "東京病院" in page_text(Path(statements[2]["files"][0]))
    assert r"\u6771\u4eac\u75c5\u9662" in sheet_text(Path(statements[2]["files"][1]))  # the font has no such characters
    assert "more characters)" in page_text(Path(statements[4]["files"][0]))


def test_nothing_is_fetched(ward: Path, tmp_path: Path) -> None:
    (statement,) = stated("--ledger", ward, "--out", tmp_path / "out")
    page, sheet = (Path(name).read_bytes() for name in statement["files"])
    assert not re.search(rb"https?:|<script|<link|@import|url\(|src=|href=", page)
    assert b"default-src 'none'" in page
    assert not re.search(rb"/URI|/JavaScript|/Launch|/EmbeddedFile", sheet)


def test_a_usual_ledger_takes_one_sheet(ward: Path, tmp_path: Path) -> None:
    (statement,) = stated("--ledger", ward, "--out", tmp_path / "out")
    reader = PdfReader(statement["files"][1])
    assert len(reader.pages) == 1
    width, height = (float(side) * 25.4 / 72 for side in reader.pages[0].mediabox[2:])
    assert (round(width), round(height)) == (210, 297)
    text = sheet_text(Path(statement["files"][1]))
    assert all(blank in text for blank in ("Auditor", "Place and date", "Signature"))


def test_many_kinds_of_step_share_the_last_line(ward: Path) -> None:
    kinds = [DpEvent(1.0 + n / 10, 0.01, 50) for n in range(9)]
    key = Ed25519PrivateKey.generate()
    path = ward.parent / "many" / "ledger.sqlite"
    with Ledger.open(path, identity_key=key, organization="m", delta=1e-5, budget=100.0) as ledger:
        for n, event in enumerate([*kinds, *kinds[:3]]):
            ledger.reserve(f"run-{n}", n + 1, 0, event)
        ledger.abort(ledger.reserve("last", 99, 0, kinds[0]), released=False)
        charges = ledger.charges()
    rows = charge_rows([("train", charges)])
    assert len(rows) == 6
    assert rows[0] == (
        "train",
        "3",
        "1, 10, 99",
        "3",
        "2 reserved, 1 released, not counted",
        "1.0000",
        "0.01000",
        "100",
    )
    assert rows[-1] == (
        "4 other kinds", "4", "6 to 9", "4", "4 reserved", "1.5000 to 1.8000", "0.01000 to 0.01000", "200",
    )  # fmt: skip
    assert sum(int(row[1]) for row in rows) == len(charges) == 13


@pytest.mark.parametrize(
    ("numbers", "text"),
    [({1}, "1"), ({1, 2, 3, 7}, "1 to 3, 7"), (set(range(0, 20, 2)), "10 between 0 and 18"), (set(), "")],
)
def test_rounds_in_a_few_characters(numbers: set[int], text: str) -> None:
    assert spans(numbers) == text


def test_a_statement_is_never_overwritten(tmp_path: Path) -> None:
    folder, out = settled(tmp_path / "a", "a"), tmp_path / "out"
    stated("--ledger", folder, "--out", out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    error = run("--ledger", folder, "--out", out).exception
    assert isinstance(error, ConfigError)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert isinstance(run("--ledger", folder, "--out", tmp_path / "no" / "out").exception, ConfigError)


def test_without_the_pdf_library_the_page_is_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statement_pdf, "find_spec", lambda name: None)
    folder, out = settled(tmp_path / "a", "a"), tmp_path / "out"
    error = run("--ledger", folder, "--out", out).exception
    assert isinstance(error, ConfigError)
    assert "gradtf-fl[pdf]" in str(error)
    assert not out.exists()
    (statement,) = stated("--ledger", folder, "--out", out, "--format", "html")
    assert [path.name for path in out.iterdir()] == ["a.html"] == [Path(name).name for name in statement["files"]]


def statement_of(organization: str) -> AuditStatement:
    made = "2026-01-01T00:00:00+00:00"
    return AuditStatement(Path("ledger.sqlite"), organization, True, "Verified", (), "", made, (), (), ())


def test_equal_statements_give_equal_sheets() -> None:
    one = statement_of("clinic")
    assert statement_pdf.to_pdf(one) == statement_pdf.to_pdf(replace(one))
    assert (
        "Organization not known"
        in PdfReader(io.BytesIO(statement_pdf.to_pdf(statement_of("")))).pages[0].extract_text()
    )
    assert file_names([one, statement_of("CLINIC")]) == ["clinic", "CLINIC-2"]


@needs_browser
def test_a_browser_prints_it_on_one_sheet_and_has_nothing_to_complain_of(ward: Path, tmp_path: Path) -> None:
    (statement,) = stated("--ledger", ward, "--out", tmp_path / "out", "--format", "html")
    page, paper = Path(statement["files"][0]), tmp_path / "paper.pdf"
    done = browse("--dump-dom", page.as_uri())
    assert "Verified how" in done.stdout
    assert "CONSOLE" not in done.stderr
    browse(f"--print-to-pdf={paper}", "--no-pdf-header-footer", page.as_uri())
    assert len(PdfReader(paper).pages) == 1
    assert "Place and date" in sheet_text(paper)


@needs_browser
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_it_whole(width: int, ward: Path, tmp_path: Path) -> None:
    broken = tmp_path / "bad"
    _broken(broken)
    for statement in stated("--ledger", ward, broken, "--out", tmp_path / "out", "--format", "html"):
        found = measure(Path(statement["files"][0]), width)
        assert found["scrolled"] <= width
        assert statement["verdict"] in found["text"]
