"""The public face: what `import gradtf_fl` gives, what that costs, and that every name's example runs."""

from __future__ import annotations

import doctest
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import gradtf_fl

NAMES = tuple(name for name in gradtf_fl.__all__ if not name.startswith("_"))
CHEAP = (
    "BlockLayout ConfigError DpEvent FederationPlan Ledger SimulationConfig epsilons noise_multiplier run_secure_sum"
)
QUICK_S = 0.5


def fresh(code: str) -> str:
    """What ``code`` prints in a new interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_dir_lists_the_face_without_importing_anything_heavy() -> None:
    listed = fresh("import sys, gradtf_fl; print(*dir(gradtf_fl)); assert not {'numpy', 'torch'} & set(sys.modules)")
    assert listed.split() == sorted(NAMES)
    assert len(NAMES) >= 20


@pytest.mark.alone
def test_the_secure_sum_needs_no_torch_and_is_there_in_half_a_second() -> None:
    code = (
        "import sys, time; began = time.perf_counter(); import gradtf_fl; gradtf_fl.run_secure_sum; "
        "print(time.perf_counter() - began); assert 'torch' not in sys.modules"
    )
    assert min(float(fresh(code)) for _ in range(3)) < QUICK_S  # the least of three: the machine may be busy


@pytest.mark.parametrize("room", ["gradtf_fl", "gradtf_fl.privacy"])
def test_accounting_names_come_without_torch(room: str) -> None:
    fresh(
        f"import sys; from {room} import DpEvent, Ledger, epsilons, noise_multiplier; assert 'torch' not in sys.modules"
    )


def test_names_that_need_no_model_come_without_torch() -> None:
    fresh(f"import sys; from gradtf_fl import {', '.join(CHEAP.split())}; assert 'torch' not in sys.modules")


@pytest.mark.parametrize("name", NAMES)
def test_every_name_has_an_example_that_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = doctest.DocTestFinder().find(getattr(gradtf_fl, name), name, globs={})
    examples = [test for test in found if test.examples]
    assert any(test.name == name for test in examples), f"{name}: its docstring has no example"
    told: list[str] = []
    for test in examples:
        doctest.DocTestRunner().run(test, out=told.append)
    assert not told, "".join(told)
