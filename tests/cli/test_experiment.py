"""experiment: list, run and report from the command line, with a real measure at its smallest."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.measuring.provenance import ROOT
from experiments.paper.preset import PRESETS
from experiments.paper.report_page import EARLIER
from gradtf_fl.cli.experiment import _print_results
from tests.cli.conftest import gradtf
from tests.experiments.measures_of_tests import write_preset

SMALLEST = "{ steps = 2, rows = 64, epsilon = 8.0, organizations = 3, stack = 2, repeats = 1 }"


@pytest.fixture(scope="module")
def timing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of presets and of results: a small run of figure6's measure, and one of curves."""
    presets, out = tmp_path_factory.mktemp("presets"), tmp_path_factory.mktemp("results")
    write_preset(
        presets, "figure6", measure='"experiments.paper.measures.timing:seconds"', parameters=SMALLEST, seeds="[0, 1]"
    )
    done = gradtf("experiment", "run", "figure6", "--presets", presets, "--out", out, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((out / "figure6.json").read_text())
    assert "seed 0: organization: tune the TinyLM" in done.stderr
    return presets, out


def test_list_names_every_preset_and_the_state_of_its_results(timing: tuple[Path, Path]) -> None:
    presets, out = timing
    (row,) = json.loads(gradtf("experiment", "list", "--presets", presets, "--out", out, "--json").stdout)["presets"]
    assert row.keys() == {"name", "title", "question", "seeds", "minutes", "results"}
    assert (row["name"], row["results"]) == ("figure6", "2 of 2 seeds")
    assert "figure6" in gradtf("experiment", "list", "--presets", presets, "--out", out).stdout


def test_list_of_the_package_holds_the_papers_tables_and_figures() -> None:
    done = gradtf("experiment", "list", "--json")
    assert done.exit_code == 0, done.stderr
    names = {row["name"] for row in json.loads(done.stdout)["presets"]}
    assert names == {path.stem for path in PRESETS.glob("*.toml")}
    assert {"table1", "table3", "table7", "figure4", "figure6", "figure7"} <= names


def test_time_is_measured_and_adds_up(timing: tuple[Path, Path]) -> None:
    runs = json.loads((timing[1] / "figure6.json").read_text())["runs"]
    for run in runs:
        cells = {(row, column): value for row, column, value in run["cells"]}
        assert all(value > 0 for value in cells.values())
        for (row, column), value in cells.items():
            if column == "seconds a step":
                assert cells[(row, "seconds in all")] == pytest.approx(2 * value)
        whole = cells[("organization: DP-SGD on the TinyLM and 3 secure sums", "seconds in all")]
        private = cells[("organization: tune the TinyLM, DP-SGD, batch 64", "seconds in all")]
        assert whole == pytest.approx(
            private + 3 * cells[("organization: its part of one secure sum", "seconds in all")]
        )
        llm = cells[("organization: tune the LLM itself, plain, batch 32", "seconds in all")]
        assert cells[("organization: tune the TinyLM, DP-SGD, batch 64", "share of tuning the LLM")] == private / llm


def test_report_shows_every_table_with_its_command_and_figure(timing: tuple[Path, Path], tmp_path: Path) -> None:
    presets, out = timing
    presets_of_report = tmp_path / "presets"
    write_preset(presets_of_report, "curve", kind='"line"', x='"epsilon"', note='"By hand."')
    write_preset(presets_of_report, "small")
    write_preset(presets_of_report, "absent", title='"Never run"')
    (presets_of_report / "figure6.toml").write_text((presets / "figure6.toml").read_text())
    results = tmp_path / "results"
    results.mkdir()
    (results / "figure6.json").write_text((out / "figure6.json").read_text())
    (results / "dp_accuracy.json").write_text("{}")
    gradtf("experiment", "run", "small", "--presets", presets_of_report, "--out", results)
    curve = json.loads((results / "small.json").read_text())
    curve |= {"preset": "curve", "kind": "line", "x": "epsilon", "note": "Of an older preset."}
    curve["runs"][0]["machine"] = {"cpu": "Abacus", "cores": 1, "python": "3.13.0", "torch": "2.11.0"}
    for run in curve["runs"]:
        run["cells"] = [[row, "PGR, ours", run["seed"] + float(row)] for row in ("0.5", "8")]
    (results / "curve.json").write_text(json.dumps(curve))

    done = gradtf("experiment", "report", "--presets", presets_of_report, "--out", results, "--json")
    assert done.exit_code == 0, done.stderr
    page = (results / "README.md").read_text()
    assert json.loads(done.stdout)["written"] == [
        str(results / name) for name in ("README.md", "curve.png", "figure6.png", "small.png")
    ]
    for name in ("curve", "figure6", "small"):
        assert f"`gradtf experiment run {name}`: " in page
        assert f"]({name}.png)" in page
        head = (results / f"{name}.png").read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n"
        assert min(struct.unpack(">II", head[16:])) > 300
    assert "| ours | 2.000 ± 4.969 | no |" in page  # 0, 2, 4: standard error 2 / sqrt(3), times 4.303
    assert "| tuned \\| floor | 1.000 ± 0.000 |  |" in page
    assert "| 8 | 9.000 ± 2.484 |" in page
    assert page.index("## curve") < page.index("## small")
    assert "**The paper.** It doubles." in page
    assert "By hand." in page
    assert "Of an older preset." not in page
    here = curve["machine"]
    assert f"; Abacus, 1 cores, Python 3.13.0, torch 2.11.0; {here['cpu']}, {here['cores']} cores, Python " in page
    assert "- Never run: `gradtf experiment run absent`" in page
    assert "- [dp_accuracy](dp_accuracy.json): `python -m experiments.paper.dp_accuracy" in page


def test_a_wide_table_is_printed_in_parts_that_fit_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows, columns = (
        ("ours", "a rival of whom there is a good deal to say"),
        [f"way {n} of training it" for n in range(7)],
    )
    runs = [
        {"seed": seed, "cells": [[row, column, n - seed / 7] for row in rows for n, column in enumerate(columns)]}
        for seed in range(3)
    ]
    _print_results({"title": "Wide", "unit": "nats", "x": None, "runs": runs})
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 80
    found = [value for line in lines if line.split("│")[0].strip() == "ours" for value in line.split("│")[1:]]
    assert [value.strip() for value in found] == [f"{n - 1 / 7:.3f} ± 0.355" for n in range(7)]


def test_every_committed_figure_has_a_command_that_makes_it_again() -> None:
    results = ROOT / "experiments" / "results"
    names = {path.stem for path in results.glob("*.json")}
    assert names
    assert names <= {path.stem for path in PRESETS.glob("*.toml")} | EARLIER.keys()


def test_a_report_of_nothing_is_refused(tmp_path: Path) -> None:
    done = gradtf("experiment", "report", "--out", tmp_path)
    assert done.exit_code == 2
    assert "there are none of a preset" in done.stderr


def test_an_unknown_name_lists_those_there_are(tmp_path: Path) -> None:
    write_preset(tmp_path)
    done = gradtf("experiment", "run", "tabel1", "--presets", tmp_path)
    assert done.exit_code == 2
    assert "experiment 'tabel1': there is no such preset; there are small" in done.stderr
    assert gradtf("experiment", "list", "--presets", tmp_path / "absent").exit_code == 2


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\nfrom gradtf_fl.cli.main import cli\n"
        "try: cli.main(['experiment', 'run', '--help'])\n"
        "finally: sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
