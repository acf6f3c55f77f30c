"""what-if: the noise is the least that fits, accuracy is quoted and never invented, and the ledger is only read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradtf_fl.privacy import DpEvent, Ledger, epsilon_prv, epsilon_rdp
from gradtf_fl.privacy.planning import (
    EXPECTED_ACCURACY,
    MOST_ROUNDS,
    RunPlan,
    differences,
    expected_accuracy,
    measurements,
    rounds_within,
)
from tests.cli.conftest import gradtf

EVENT = DpEvent(sigma=1.75, q=1 / 16, steps=50)
"""Epsilon at 1e-5 after one, two, three: 1.219, 1.697, 2.078."""
PLAN = ("--epsilon", 4, "--rounds", 3, "--batch", 64, "--rows", 1024)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """One settled round, epsilon 1.219 of a budget of 2; a second dataset with no budget to speak of and no round."""
    path = tmp_path / "ledger.sqlite"
    key = Ed25519PrivateKey.generate()
    with Ledger.open(
        path, identity_key=key, organization="clinic", delta=1e-5, budget={"train": 2.0, "more": float("inf")}
    ) as book:
        reservation = book.reserve("run", 1, 0, EVENT)
        book.settle(reservation, EVENT)
    return path


def document(*arguments: object) -> dict[str, Any]:
    result = gradtf("audit", "what-if", *arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_the_noise_is_the_least_that_fits() -> None:
    found = document(*PLAN)
    sigma, q, steps = found["noise_multiplier"], found["q"], found["total_steps"]
    assert (q, steps) == (1 / 16, 150)
    assert epsilon_prv([DpEvent(sigma, q, steps)], 1e-5) == found["epsilon"]["prv"] <= 4
    assert epsilon_prv([DpEvent(sigma * 0.99, q, steps)], 1e-5) > 4
    assert found["epsilon"]["pld"] == pytest.approx(found["epsilon"]["prv"], abs=0.03)
    assert found["epsilon"]["rdp"] == epsilon_rdp([DpEvent(sigma, q, steps)], 1e-5) > 4
    assert 4 < found["epsilon"]["replace_one_pld"] < 8
    assert found["ledger"] is None


def test_accuracy_is_quoted_where_it_was_measured_and_interpolated_between() -> None:
    point = {p["epsilon"]: p for p in measurements()["points"] if p["organizations"] == 1}
    one = expected_accuracy(1.0)[0]
    assert (one.organizations, one.tiny, one.generated) == (1, point[1.0]["tiny"], point[1.0]["generated"])
    assert one.measured
    between = expected_accuracy(32**0.5)[0]  # half way from 4 to 8 on the logarithmic scale
    assert between.tiny == pytest.approx((point[4.0]["tiny"] + point[8.0]["tiny"]) / 2)
    assert between.generated == pytest.approx((point[4.0]["generated"] + point[8.0]["generated"]) / 2)
    assert not between.measured
    assert [each.organizations for each in expected_accuracy(2.0)] == [1, 5, 20]


@pytest.mark.parametrize("epsilon", [0.4, 8.1, 50.0])
def test_nothing_is_expected_outside_the_measured_range(epsilon: float) -> None:
    assert expected_accuracy(epsilon) == ()


def test_the_range_that_was_measured_is_said() -> None:
    result = gradtf("audit", "what-if", "--epsilon", 9, *PLAN[2:])
    assert "not measured at this epsilon, only from 0.5 to 8" in " ".join(result.stdout.split())


def test_where_the_plan_differs_from_the_measurement_is_said() -> None:
    assert differences(RunPlan(4, 1e-5, 3, 64, 1024, 50)) == ()
    assert differences(RunPlan(4, 1e-6, 5, 64, 500, 50)) == (
        "rows 500 (measured: 1024)",
        "rounds 5 (measured: 3)",
        "delta 1e-06 (measured: 1e-05)",
    )
    text = " ".join(gradtf("audit", "what-if", *PLAN[:-1], 500).stdout.split())
    assert "rows 500 (measured: 1024)" in text
    assert "experiments/results/" in text


def test_the_table_is_that_of_the_committed_measurements() -> None:
    from experiments.embedded.expected_accuracy import PRIVATE, WITHOUT_DP, table

    without_dp, private = json.loads(WITHOUT_DP.read_text()), json.loads(PRIVATE.read_text())
    assert json.loads(EXPECTED_ACCURACY.read_text()) == table(without_dp, private)
    with pytest.raises(ValueError, match="different checkpoints"):
        table(without_dp, {**private, "checkpoint_sha256": "0" * 64})


def test_a_ledger_tells_what_the_run_would_do_to_it(ledger: Path) -> None:
    before = hashlib.sha256(ledger.read_bytes()).digest()
    found = document(*PLAN, "--ledger", ledger, "--dataset", "train")
    assert hashlib.sha256(ledger.read_bytes()).digest() == before
    sigma = found["noise_multiplier"]
    outlook = found["ledger"]
    assert (outlook["organization"], outlook["dataset"], outlook["budget"]) == ("clinic", "train", 2.0)
    assert outlook["spent"] == pytest.approx(1.219, abs=0.01)
    assert outlook["after"] == epsilon_prv([EVENT, DpEvent(sigma, 1 / 16, 150)], 1e-5) > 4
    assert outlook["fits"] is False
    assert outlook["rounds_left"] == 1  # after two 1.697, after three 2.078
    assert outlook["planned_rounds"] == 0
    text = gradtf("audit", "what-if", *PLAN, "--ledger", ledger, "--dataset", "train").stdout
    assert "does NOT fit" in text
    assert "1 like its last one" in text


def test_a_small_run_fits_and_no_budget_has_no_end(ledger: Path) -> None:
    small = ("--epsilon", 0.5, "--rounds", 1, "--batch", 64, "--rows", 1024)
    found = document(*small, "--ledger", ledger.parent, "--dataset", "train")["ledger"]
    assert found["fits"] is True
    assert found["planned_rounds"] >= 1
    free = document(*small, "--ledger", ledger, "--dataset", "more")["ledger"]
    assert (free["budget"], free["spent"], free["rounds_left"], free["planned_rounds"]) == (None, 0.0, None, None)
    assert free["fits"] is True


def test_rounds_within_counts_to_the_last_that_fits() -> None:
    assert [rounds_within((), EVENT, 1e-5, budget) for budget in (1.0, 1.3, 1.75, 2.2)] == [0, 1, 2, 3]
    many = rounds_within((EVENT,), EVENT, 1e-5, 8.0)
    assert epsilon_prv([DpEvent(1.75, 1 / 16, 50 * (many + 1))], 1e-5) <= 8.0
    assert epsilon_prv([DpEvent(1.75, 1 / 16, 50 * (many + 2))], 1e-5) > 8.0
    assert rounds_within((), DpEvent(1000.0, 1e-4, 1), 1e-5, 8.0) == MOST_ROUNDS


def test_bad_plans_and_ledgers_are_refused(ledger: Path) -> None:
    result = gradtf("audit", "what-if", "--epsilon", 4, "--rounds", 0, "--batch", 64, "--rows", 32)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 2
    for extra, words in (
        (("--ledger", ledger), "no dataset is named; there are train, more"),
        (("--ledger", ledger, "--dataset", "none"), "no dataset 'none'"),
        (("--ledger", ledger, "--dataset", "train", "--delta", "1e-6"), "its delta is 1e-05"),
        (("--ledger", ledger.parent / "gone.sqlite"), "no such file"),
        (("--dataset", "train"), "--dataset needs --ledger"),
    ):
        result = gradtf("audit", "what-if", *PLAN, *extra)
        assert result.exit_code == 2
        assert words in result.stderr


def test_a_broken_ledger_plans_nothing(ledger: Path) -> None:
    ledger.with_name("ledger.sqlite").write_bytes(ledger.read_bytes().replace(b"1.75", b"9.75"))
    result = gradtf("audit", "what-if", *PLAN, "--ledger", ledger, "--dataset", "train")
    assert result.exit_code == 5
    assert "row 4" in result.stderr


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (("--epsilon", 1, "--delta", "1e-14"), 2),
        (("--epsilon", 1, "--delta", "1e-18"), 2),
        (("--epsilon", 0.005), 2),
        (("--epsilon", 1001), 2),
        (("--epsilon", 1, "--delta", "1e-12"), 0),
        (("--epsilon", 1000, "--batch", 1024), 0),
        (("--epsilon", 0.01), 0),
    ],
    ids=str,
)
def test_at_the_edge_it_answers_or_says_why_not(given: tuple[object, ...], code: int) -> None:
    """Delta 1e-14 ended in a ValueError; epsilon 1000 at q = 1 took 300 s and 9.6 GB."""
    result = gradtf("audit", "what-if", "--rounds", 3, "--batch", 64, "--rows", 1024, *given)
    assert result.exit_code == code
    assert ("must be" in result.output) == (code == 2)
