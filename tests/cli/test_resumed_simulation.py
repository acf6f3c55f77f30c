"""A simulation that was killed at any moment ends, continued, with the report of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gradtf_fl.file_names import REPORT, SIMULATION
from gradtf_fl.privacy import read_ledger
from tests.cli.conftest import Files, gradtf
from tests.cli.killed_runs import MOMENTS

OPTIONS = ("--rounds", "2", "--steps", "25")
SOME = ("reserved", "training", "settling", "masked", "after the rename", "second sum", "figures")
CODES = {"SIGINT": 130, "SIGTERM": 130, "SIGKILL": 137}


def report_of(out: Path) -> dict[str, Any]:
    """``report.json`` without what may differ: seconds and the folder."""
    document: dict[str, Any] = json.loads((out / REPORT).read_text())
    for name in ("wall_s", "seconds", "out"):
        del document[name]
    del document["config"]["out"]
    for record in document["rounds"]:
        del record["seconds"]
    return document


@pytest.fixture(scope="module")
def whole(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "run"
    result = gradtf("simulate", "--config", files.config, *OPTIONS, "--out", out)
    assert result.exit_code == 0, result.stderr
    return out


def kill_at(out: Path, how: str, moments: tuple[str, ...], files: Files) -> list[tuple[int, str]]:
    """(exit code, standard error) of each run; the last one is not killed."""
    command = (sys.executable, "-m", "tests.cli.killed_runs", out, how, ",".join(moments), "--config", files.config)
    done = subprocess.run([*map(str, command), *OPTIONS], stdout=subprocess.PIPE, text=True, check=True)
    return [(code, errors) for code, errors in json.loads(done.stdout)]


@pytest.mark.long
@pytest.mark.parametrize(
    ("how", "moments"),
    [
        ("SIGINT", SOME),
        pytest.param("SIGINT", tuple(MOMENTS), marks=pytest.mark.slow),
        pytest.param("SIGKILL", tuple(MOMENTS), marks=pytest.mark.slow),
        pytest.param("SIGTERM", tuple(MOMENTS), marks=pytest.mark.slow),
    ],
    ids=["some-int", "int", "kill", "term"],
)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_report(
    files: Files, whole: Path, tmp_path: Path, how: str, moments: tuple[str, ...]
) -> None:
    out = tmp_path / "a run"
    *killed, (code, errors) = kill_at(out, how, moments, files)
    assert [code for code, _ in killed] == [CODES[how]] * len(moments), killed
    assert code == 0, errors
    assert report_of(out) == report_of(whole)
    for organization in ("org-1", "org-2", "org-3"):
        place = Path("organizations") / organization / "ledger.sqlite"
        found, expected = (read_ledger(folder / place).content for folder in (out, whole))
        assert [charge.event for charge in found.charges] == [charge.event for charge in expected.charges]
        assert {charge.state for charge in found.charges} == {"settled"}
    if how != "SIGKILL":
        for _, errors in killed:
            said = errors.splitlines()[-1]
            assert said.startswith("gradtf: interrupted: "), errors
            assert said.endswith(f"continue with: gradtf simulate --resume '{out}'"), errors


@pytest.mark.long
def test_ctrl_c_says_what_is_kept_and_the_command_continues(files: Files, tmp_path: Path) -> None:
    """Of a real command without --out; the folder that it names is in the line."""
    command = (sys.executable, "-m", "gradtf_fl.cli.main", "simulate", "--config", files.config, "--rounds", "60")
    environment = {**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True)
    with process:
        until = time.monotonic() + 240
        while not list(tmp_path.glob("gradtf-*/rounds/2")) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        errors = process.stderr.read()
    assert process.returncode == 130
    (out,) = tmp_path.glob("gradtf-*")
    kept = len(list((out / "rounds").glob("[0-9]*")))
    command_line = f"gradtf simulate --resume {out}"
    assert errors.splitlines()[-1] == (
        f"gradtf: interrupted: {kept} of 60 rounds and all charges are kept; continue with: {command_line}"
    )


def test_a_finished_run_is_said_to_be_over_and_nothing_is_done(files: Files, whole: Path) -> None:
    before = (whole / REPORT).stat().st_mtime_ns
    result = gradtf("simulate", "--resume", whole)
    assert result.exit_code == 0
    assert result.stdout == f"The run in {whole} is over (completed): its report is {whole / REPORT}\n"
    again = gradtf("simulate", "--resume", whole, "--config", files.config, *OPTIONS, "--out", whole, "--json")
    assert (again.exit_code, json.loads(again.stdout)) == (0, json.loads((whole / REPORT).read_text()))
    assert (whole / REPORT).stat().st_mtime_ns == before


def test_options_that_differ_from_the_run_are_named_together(files: Files, whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(files.config.read_text().replace("epsilon = 2.0", "epsilon = 3.0"))
    result = gradtf(
        "simulate",
        "--resume",
        whole,
        "--config",
        other,
        "--rounds",
        3,
        "--steps",
        25,
        "--out",
        tmp_path,
        "--drop",
        "mask:1",
    )
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    named = [line.split(": the run in")[0].removeprefix("gradtf: ") for line in lines]
    assert named == ["--out", f"{other}: privacy.epsilon", "--rounds", "--drop"], lines
    assert all("was started with another value" in line for line in lines)


def test_a_folder_without_a_run_is_exit_2(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        result = gradtf("simulate", "--resume", folder)
        assert result.exit_code == 2
        assert f"--resume {folder}: holds no simulation that can be continued" in result.stderr


def test_a_run_that_another_process_runs_is_exit_2(files: Files, whole: Path, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / SIMULATION).write_text((whole / SIMULATION).read_text())
    with (tmp_path / ".simulation.lock").open("w") as lock:
        lock.write("1")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = gradtf("simulate", "--resume", tmp_path)
    assert result.exit_code == 2
    assert "another process runs this simulation" in result.stderr
