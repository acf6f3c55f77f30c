"""An ordinary Flower app before and after: three lines apart, equally accurate, on every kind of grid."""

from __future__ import annotations

import difflib
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from experiments.demos.flower_nodes import make_members, run_app
from strategies import InProcessGrid

pytest.importorskip("sklearn", reason="scikit-learn's images of digits are not installed")

APPS = Path(__file__).parent / "apps"
NODES, ROUNDS = 3, 3
STEP = 2 * NODES * 10.0 / 2**24  # of a mean's coordinate, at clip 10 and 24 bits


def run_here(name: str, strategy: str, folder: Path) -> dict[str, Any]:
    """What the server app of apps/NAME.py finds, on the in-process grid."""
    app, out = importlib.import_module(f"tests.flower.apps.{name}"), folder / f"{name}.json"
    config = {"strategy": strategy, "rounds": ROUNDS, "out": str(out)}
    grid = InProcessGrid(app.client, [{"partition-id": number} for number in range(NODES)], config)
    app.server(grid, Context(1, 1, {}, RecordDict(), config))
    return dict(json.loads(out.read_text()))


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest difference of two models' weights."""
    return max(
        float(np.abs(np.array(one["weights"][name]) - np.array(other["weights"][name])).max())
        for name in one["weights"]
    )


def test_the_difference_is_a_few_lines() -> None:
    plain, secure = ((APPS / f"{name}.py").read_text().splitlines() for name in ("plain", "secure"))
    changed = [line for line in difflib.ndiff(plain, secure) if line[0] in "+-"]
    assert len(changed) <= 10, changed


@pytest.mark.parametrize("strategy", ["FedAvg", "FedAdam", "FedProx"])
def test_it_learns_the_same(strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_members(tmp_path, NODES)
    plain, secure = (run_here(name, strategy, tmp_path) for name in ("plain", "secure"))
    assert plain["accuracy"] > 0.7
    assert abs(plain["accuracy"] - secure["accuracy"]) <= 0.005
    if strategy != "FedAdam":  # which divides a step of the mean by its own size
        assert 0 < apart(plain, secure) < 100 * STEP


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1900)
@pytest.mark.parametrize(("where", "strategy"), [("nodes", "FedAvg"), ("nodes", "FedAdam"), ("ray", "FedProx")])
def test_it_learns_the_same_on_real_nodes_and_on_ray(
    where: str, strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_members(tmp_path, NODES)
    here = run_here("secure", strategy, tmp_path)
    elsewhere = tmp_path / "elsewhere"
    make_members(elsewhere, NODES)
    config: dict[str, str | int] = {"strategy": strategy, "rounds": ROUNDS, "out": str(elsewhere / "result.json")}
    run_app(APPS / "secure.py", elsewhere, NODES, config, ray=where == "ray")
    there = dict(json.loads((elsewhere / "result.json").read_text()))
    assert abs(here["accuracy"] - there["accuracy"]) <= 0.005
