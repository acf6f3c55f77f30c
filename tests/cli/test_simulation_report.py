"""The simulation's document and what a person sees of it."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from gradtf_fl.reports.holdings_chart import _by_main_label, draw_holdings
from gradtf_fl.reports.quantiles import quantiles
from gradtf_fl.reports.simulation import print_report
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


def many(count: int, plain: bool = False, metric: str = "exact_match") -> SimulationReport:
    """Organization i of ``count`` has accuracy i / count, 100 + i rows, and label a or b."""
    delivered = "tiny_global" if plain else "llm_generated"
    organizations = tuple(
        OrganizationResult(
            f"org-{i}",
            "r",
            1.0 + i / count,
            1e-5,
            8.0,
            {"tiny_base": 0.0, "tiny_tuned": 0.25, "llm_ceiling": 1.0, delivered: i / count},
            rows=100 + i,
            holds={"a": 100, "b": i},
        )
        for i in range(count + 1)
    )
    record = {"state": "completed", "joined": count - 3, "masked": count - 3, "unmasked": count - 5}
    lost = {"dropped": {"advertise": 4, "unmask": 2}, "refused": {"policy": 3}}
    rounds = tuple({"round": number, **record, **lost} for number in (1, 2))
    config = {"transformer": "none"} if plain else {}
    return SimulationReport(config, "completed", "", 1.0, organizations, rounds, {}, "/out", metric)


def test_quantiles_lie_between_neighbours() -> None:
    found = quantiles([0.0, 10.0, None, 20.0, 30.0, 40.0])
    assert found == pytest.approx(
        {"min": 0.0, "p5": 2.0, "p25": 10.0, "p50": 20.0, "p75": 30.0, "p95": 38.0, "max": 40.0}
    )
    assert set(quantiles([None]).values()) == {None}


def test_above_20_organizations_quantiles_stand_for_lines() -> None:
    text = io.StringIO()
    print_report(many(100), Console(file=text, width=80))
    lines = shown(text).splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in shown(text)
    accuracy = shown(text).split("private test rows")[1].split("Controls")[0].splitlines()
    shares = ("min", "5 %", "25 %", "50 %", "75 %", "95 %", "max")
    figures = {share: line.split() for line in accuracy for share in shares if line.strip().startswith(f"{share} ")}
    assert tuple(figures) == shares
    assert figures["min"][4:] == ["0.000", "1.000", "-0.333", "1.00", "100"]
    assert figures["5 %"][5:] == ["0.050", "1.000", "-0.267", "1.05", "105"]
    assert figures["50 %"][5:] == ["0.500", "1.000", "0.333", "1.50", "150"]
    assert figures["max"][4:] == ["1.000", "1.000", "1.000", "2.00", "200"]
    named = [line.split()[0] for line in lines if line.strip().startswith("org-")]
    assert named == ["org-0", "org-1", "org-2", "org-98", "org-99", "org-100"]
    assert "Lost, all rounds together: 8 at advertise, 4 at unmask; of them by refusal: 6 policy" in " ".join(
        shown(text).split()
    )


def test_20_organizations_have_a_line_each() -> None:
    for count, expected in ((19, 20), (20, 6)):  # one more than count
        text = io.StringIO()
        print_report(many(count), Console(file=text, width=80))
        accuracy = shown(text).split("private test rows")[1]
        assert len([line for line in accuracy.splitlines() if line.strip().startswith("org-")]) == expected


def test_of_a_loss_the_largest_is_worst() -> None:
    report = many(30, plain=True, metric="loss")
    assert [o.name for o in report.worst] == ["org-30", "org-29", "org-28"]
    assert [o.name for o in report.best] == ["org-0", "org-1", "org-2"]


def test_the_document_keeps_every_organization_and_has_the_quantiles() -> None:
    document = many(100).to_json()
    assert len(document["organizations"]) == 101
    assert document["quantiles"]["accuracy"]["llm_generated"]["p95"] == pytest.approx(0.95)
    assert document["quantiles"]["rows"]["min"] == 100
    assert document["quantiles"]["accuracy"]["llm_base"]["max"] is None
    assert (document["worst"], document["best"]) == (["org-0", "org-1", "org-2"], ["org-100", "org-99", "org-98"])
    json.dumps(document, allow_nan=False)


def test_many_organizations_share_one_picture_of_the_same_size(tmp_path: Path) -> None:
    heights = {}
    for count in (60, 61, 300):
        draw_holdings([(f"org-{i}", {"a": i, "b": 100}) for i in range(count)], tmp_path / "holdings.png")
        heights[count] = int.from_bytes((tmp_path / "holdings.png").read_bytes()[20:24], "big")  # PNG's IHDR
    assert heights[60] > 2000  # a line each
    assert heights[61] == heights[300] < 700


def test_many_organizations_stand_by_their_main_label_and_size() -> None:
    held = [("small a", {"a": 2}), ("b", {"a": 1, "b": 5}), ("large a", {"a": 6, "b": 3})]
    assert [name for name, _ in _by_main_label(held, ["a", "b"])] == ["large a", "small a", "b"]
