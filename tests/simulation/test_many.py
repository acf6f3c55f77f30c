"""Simulations of many organizations: several processes give what one gives, and memory does not grow with them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from gradtf_fl.config import SimulationConfig, load_toml, validate
from gradtf_fl.config.organization import OrganizationConfig
from gradtf_fl.errors import ConfigError
from gradtf_fl.file_names import GLOBAL_UPDATE, ORGANIZATION_CONFIG, OWN_UPDATE, ROUNDS
from gradtf_fl.reports import SimulationReport
from gradtf_fl.simulation import simulate
from gradtf_fl.simulation.setup import build_folders
from gradtf_fl.tasks import federation_data, house_rules_federation

SMALL: dict[str, Any] = {
    "organizations": 4,
    "rounds": 2,
    "steps": 2,
    "batch": 8,
    "rows": 16,
    "test_rows": 8,
    "transformer": "none",
}


def _run(out: Path, workers: int) -> SimulationReport:
    return simulate(SimulationConfig(**SMALL, workers=workers, drop=("mask:1",), out=out))


def test_two_workers_give_what_one_gives_bit_for_bit(tmp_path: Path) -> None:
    one, two = _run(tmp_path / "one", 1), _run(tmp_path / "two", 2)
    assert one.state == two.state == "completed"
    assert one.organizations == two.organizations  # every figure and epsilon
    for number in (1, 2):
        name = f"{ROUNDS}/{number}"
        sums = [load_file(tmp_path / run / name / GLOBAL_UPDATE) for run in ("one", "two")]
        assert all(np.array_equal(sums[0][key], sums[1][key]) for key in sums[0])
        updates = [sorted((tmp_path / run / "organizations").glob(f"*/{name}/{OWN_UPDATE}")) for run in ("one", "two")]
        assert len(updates[0]) == 4
        vectors = [[load_file(path)["update"] for path in paths] for paths in updates]
        assert np.array_equal(*vectors)


def test_organizations_are_drawn_when_they_are_asked_for() -> None:
    config = SimulationConfig(**SMALL | {"organizations": 5}, task={"rules": "mixed"})
    drawn = federation_data(config.task, config, 5, config.batch, config.seed).organizations
    made = house_rules_federation("mixed", 5, 16, 8, config.seed)
    assert list(drawn) == made
    assert [drawn[4], drawn[1], drawn[-2]] == [made[4], made[1], made[3]]
    assert drawn[1:3] == made[1:3]
    with pytest.raises(IndexError):
        drawn[5]


def test_every_organization_has_its_own_settings(tmp_path: Path) -> None:
    config = SimulationConfig(**SMALL, drop=("mask:1", "share:1"))
    data = federation_data(config.task, config, 4, config.batch, config.seed)
    folders = build_folders(config, data, tmp_path)
    found = [load_toml(OrganizationConfig, folder / ORGANIZATION_CONFIG) for folder in folders.organizations]
    assert [one.name for one in found] == ["org-1", "org-2", "org-3", "org-4"]
    simulations = [one.simulation for one in found if one.simulation is not None]
    assert len({one.seed for one in simulations}) == 4
    assert [[point.stage for point in one.drop] for one in simulations] == [[], [], ["share"], ["mask"]]
    assert {one.privacy.declared for one in found} == {16}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"workers": 0}, "workers"),
        ({"workers": 2, "engine": "ray"}, "Ray shares organizations out itself"),
        ({"ray_gpus": 0.25}, "ray_gpus: only engine 'ray'"),
        ({"engine": "ray", "ray_gpus": -1.0}, "ray_gpus"),
        ({"engine": "ray", "ray_cpus": 0}, "ray_cpus"),
    ],
)
def test_shares_that_do_not_fit_the_engine_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        validate(SimulationConfig, SMALL | given, lambda key: key)


PEAK = """
import json, sys
from dataclasses import asdict
from experiments.bench.federation_size import measured
if __name__ == "__main__":
    print(json.dumps(asdict(measured(int(sys.argv[1])))))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_organizations(tmp_path: Path) -> None:
    program = tmp_path / "peak.py"
    program.write_text(PEAK)
    peaks = []
    for organizations in (10, 60):
        done = subprocess.run(
            [sys.executable, str(program), str(organizations)], capture_output=True, text=True, check=True
        )
        peaks.append(json.loads(done.stdout.splitlines()[-1])["peak_mb"])
    assert peaks[1] - peaks[0] < 50 * 0.5  # half a megabyte for each more
