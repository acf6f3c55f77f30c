"""Presets and their runner: figures over seeds, resuming after a kill, and what is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.measuring.cells import Cell, Progress, interval, measure, recovered
from experiments.measuring.provenance import ROOT, revision
from experiments.paper.preset import load_preset, load_presets, preset_names
from experiments.paper.results_table import ResultsTable, number
from experiments.paper.runner import read_results, run_preset, state_of
from gradtf_fl.errors import ConfigError, CorruptFile
from tests.experiments.measures_of_tests import Doubled, doubled, write_preset

MODULE = "tests.experiments.measures_of_tests"


def silent(what: str, done: int, total: int) -> None:
    assert 0 <= done <= total


def test_interval_equals_one_computed_by_hand() -> None:
    # mean 4; squared deviations 4 + 0 + 4, variance 4, standard error 2 / sqrt(3); t(2 degrees, .975) = 4.303
    assert interval([2.0, 4.0, 6.0]) == (4.0, pytest.approx(4.303 * 2 / 3**0.5))
    assert interval([7.0]) == (7.0, 0.0)
    assert interval([0.0, 1.0] * 6)[1] == pytest.approx(2.262 * (3 / 11) ** 0.5 / 12**0.5)  # 12 values: as of 10


def test_gap_is_of_means_over_rules() -> None:
    assert recovered([0.9, 0.7], floor=[0.5, 0.3], ceiling=[1.0, 0.8]) == pytest.approx(0.8)
    assert math.isnan(recovered([0.5], floor=[0.4], ceiling=[0.4]))


def test_every_committed_preset_names_a_measure_that_takes_its_parameters() -> None:
    loaded = {preset.name: preset.file for preset in load_presets()}
    assert {"table1", "table3", "table7", "figure4", "figure6", "figure7", "e12-mixtures"} <= loaded.keys()
    assert list(loaded) == preset_names()


def test_all_problems_of_all_presets_are_told_at_once(tmp_path: Path) -> None:
    write_preset(tmp_path, "a", colour='"red"', title=None, kind='"pie"')
    write_preset(tmp_path, "b", measure='"experiments.paper.measures.absent:measure"', x='"epsilon"')
    write_preset(tmp_path, "c", measure=f'"{MODULE}:write_preset"', seeds="[0, 0]")
    write_preset(tmp_path, "d", parameters='{ factor = 0, colour = "red" }')
    (tmp_path / "e.toml").write_text("title = ")
    with pytest.raises(ConfigError) as raised:
        load_presets(tmp_path)
    told = "\n".join(raised.value.problems)
    for place in (
        "a.toml: colour: is not a known key",
        "a.toml: title: Field required",
        "a.toml: kind: ",
        "b.toml: measure: experiments.paper.measures.absent:measure can't be imported (ModuleNotFoundError",
        'b.toml: x names the axis of kind "line"',
        f"c.toml: measure: {MODULE}:write_preset is not a measure",
        "c.toml: seeds: a seed is there twice",
        "d.toml: parameters.factor: ",
        "d.toml: parameters.colour: is not a known key",
        "e.toml: not TOML",
    ):
        assert f"{tmp_path}/{place}" in told
    assert len(raised.value.problems) == 10


def test_results_say_how_they_came_about(tmp_path: Path) -> None:
    write_preset(tmp_path / "presets")
    preset = load_preset("small", tmp_path / "presets")
    assert state_of(preset, tmp_path) == "none"
    document = run_preset(preset, tmp_path, None, silent)
    assert document == json.loads((tmp_path / "small.json").read_text())
    assert document["parameters"] == {"factor": 2}
    assert [run["seed"] for run in document["runs"]] == [0, 1, 2]
    assert document["runs"][2]["cells"][0] == ["ours", "accuracy, seen", 4.0]
    assert {"cpu", "cores", "torch"} <= document["machine"].keys()
    assert all(run["machine"] == document["machine"] for run in document["runs"])
    assert document["revision"] == revision()
    if (ROOT / ".git").exists():
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert str(document["revision"]).startswith(commit.stdout.strip())
    assert state_of(preset, tmp_path) == "3 of 3 seeds"


def test_a_shipped_checkpoint_is_named_and_two_are_not_mixed(tmp_path: Path) -> None:
    preset = load_preset("table1")
    document = {**preset.document(), "runs": [], "machine": {}}
    assert len(document["checkpoint_sha256"]) == 64
    path = tmp_path / "table1.json"
    path.write_text(json.dumps(document))
    assert state_of(preset, tmp_path) == "0 of 5 seeds"
    path.write_text(json.dumps({**document, "checkpoint_sha256": "0" * 64}))
    assert state_of(preset, tmp_path) == "of other parameters"


def test_a_killed_run_keeps_its_seeds_and_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "presets"
    write_preset(folder, measure=f'"{MODULE}:dies_at_the_second_seed"')
    code = (
        "from pathlib import Path\nfrom experiments.paper import preset, runner\n"
        f"small = preset.load_preset('small', Path({str(folder)!r}))\n"
        f"runner.run_preset(small, Path({str(tmp_path)!r}), None, lambda *_: None)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 9
    first = read_results(tmp_path / "small.json")
    assert first is not None
    assert [run["seed"] for run in first["runs"]] == [0]

    seen: list[int] = []

    @measure(Doubled)
    def living(parameters: Doubled, seed: int, progress: Progress) -> list[Cell]:
        seen.append(seed)
        return [Cell("ours", "accuracy", float(seed))]

    preset = load_preset("small", folder)
    resumed = run_preset(replace(preset, function=living), tmp_path, None, silent)
    assert seen == [1, 2]
    assert resumed["runs"][0] == first["runs"][0]
    assert [run["cells"][0][2] for run in resumed["runs"]] == [0.0, 1.0, 2.0]
    assert list(tmp_path.glob(".*")) == []


def test_first_seeds_alone_then_the_others(tmp_path: Path) -> None:
    write_preset(tmp_path)
    preset = load_preset("small", tmp_path)
    run_preset(preset, tmp_path, 2, silent)
    assert state_of(preset, tmp_path) == "2 of 3 seeds"
    assert len(run_preset(preset, tmp_path, 1, silent)["runs"]) == 2  # nothing is lost
    assert len(run_preset(preset, tmp_path, None, silent)["runs"]) == 3
    with pytest.raises(ConfigError, match="--seeds 4: small has 3"):
        run_preset(preset, tmp_path, 4, silent)


def test_two_processes_lose_nothing_of_each_other(tmp_path: Path) -> None:
    write_preset(tmp_path)
    preset = load_preset("small", tmp_path)

    @measure(Doubled)
    def meanwhile(parameters: Doubled, seed: int, progress: Progress) -> list[Cell]:
        if seed == 0:
            run_preset(preset, tmp_path, 2, silent)
        return [cell._replace(value=-1.0) for cell in doubled({"factor": 2}, seed, progress)]

    document = run_preset(replace(preset, function=meanwhile), tmp_path, 1, silent)
    assert [run["cells"][0][2] for run in document["runs"]] == [-1.0, 2.0]
    assert document == read_results(tmp_path / "small.json")


def test_seeds_of_a_changed_measure_are_not_mixed(tmp_path: Path) -> None:
    write_preset(tmp_path)
    preset = load_preset("small", tmp_path)
    before = run_preset(preset, tmp_path, 1, silent)

    @measure(Doubled)
    def changed(parameters: Doubled, seed: int, progress: Progress) -> list[Cell]:
        return [Cell("another rival", "accuracy", 1.0)]

    with pytest.raises(ConfigError, match=r"other cells, e\.g\. another rival, accuracy; move it away"):
        run_preset(replace(preset, function=changed), tmp_path, 2, silent)
    assert read_results(tmp_path / "small.json") == before


def test_a_seed_without_a_gap_has_no_pgr_and_joins_the_others(tmp_path: Path) -> None:
    write_preset(tmp_path)
    preset = load_preset("small", tmp_path)

    @measure(Doubled)
    def with_pgr(parameters: Doubled, seed: int, progress: Progress) -> list[Cell]:
        cells = preset.function({"factor": parameters.factor}, seed, progress)
        return [*cells, Cell("ours", "PGR", 0.5)] if seed == preset.file.seeds[0] else cells

    document = run_preset(replace(preset, function=with_pgr), tmp_path, 2, silent)
    assert [sum(column == "PGR" for _, column, _ in run["cells"]) for run in document["runs"]] == [1, 0]


def test_results_of_other_parameters_are_not_mixed(tmp_path: Path) -> None:
    write_preset(tmp_path)
    run_preset(load_preset("small", tmp_path), tmp_path, 1, silent)
    write_preset(tmp_path, parameters="{ factor = 3 }")
    before = (tmp_path / "small.json").read_bytes()
    with pytest.raises(ConfigError, match=r"small.json: measured with factor: 2, not 3\n.*move it away"):
        run_preset(load_preset("small", tmp_path), tmp_path, None, silent)
    assert (tmp_path / "small.json").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "told"), [("not_a_number", "ours, accuracy is nan"), ("one_place_twice", "two for one place")]
)
def test_cells_that_no_table_can_hold_are_refused(name: str, told: str, tmp_path: Path) -> None:
    write_preset(tmp_path, measure=f'"{MODULE}:{name}"')
    with pytest.raises(ConfigError, match=f"small, seed 0: .*{told}"):
        run_preset(load_preset("small", tmp_path), tmp_path, None, silent)
    assert not (tmp_path / "small.json").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"runs": [{"seed": 0}]}'])
def test_a_damaged_file_of_results_is_named(content: str, tmp_path: Path) -> None:
    write_preset(tmp_path)
    (tmp_path / "small.json").write_text(content)
    with pytest.raises(CorruptFile, match=r"small.json: damaged"):
        run_preset(load_preset("small", tmp_path), tmp_path, None, silent)


def test_units_stand_apart_and_each_tells_whether_rows_leave(tmp_path: Path) -> None:
    write_preset(tmp_path)
    accuracy, pgr = ResultsTable.of(run_preset(load_preset("small", tmp_path), tmp_path, None, silent)).by_unit()
    assert (accuracy.unit, accuracy.columns) == ("accuracy", ("accuracy, seen", "rows leave"))
    assert (pgr.unit, pgr.rows, pgr.measured) == ("PGR", ("ours",), ("PGR, seen",))
    assert [pgr.heading(column) for column in pgr.columns] == ["seen", "rows leave"]
    headings = {"seen PGR, sum": "seen, sum", "all: unseen PGR": "all: unseen", "seen, five: PGR": "seen, five"}
    assert {column: pgr.heading(column) for column in headings} == headings
    assert pgr.text("ours", "PGR, seen") == f"0.200 ± {number(4.303 * 0.2 / 3**0.5)}"
    assert [accuracy.text(row, "rows leave") for row in accuracy.rows] == ["no", ""]
    assert [number(value) for value in (0.0, 0.00123, 12.3456, 1234.5)] == ["0.000", "0.0012", "12.346", "1,234"]
