"""Every program in experiments/examples runs as its header says, and prints what it is there to show."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "experiments" / "examples"
MOST_LINES = 60


def figure(printed: str, before: str) -> float:
    """The number that follows ``before`` in what was printed."""
    found = re.search(re.escape(before) + r"\s*(-?\d[\d.]*(?:e-?\d+)?)", printed)
    assert found, f"no {before!r} in\n{printed}"
    return float(found[1])


def secure_sum(printed: str) -> None:
    assert "organizations in the sum: 4 of 5" in printed
    assert figure(printed, "largest error of the mean:") < 2e-6  # step = clip * 5 / 2^23 = 6e-7 before averaging


def plan_epsilon(printed: str) -> None:
    assert 7.9 < figure(printed, "after 3 rounds: epsilon") <= 8
    assert figure(printed, "epsilon 1 needs sigma") > figure(printed, "epsilon 8 needs sigma") > 0.5


def audit_ledger(printed: str) -> None:
    assert "round 3 refused" in printed
    assert figure(printed, "round 2: epsilon") == figure(printed, "audit: epsilon") <= 5
    assert ", 0 problems," in printed
    assert "after an edit: row 3: its content does not match its hash" in printed


def private_training(printed: str) -> None:
    assert 7.9 < figure(printed, "epsilon") <= 8
    assert figure(printed, "before, ") > 10 * figure(printed, "fresh rows:")
    for word in ("delta: 1e-05", "unit: one sequence", "adjacency: add or remove one row", "sampler: Poisson", "(PRV)"):
        assert word in printed
    assert "noise: CSPRNG-seeded" in printed


def generate_adapter(printed: str) -> None:
    assert figure(printed, "LLM, generated:") > figure(printed, "TinyLM, tuned:") > 0.5
    assert figure(printed, "LLM, base:") < 0.1
    assert "adapter_config.json, adapter_model.safetensors" in printed


def simulate_federation(printed: str) -> None:
    assert "state: completed" in printed
    assert figure(printed, "round 1 completed: epsilon") < figure(printed, "round 2 completed: epsilon") <= 8
    assert figure(printed, "llm_generated:") > figure(printed, "tiny_tuned:") > figure(printed, "tiny_base:")


CHECKS: dict[str, Callable[[str], None]] = {
    check.__name__: check for check in (secure_sum, plan_epsilon, audit_ledger, private_training, generate_adapter)
}
SLOW = {"simulate_federation": simulate_federation}


def command(name: str) -> list[str]:
    """The run command in the header of an example; what stands in brackets is optional."""
    header = (FOLDER / f"{name}.py").read_text().split('"""')[1]
    lines = re.findall(r"^    (python .*)$", header, re.MULTILINE)
    assert len(lines) == 1, f"{name}: the header holds {len(lines)} run commands"
    return shlex.split(lines[0].split(" [")[0])


@pytest.mark.parametrize("name", CHECKS)
def test_an_example_shows_what_it_is_there_for(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, which has torch already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name])
        runpy.run_module(f"experiments.examples.{name}", run_name="__main__")
    CHECKS[name](capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CHECKS, *SLOW])
def test_the_command_in_its_header_runs_it(name: str) -> None:
    python, *rest = command(name)
    assert python == "python"
    done = subprocess.run([sys.executable, *rest], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (CHECKS | SLOW)[name](done.stdout)


@pytest.mark.parametrize("name", [*CHECKS, *SLOW])
def test_the_command_in_its_header_is_its_own(name: str) -> None:
    assert command(name)[-1] == f"experiments.examples.{name}"


def test_every_example_is_run_and_short() -> None:
    files = [path for path in FOLDER.glob("*.py") if path.name != "__init__.py"]
    assert {path.stem for path in files} == CHECKS.keys() | SLOW.keys()
    assert [path.name for path in files if len(path.read_text().splitlines()) > MOST_LINES] == []
