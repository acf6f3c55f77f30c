"""A federation that ran in this process, one of real processes for all fault tests, and the table of faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deployment.fault_report import RECORDS, table
from tests.strategies.conftest import finished, generator, make_kit, pair

__all__ = ["finished", "generator", "make_kit", "pair"]  # fixtures

Faults = Any  # `tests.deployment.fault_watch.Invariants`, imported only where it is used


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """An untrained pair and its Grad-Transformer."""
    from tests.strategies.federation_kit import TRANSFORMER, write_pair, write_transformer

    pair = write_pair(tmp_path_factory.mktemp("pair"))
    write_transformer(Path(pair[0]).parent / TRANSFORMER, pair)
    return pair


@pytest.fixture(scope="session")
def federation(untrained: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    """Six organizations in a run of many rounds: any two may be lost."""
    from tests.deployment.deployed_kit import RETRIES, Deployment
    from tests.deployment.fault_watch import Invariants, Watch

    deployment = Deployment(tmp_path_factory.mktemp("federation"), untrained)
    for member in deployment.organizations:  # faults end many attempts
        policy = deployment.config(member).policy
        deployment.change(member, policy=policy.model_copy(update={"attempts": RETRIES + 1}))
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
