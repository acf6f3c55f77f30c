"""The simulation's document and what a person sees of it."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from gradtf_fl.reports.simulation import SimulationEvent, SimulationProgress, print_report
from gradtf_fl.reports.simulation_report import OrganizationResult, SimulationReport, gap_recovered, mean


def report(state: str = "completed") -> SimulationReport:
    scores = {"tiny_tuned": 0.6, "llm_ceiling": 1.0, "tiny_base": 0.02, "llm_base": 0.01, "ridge": 0.5}
    organizations = tuple(
        OrganizationResult(name, "afk: sum", 1.5, 1e-5, 8.0, scores | {"llm_generated": generated})
        for name, generated in (("org-1", 0.8), ("org-2", 1.0))
    )
    figures = {"state": state, "joined": 1000, "masked": 1000, "unmasked": 1000, "bytes_up_per_client": 1_234_567}
    rounds = (
        {"round": 1, **figures, "max_abs_error": math.nan, "refinement": {"taken": True, "without": 0.1}},
        {"round": 2, **figures, "max_abs_error": 1.5e-06, "refinement": {"taken": False}},
        {"round": 3, **figures, "max_abs_error": 1.5e-06, "refinement": {}},
    )
    return SimulationReport({"seed": 0}, state, "why", 12.345, organizations, rounds, {"load": 1.0}, "/out")  # type: ignore[arg-type]


def shown(text: io.StringIO) -> str:
    return text.getvalue()


@pytest.mark.parametrize(
    ("generated", "weak", "ceiling", "expected"),
    [(0.8, 0.6, 1.0, 0.5), (0.6, 0.6, 1.0, 0.0), (1.1, 0.6, 1.0, 1.25), (0.5, 0.6, 1.0, -0.25), (1, 0.6, 0.6, None)],
)
def test_gap_recovered(generated: float, weak: float, ceiling: float, expected: float | None) -> None:
    found = gap_recovered({"llm_generated": generated, "tiny_tuned": weak, "llm_ceiling": ceiling})
    assert found == (None if expected is None else pytest.approx(expected))


def test_means_leave_out_what_was_not_measured() -> None:
    assert mean([0.2, None, 0.4]) == pytest.approx(0.3)
    assert mean([None]) is None


def test_document_has_means_pgr_and_no_nan() -> None:
    document = report().to_json()
    assert document["accuracy"]["llm_generated"] == pytest.approx(0.9)
    assert document["accuracy"]["mean_update"] is None
    assert document["pgr"] == pytest.approx(0.75)
    assert [o["pgr"] for o in document["organizations"]] == [pytest.approx(0.5), pytest.approx(1.0)]
    assert document["rounds"][0]["max_abs_error"] is None
    json.dumps(document, allow_nan=False)


def test_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("x" * 100_000)
    report().write(path)
    assert json.loads(path.read_text())["wall_s"] == 12.35
    assert list(tmp_path.iterdir()) == [path]


def test_tables_fit_80_columns_and_show_every_figure() -> None:
    text = io.StringIO()
    print_report(report(), Console(file=text, width=80))
    lines = shown(text)
    for wanted in (
        "org-1",
        "0.800",
        "0.900",
        "0.750",
        "max 1.50",
        "1.50 of 8",
        "nearest",
        "0.500",
        "What epsilon covers",
    ):
        assert wanted in lines, wanted
    assert "…" not in lines
    rounds = [line.split() for line in lines.splitlines() if "1,234,567" in line]
    assert [(line[0], line[-1]) for line in rounds] == [("1", "yes"), ("2", "no"), ("3", "-")]


def test_an_aborted_run_says_why_and_shows_no_controls() -> None:
    text = io.StringIO()
    print_report(report("aborted"), Console(file=text, width=80))
    assert "aborted: why" in shown(text)
    assert "nearest" not in shown(text)


EVENT = SimulationEvent("mask", 3, 9, round=1, rounds=3, joined=4, expected=5, dropped=1, epsilon=0.5, seconds=2.0)


def test_progress_is_plain_lines_without_a_terminal() -> None:
    text = io.StringIO()
    with SimulationProgress(Console(file=text)) as progress:
        progress.show(SimulationEvent("waiting", passing=True))
        progress.show(EVENT)
    (line,) = shown(text).splitlines()
    assert line.endswith("round 1/3 mask: 4 of 5 joined, 1 dropped, epsilon spent 0.500, 2.0 s")
    assert "\x1b" not in line


def test_progress_is_a_bar_on_a_terminal() -> None:
    text = io.StringIO()
    with SimulationProgress(Console(file=text, force_terminal=True, width=100)) as progress:
        progress.show(EVENT)
        progress._screen.refresh()
    assert "round 1/3 mask" in shown(text)
    assert "epsilon spent 0.500" in shown(text)
    assert "3/9" in shown(text)
