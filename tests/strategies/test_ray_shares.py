"""What Flower is told about the shares of a Ray cluster, read by Flower's own parser."""

from __future__ import annotations

from pathlib import Path

import pytest

from strategies import RayShares
from strategies.engines.flower_processes import write_connection
from strategies.engines.ray_engine import simulation_connection
from tests.flower_private import read_connection


@pytest.mark.parametrize("shares", [RayShares(), RayShares(cpus=2, gpus=0.25)])
def test_shares_reach_flowers_backend(shares: RayShares, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    write_connection(tmp_path, "simulation", simulation_connection(4000, 7, shares))
    options = read_connection("simulation").options
    assert options is not None
    assert options.num_supernodes == 7
    resources = options.backend.client_resources
    assert (resources.num_cpus, resources.num_gpus) == (shares.cpus, shares.gpus)


def test_a_running_cluster_is_named_in_the_environment() -> None:
    assert RayShares(address="10.0.0.1:6379").environment() == {"RAY_ADDRESS": "10.0.0.1:6379"}
    assert RayShares().environment() == {}
