"""What operators run computes what a simulation of the same organizations does, up to the rounding of the sum."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from gradtf_fl.config import OrganizationSimulation
from gradtf_fl.deployment.processes import PACKAGES
from gradtf_fl.flower import read_records
from gradtf_fl.privacy import read_ledger
from gradtf_fl.transformer import GradTransformer
from strategies import run_server
from tests.deployment.deployed_kit import Deployment
from tests.deployment.members import until
from tests.strategies.federation_kit import TRANSFORMER, build

SEEDED = Path(__file__).with_name("seeded")  # without it a node refuses the [simulation] table
ROUNDING = 1e-5  # of a mean of three; one step of the encoding is 2.9e-6
pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(900)]


def test_deployment_equals_in_process(untrained: tuple[str, str], tmp_path: Path) -> None:
    """Training is replayed from the same seeds. Rounding is not: it hangs on the round's nonce, which a deployed server
    draws afresh (`tests/strategies/test_superlink.py` replays that too, and compares byte for byte)."""
    same: dict[str, Any] = {"rounds": 2, "steps": 2, "batch": 16, "epsilon": 8.0}
    generator = GradTransformer.load(Path(untrained[0]).parent / TRANSFORMER)
    kit = build(tmp_path / "in-process", untrained, generator, **same)
    run_server(kit.grid(), kit.plan, None, kit.generator)
    deployment = Deployment(tmp_path / "deployed", untrained, 3, **same, deadline_s=120.0, join_s=120.0)
    for number, member in enumerate(deployment.organizations):
        deployment.change(member, simulation=OrganizationSimulation(seed=number, keep_updates=True))
        member.start(env={"GRADTF_TEST_SEEDED": "1", "PYTHONPATH": os.pathsep.join(map(str, (SEEDED, PACKAGES)))})
    with deployment.running():
        until(lambda: deployment.server.ended is not None, 600.0, "both rounds", pause=0.5)
        assert deployment.server.ended == 0, deployment.server.said()
    ours, theirs = read_records(kit.plan.out), read_records(deployment.server.folder)
    assert [record.state for record in theirs] == ["completed"] * 2
    assert [(record.round, record.attempt) for record in theirs] == [(record.round, record.attempt) for record in ours]
    for round_number in ("1", "2"):
        name = Path("rounds") / round_number / "global_update.safetensors"
        means = [load_file(out / name)["mean"] for out in (kit.plan.out, deployment.server.folder)]
        assert np.abs(means[0]).max() > 1000 * ROUNDING
        assert np.abs(means[0] - means[1]).max() < ROUNDING
    for folder, member in zip(kit.folders, deployment.organizations, strict=True):
        ledgers = [read_ledger(place / "ledger.sqlite") for place in (folder, member.folder)]
        assert not ledgers[1].problems
        assert ledgers[0].content.events == ledgers[1].content.events
        for round_number in ("1", "2"):
            name = Path("rounds") / round_number / "llm_adapter" / "adapter_model.safetensors"
            adapter = (deployment.server.folder / name).read_bytes()
            assert (member.folder / name).read_bytes() == adapter
