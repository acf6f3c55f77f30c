"""Every program in experiments/examples runs as its header says, and prints what its header shows."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from experiments.demos.flower_nodes import make_members
from strategies import InProcessGrid
from tests.benchmark_data import SHARED

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "experiments" / "examples"
MOST_LINES = 40
OWN = {
    "MODEL": str(SHARED / "models" / "babyllama-tok361-1.0M"),
    "ROWS": str(SHARED / "data" / "word_tasks" / "ii.first_word_letter.jsonl.gz"),
}
FIGURE = re.compile(r"-?\d[\d.]*(?:e-?\d+)?")


def figure(printed: str, before: str) -> float:
    """The number that follows ``before`` in what was printed."""
    found = re.search(re.escape(before) + r"\s*(-?\d[\d.]*(?:e-?\d+)?)", printed)
    assert found, f"no {before!r} in\n{printed}"
    return float(found[1])


def secure_sum(printed: str) -> None:
    assert "organizations in the sum: 4 of 5" in printed
    assert figure(printed, "largest error of the mean:") < 2e-6  # step = clip * 5 / 2^23 = 6e-7 before averaging


def ledger(printed: str) -> None:
    assert figure(printed, "round 2: epsilon") == figure(printed, "problems, epsilon") <= 5
    assert "audit: 0 problems," in printed


def dp_lora(printed: str) -> None:
    assert 7.9 < figure(printed, "\nepsilon") <= 8
    before, after = (float(found) for found in re.findall(r"fresh rows: ([\d.]+)", printed))
    assert after > 10 * before


def generate_adapter(printed: str) -> None:
    assert figure(printed, "LLM, generated:") > figure(printed, "TinyLM, tuned:") > 0.5
    assert figure(printed, "LLM, base:") < 0.1


def own_data(printed: str) -> None:
    assert figure(printed, "tiny_ceiling:") > figure(printed, "tiny_tuned:") > figure(printed, "tiny_base:")


def flower_app(printed: str) -> None:
    assert figure(printed, "accuracy on new images:") > 0.8


CHECKS: dict[str, Callable[[str], None]] = {
    check.__name__: check for check in (secure_sum, ledger, dp_lora, generate_adapter)
}
SLOW: dict[str, Callable[[str], None]] = {"own_data": own_data, "flower_app": flower_app}


def header(name: str) -> tuple[list[str], list[str]]:
    """The run command in the header of an example, and the lines that it prints according to it."""
    text = (FOLDER / f"{name}.py").read_text().split('"""')[1]
    found = re.search(r"^ *\$ (python .*)\n((?: *\S.*\n)+)", text, re.MULTILINE)
    assert found, f"{name}: the header holds no run command with its output"
    command = shlex.split(found[1])
    return [OWN.get(part, part) for part in command], [line.strip() for line in found[2].splitlines()]


def check(name: str, printed: str) -> None:
    """That it printed the header's lines, whatever their figures, and figures that show what it is there for."""
    (CHECKS | SLOW)[name](printed)
    shown = [FIGURE.sub("#", line).removesuffix("...") for line in header(name)[1]]
    lines = [FIGURE.sub("#", line) for line in printed.splitlines()]
    assert len(lines) == len(shown), printed
    assert [line[: len(start)] for line, start in zip(lines, shown, strict=True)] == shown


@pytest.mark.parametrize("name", CHECKS)
def test_an_example_shows_what_it_is_there_for(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, which has torch already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name])
        runpy.run_module(f"experiments.examples.{name}", run_name="__main__")
    check(name, capsys.readouterr().out)


def test_the_flower_app_learns_in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_members(tmp_path, 3)
    app = runpy.run_path(str(FOLDER / "flower_app.py"))
    grid = InProcessGrid(app["client"], [{"partition-id": number} for number in range(3)])
    app["server"](grid, Context(1, 1, {}, RecordDict(), {}))
    check("flower_app", capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.timeout(1900)
@pytest.mark.parametrize("name", [*CHECKS, *SLOW])
def test_the_command_in_its_header_runs_it(name: str) -> None:
    if name == "own_data" and not SHARED.exists():
        pytest.skip("../shared with its models and word tasks is absent")
    python, *rest = header(name)[0]
    assert python == "python"
    done = subprocess.run([sys.executable, *rest], cwd=REPOSITORY, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    check(name, done.stdout)


@pytest.mark.parametrize("name", [*CHECKS, *SLOW])
def test_the_command_in_its_header_is_its_own(name: str) -> None:
    command = " ".join(header(name)[0])
    assert f"experiments.examples.{name}" in command or f"experiments/examples/{name}.py" in command


def test_every_example_is_run_and_short() -> None:
    files = [path for path in FOLDER.glob("*.py") if path.name != "__init__.py"]
    assert {path.stem for path in files} == CHECKS.keys() | SLOW.keys()
    assert [path.name for path in files if len(path.read_text().splitlines()) > MOST_LINES] == []
