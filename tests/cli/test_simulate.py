"""A whole federation from the command line, with an untrained pair: documents, files and exit codes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from gradtf_fl.config import OrganizationConfig, load_toml
from tests.cli.conftest import Files, gradtf


def simulate(files: Files, *arguments: object) -> tuple[int, dict[str, Any], str]:
    """(exit code, the JSON document on stdout, stderr)."""
    result = gradtf("simulate", "--config", files.config, "--json", *arguments)
    return result.exit_code, json.loads(result.stdout) if result.stdout else {}, result.stderr


def test_a_run_reports_everything_in_the_contract(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, report, progress = simulate(files, "--out", out)
    assert code == 0, progress
    names = "tiny_base tiny_tuned tiny_global llm_base llm_generated llm_ceiling mean_update nearest_update ridge"
    assert sorted(report["accuracy"]) == sorted(names.split())
    assert all(0 <= value <= 1 for value in report["accuracy"].values())
    assert [o["name"] for o in report["organizations"]] == ["org-1", "org-2", "org-3"]
    assert all(1.95 < o["epsilon"] <= 2 for o in report["organizations"])
    assert all(o["accuracy"].keys() == report["accuracy"].keys() for o in report["organizations"])
    (first,) = report["rounds"]
    assert (first["state"], first["joined"], first["masked"], first["unmasked"]) == ("completed", 3, 3, 3)
    assert first["max_abs_error"] < 8.0 * 2**-18
    assert json.loads((out / "report.json").read_text()) == report
    adapter = json.loads((out / "rounds" / "1" / "llm_adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == files.llm
    card = (out / "rounds" / "1" / "llm_adapter" / "README.md").read_text()
    assert f"| llm_generated | {report['accuracy']['llm_generated']:.4g} |" in card
    assert "this was a simulation" in card
    assert "round 1/1 completed: 3 joined, 0 dropped, epsilon spent" in progress
    own = out / "organizations" / "org-1" / "organization.toml"
    assert load_toml(OrganizationConfig, own).data.end is False  # two digits: nothing was trained after them
    again = gradtf("simulate", "--config", files.config, "--out", out)
    assert again.exit_code == 2
    assert "holds another run" in again.stderr
    assert json.loads((out / "report.json").read_text()) == report


def test_dropped_organizations_leave_the_sum_right(files: Files, tmp_path: Path) -> None:
    arguments = ("--organizations", 5, "--drop", "unmask:1", "--out", tmp_path / "run")
    code, report, progress = simulate(files, *arguments)
    assert code == 0, progress
    (first,) = report["rounds"]
    assert (first["joined"], first["masked"], first["unmasked"], first["dropped"]) == (5, 5, 4, {"unmask": 1})
    assert first["max_abs_error"] < 8.0 * 2**-18


def test_below_the_threshold_is_exit_4_with_a_report(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, report, stderr = simulate(files, "--drop", "mask:1", "--out", out)
    assert code == 4
    assert (report["state"], report["rounds"][0]["state"]) == ("aborted", "aborted")
    assert set(report["accuracy"].values()) == {None}
    assert json.loads((out / "report.json").read_text()) == report
    assert stderr.splitlines()[-1].startswith("gradtf: round aborted at mask")
    assert not (out / "rounds").exists()


def test_an_exhausted_budget_is_exit_3_and_keeps_finished_rounds(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, report, stderr = simulate(files, "--rounds", 3, "--budget", 1.9, "--out", out)
    assert code == 3
    assert report["state"] == "budget"
    states = [r["state"] for r in report["rounds"]]
    assert states[-1] == "aborted"
    assert set(states[:-1]) == {"completed"}
    assert sorted(path.name for path in (out / "rounds").iterdir()) == [str(r + 1) for r in range(len(states) - 1)]
    assert all(0 < o["epsilon"] <= 1.9 for o in report["organizations"])
    assert "refuse" in stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--organizations", "0"], "--organizations"),
        (["--organizations", "2"], "allow_two"),
        (["--epsilon", "-1"], "--epsilon"),
        (["--epsilon", "nan"], "--epsilon"),
        (["--delta", "2"], "--delta"),
        (["--budget", "0"], "--budget"),
        (["--rules", "nonsense"], "--rules"),
        (["--engine", "gpu"], "--engine"),
        (["--drop", "nowhere:1"], "nowhere:1"),
        (["--rounds", "0"], "--rounds"),
        (["--seed", "-1"], "--seed"),
        (["--config", "none.toml"], "none.toml"),
    ],
)
def test_bad_options_are_exit_2_with_a_clear_line(arguments: list[str], named: str) -> None:
    result = gradtf("simulate", *arguments)
    assert result.exit_code == 2
    assert named in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_all_problems_of_file_and_options_come_at_once(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[federation]\norganizations = "many"\nspeed = 3\n')
    lines = gradtf("simulate", "--config", path, "--epsilon", "-1").stderr.splitlines()
    assert len(lines) == 3
    assert sorted(line.split(": ")[1] for line in lines) == sorted(["--epsilon", str(path), str(path)])


def test_missing_files_are_named_together_and_leave_nothing(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[pair]\ntiny = "/nowhere/tiny"\nllm = "/nowhere/llm"\n[provider]\ntransformer = "/nowhere/gt"\n')
    result = gradtf("simulate", "--config", path, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert [name in result.stderr for name in ("/nowhere/tiny", "/nowhere/llm", "/nowhere/gt")] == [True] * 3
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_exit_2_and_the_folder_stays_usable(files: Files, tmp_path: Path) -> None:
    damaged = tmp_path / "gt.safetensors"
    shutil.copy(files.transformer, damaged)
    data = bytearray(damaged.read_bytes())
    data[-3] ^= 1
    damaged.write_bytes(data)
    path = tmp_path / "c.toml"
    path.write_text(files.config.read_text().replace(str(files.transformer), str(damaged)))
    result = gradtf("simulate", "--config", path, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "damaged" in result.stderr
    assert not (tmp_path / "run").exists()


def test_an_unwritable_out_is_exit_2(files: Files, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = gradtf("simulate", "--config", files.config, "--out", tmp_path / "file")
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


def test_the_ray_engine_without_ray_names_the_extra(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, report, stderr = simulate(files, "--engine", "ray", "--out", tmp_path / "run")
    assert (code, report) == (2, {})
    assert 'pip install "gradtf-fl[ray]"' in stderr
