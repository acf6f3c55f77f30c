"""audit empirical on the command line: the plan is written first, the document is whole, and failing is exit 5."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gradtf_fl.reports.empirical import print_audit
from gradtf_fl.training import empirical_audit
from gradtf_fl.training.audit_plan import AuditPlan
from gradtf_fl.training.dp_sgd import train_dp
from tests.cli.conftest import gradtf

SIZES = {"canaries": 240, "row-canaries": 24, "rows": 8, "steps": 10, "batch": 136}
SMALL = tuple(part for name, value in SIZES.items() for part in (f"--{name}", value))
CLAIM = ("audit", "empirical", "--epsilon", 1, "--seed", 1, *SMALL)


def noiseless(*rows: Any, sigma: float, **options: Any) -> Any:
    return train_dp(*rows, sigma=0.0, **options)


def test_the_plan_is_there_before_training_and_the_document_keeps_to_it(tmp_path: Path) -> None:
    plan_file = tmp_path / "plan.json"
    result = gradtf(*CLAIM, "--json", "--plan", plan_file)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    written = json.loads(plan_file.read_text())
    assert found["plan"] == written["plan"]
    canonical = json.dumps(written["plan"], sort_keys=True, separators=(",", ":")).encode()
    assert found["plan_sha256"] == written["plan_sha256"] == hashlib.sha256(canonical).hexdigest()
    first, *rest = result.stderr.splitlines()
    assert first.startswith(f"plan {found['plan_sha256']}: seed 1, 240 gradient canaries with 96 guesses in and 96 out")
    assert any("audit control" in line for line in rest)
    assert found["passed"] is True
    assert found["problems"] == []
    assert found["lower_bound"] < found["claimed_epsilon"] == pytest.approx(1, abs=0.01)
    assert (found["confidence"], found["bound_confidence"]) == (0.95, pytest.approx(1 - 0.05 / 6))
    assert set(found["audit"]["scores"]) == set(found["control"]["scores"]) == {"steps", "update", "loss"}
    assert {"canaries": 240, "made": 192}.items() <= found["audit"]["scores"]["steps"].items()
    assert "steps" in found["control_caught_by"]
    again = gradtf(*CLAIM, "--json", "--plan", plan_file)
    assert again.exit_code == 2
    assert "not overwritten" in again.stderr


def test_no_plan_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file holds the plan at the moment training begins."""
    plan_file, seen = tmp_path / "plan.json", []

    def stop(plan: AuditPlan, *_: Any) -> None:
        seen.append(json.loads(plan_file.read_text())["plan_sha256"] == plan.sha256)
        raise KeyboardInterrupt

    monkeypatch.setattr("gradtf_fl.training.run_audit", stop)
    gradtf(*CLAIM, "--plan", plan_file)
    assert seen == [True]
    assert gradtf(*CLAIM, "--plan", tmp_path / "none" / "plan.json").exit_code == 2
    assert len(seen) == 1


def test_a_leaking_trainer_is_exit_5_and_the_report_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradtf_fl.training.run_audit", partial(empirical_audit.run_audit, train=noiseless))
    result = gradtf(*CLAIM)
    assert result.exit_code == 5
    assert "the steps score proves epsilon above" in result.stderr
    text = " ".join(result.stdout.split())
    assert "FAILED" in text
    assert "proves nothing" in text


def test_a_report_tells_claim_bound_confidence_and_guesses() -> None:
    result = empirical_audit.run_audit(
        AuditPlan.make(epsilon=1, seed=1, gradient_canaries=240, row_canaries=24, rows=8, steps=10, batch=136),
        lambda *_: None,
    )
    console = Console(record=True, width=100, file=open("/dev/null", "w"))  # noqa: SIM115
    print_audit(result, console)
    text = " ".join(console.export_text().split())
    right = sum(score.guesses.correct for score in result.audit.scores.values())
    assert f"claimed epsilon {result.plan.claimed_epsilon:.3f} at delta 1e-05" in text
    assert f"lower bound {result.audit.lower_bound:.3f} by 396 guesses, {right} of them right" in text
    assert "95.0% for all six bounds together" in text
    assert "caught by steps" in text
    assert "proves nothing" in text
    assert "Nothing found that contradicts the claim" in text


def test_bad_options_are_refused_before_anything_runs() -> None:
    result = gradtf("audit", "empirical", "--epsilon", -1, "--confidence", 2, "--batch", 0)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 3
    assert not result.stdout


def test_help_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from gradtf_fl.cli.main import cli\n"
        "try: cli.main(['audit', 'empirical', '--help'])\n"
        "finally: print({'torch', 'numpy'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Example: gradtf audit empirical" in done.stdout
    assert done.stderr.strip() == "set()"
