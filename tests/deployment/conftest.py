"""A federation that ran in this process, one of real processes for all fault tests, and the table of faults."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from gradtf_fl.transformer import GradTransformer
from strategies import run_server
from tests.deployment.fault_report import RECORDS, table
from tests.flower.conftest import generator, make_kit, pair
from tests.flower.federation_kit import Kit, build

__all__ = ["generator", "make_kit", "pair"]  # fixtures

Faults = Any  # `tests.deployment.fault_watch.Invariants`, imported only where it is used


@dataclass(frozen=True)
class Kept:
    """The first organization's folder after three rounds, and the kit that it came from."""

    folder: Path
    kit: Kit

    def adapter(self, round_number: int) -> Path:
        """PEFT folder of a round."""
        return self.folder / "rounds" / str(round_number) / "llm_adapter"


@pytest.fixture(scope="session")
def finished(pair: tuple[str, str], generator: GradTransformer, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    kit = build(tmp_path_factory.mktemp("federation") / "out", pair, generator, rounds=3)
    run_server(kit.grid(), kit.plan, None, kit.generator)
    return kit


@pytest.fixture
def organization(finished: Kit, tmp_path: Path) -> Kept:
    folder = tmp_path / "org-1"
    shutil.copytree(finished.folders[0], folder, symlinks=True)
    return Kept(folder, replace(finished, folders=(folder, *finished.folders[1:])))


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """An untrained pair and its Grad-Transformer."""
    from tests.flower.federation_kit import TRANSFORMER, write_pair, write_transformer

    pair = write_pair(tmp_path_factory.mktemp("pair"))
    write_transformer(Path(pair[0]).parent / TRANSFORMER, pair)
    return pair


@pytest.fixture(scope="session")
def federation(untrained: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    """Five organizations in a run of many rounds."""
    from tests.deployment.deployed_kit import Deployment
    from tests.deployment.fault_watch import Invariants, Watch

    deployment = Deployment(tmp_path_factory.mktemp("federation"), untrained)
    with Watch(deployment) as watch, deployment.running():
        yield Invariants(deployment, watch)


@pytest.fixture
def faults(federation: Faults) -> Faults:
    """The federation with everyone in it; what an earlier test left down is started again."""
    for proxy in federation.deployment.proxies:
        proxy.mend()
    federation.deployment.start()
    completed = federation.deployment.completed() if federation.deployment.server.folder.exists() else []
    federation.deployment.everyone(max((record.round for record in completed), default=0) - 1)
    return federation


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The faults of this session."""
    if RECORDS:
        terminalreporter.section("faults")
        for line in table():
            terminalreporter.write_line(line)
