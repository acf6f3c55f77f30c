"""The version guard of Flower, and what must be equal to the installed one."""

from __future__ import annotations

import inspect
import logging
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import flwr
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import Strategy
from packaging.requirements import Requirement

from gradtf_fl.deployment.processes import environment
from gradtf_fl.errors import ConfigError
from gradtf_fl.flower_versions import REQUIREMENT, TARGET, TESTED, UntestedFlower, require_tested
from strategies import Provider, SecureFederation
from strategies.server_app import pinned_roster
from tests.strategies.federation_kit import Kit

MakeKit = Callable[..., Kit]
ROOT = Path(__file__).resolve().parents[2]
HOOKS = ("start", "configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate", "summary")


def test_the_installed_flower_was_tested(caplog: pytest.LogCaptureFixture) -> None:
    assert flwr.__version__ in TESTED
    require_tested(flwr.__version__)
    assert not caplog.records


def test_another_patch_release_is_a_warning_that_names_both(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        require_tested("1.42.7")
    assert "Flower 1.42.7 is installed, gradtf-fl was tested with 1.42.0" in caplog.text


@pytest.mark.parametrize("installed", ["1.41.0", "1.43.0", "1.4.2", "2.42.0", "1.430.0", "unknown", ""])
def test_another_minor_release_is_refused_by_name(installed: str) -> None:
    with pytest.raises(UntestedFlower) as caught:
        require_tested(installed)
    assert str(caught.value) == (
        f'Flower {installed} is installed, gradtf-fl was tested with 1.42.0: run pip install "{REQUIREMENT}"'
    )
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("side", ["clients", "strategies", "experiments.bench"])
def test_each_side_checks_before_it_imports_a_private_name(side: str, tmp_path: Path) -> None:
    """With another Flower the first thing that happens is our message, and no private module was loaded for it."""
    code = (
        "import sys, flwr\n"
        "flwr.__version__ = '1.43.0'\n"
        "import flwr.app\n"
        "before = set(sys.modules)\n"
        "from gradtf_fl.flower_versions import UntestedFlower\n"
        "try:\n"
        f"    import {side}.flower_private\n"
        "except UntestedFlower as error:\n"
        "    print(error)\n"
        "print(sorted(name for name in set(sys.modules) - before if name.startswith('flwr')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True, timeout=120, check=True
    )
    message, loaded = done.stdout.splitlines()
    assert message.startswith("Flower 1.43.0 is installed, gradtf-fl was tested with 1.42.0")
    assert loaded == "[]"


@pytest.mark.parametrize("side", ["clients", "strategies"])
def test_private_names_cost_no_torch_and_no_database(side: str, tmp_path: Path) -> None:
    code = (
        f"import sys, {side}.flower_private\n"
        "print(sorted({'torch', 'transformers', 'sqlalchemy', 'ray', 'opacus'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_range_is_the_one_of_pyproject_and_the_pin_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = [Requirement(line) for line in project["project"]["dependencies"]]
    declared += [Requirement(line) for line in project["project"]["optional-dependencies"]["ray"]]
    ranges = {str(requirement.specifier) for requirement in declared if requirement.name == "flwr"}
    assert ranges == {str(Requirement(REQUIREMENT).specifier)}
    assert all(Requirement(REQUIREMENT).specifier.contains(version) for version in TESTED)
    assert project["tool"]["flwr"]["app"]["flwr-version-target"] == TARGET
    assert f"flwr=={TARGET}" in (ROOT / "constraints.txt").read_text().splitlines()


@pytest.mark.parametrize("name", HOOKS)
def test_each_method_has_the_signature_of_the_installed_flower(name: str) -> None:
    """Names, order, kinds and defaults."""

    def shape(owner: type) -> list[tuple[str, object, object]]:
        parameters = inspect.signature(getattr(owner, name)).parameters.values()
        return [(parameter.name, parameter.kind, parameter.default) for parameter in parameters]

    assert shape(SecureFederation) == shape(Strategy)


def test_start_takes_no_argument_that_it_would_ignore(make_kit: MakeKit) -> None:
    kit = make_kit(rounds=1)
    federation = SecureFederation(kit.plan, Provider(kit.plan, kit.generator), pinned_roster(kit.plan))
    with pytest.raises(ConfigError) as caught:
        federation.start(
            kit.grid(), ArrayRecord({"a": Array(federation._update)}), train_config=ConfigRecord({"lr": 0.1})
        )
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["initial_arrays", "train_config"]


def test_start_runs_the_rounds_that_it_is_told(make_kit: MakeKit) -> None:
    kit = make_kit(rounds=5)
    federation = SecureFederation(kit.plan, Provider(kit.plan, kit.generator), pinned_roster(kit.plan))
    result = federation.start(kit.grid(), ArrayRecord(), num_rounds=1, timeout=300.0)
    assert [(record.round, record.state) for record in federation.sums.state.records] == [(1, "completed")]
    assert federation.plan.deadline_s == 300.0
    assert (result.arrays["update"].numpy() == federation._update).all()
