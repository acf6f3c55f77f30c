"""The second epsilon: Skellam noise on sums, from the ledger to every form of the report."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from gradtf_fl.privacy import Ledger, SkellamEvent, epsilon_prv, epsilon_skellam, read_ledger
from gradtf_fl.privacy.ledger.books import replay
from gradtf_fl.reports.audit import report_ledger
from gradtf_fl.reports.audit_formats import to_csv, to_html, to_json, to_table

from .conftest import EVENT

SKELLAM = SkellamEvent(variance=4e8, l2=2e4, l1=6e5, releases=1, noisers=4)


def test_both_epsilons_are_recomputed_from_the_ledger(ledger: Ledger) -> None:
    ledger.abort(ledger.reserve("run", 1, 0, EVENT, client_level=SKELLAM), released=False)  # nothing was trained
    ledger.settle(ledger.reserve("run", 1, 1, EVENT, client_level=SKELLAM), EVENT)
    ledger.reserve("run", 2, 0, EVENT, client_level=SKELLAM)  # its round may have failed: it counts
    assert read_ledger(ledger.path).content.client_level == (SKELLAM, SKELLAM)
    (report,) = report_ledger(ledger.path)
    assert report.epsilon.prv == epsilon_prv([EVENT, EVENT], 1e-5)
    assert report.client_level == epsilon_skellam([SKELLAM] * 2, 1e-5)
    assert report.client_level is not None
    assert report.client_level > 4.8  # two Gaussians of sigma 1 by RDP


def test_every_format_says_what_it_assumes(ledger: Ledger) -> None:
    ledger.reserve("run", 1, 0, EVENT, client_level=SKELLAM)
    (report,) = report_ledger(ledger.path)
    (document,) = json.loads(to_json([report]))["ledgers"]
    assert document["client_level"]["epsilon"] == report.client_level
    assert document["client_level"]["events"] == [vars(SKELLAM)]
    assert "computational" in document["client_level"]["assumptions"]
    assert "organization" in document["client_level"]["unit"]
    assert document["epsilon"]["prv"] != document["client_level"]["epsilon"]
    console = Console(width=150, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(to_table([report]))
    table = captured.get()
    assert f"{report.client_level:.3f}" in table
    assert "only while secure aggregation hides" in table
    html = to_html([report])
    assert "client level (Skellam)" in html
    assert f"{report.client_level:.3f}" in html
    assert to_csv([report]).count("\n") == 2


def test_a_ledger_without_noise_on_sums_has_one_epsilon(ledger: Ledger) -> None:
    ledger.reserve("run", 1, 0, EVENT)
    (report,) = report_ledger(ledger.path)
    assert report.client_level is None
    assert json.loads(to_json([report]))["ledgers"][0]["client_level"] is None
    assert "client level" not in to_html([report])
    console = Console(width=150)
    with console.capture() as captured:
        console.print(to_table([report]))
    assert "client" not in captured.get()


@pytest.mark.parametrize(
    "bad",
    [7, {}, {"variance": 0.0}, {"l1": 1.0}, {"releases": 1.5}, {"noisers": 0}, {"l2": "1"}, {"variance": None}],
)
def test_client_level_that_makes_no_sense_is_a_problem_of_its_row(ledger: Ledger, bad: object) -> None:
    ledger.reserve("run", 1, 0, EVENT, client_level=SKELLAM)

    from gradtf_fl.privacy.ledger.reading import ledger_rows

    entries = ledger_rows(ledger.path)
    body = json.loads(entries[-1].body)
    body["client_level"] = {**vars(SKELLAM), **bad} if isinstance(bad, dict) and bad else bad
    content = replay([*entries[:-1], entries[-1]._replace(body=json.dumps(body))])
    assert [problem.row for problem in content.problems] == [3]
    assert content.client_level == ()
