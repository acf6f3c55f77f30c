"""Dashboards of real folders, served in a thread; a client with the session's cookie, and a real browser."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradtf_fl.config import DropPoint
from gradtf_fl.dashboard import DashboardServer, Sources
from gradtf_fl.privacy import DpEvent, Ledger
from strategies import run_server
from strategies.server.observation import Observer
from tests.cli.conftest import Files, files, gradtf
from tests.dashboard.browser import Browser, chromium
from tests.deployment.test_server_status import enrol
from tests.strategies.conftest import generator, make_kit, pair
from tests.strategies.federation_kit import Kit, build

__all__ = ["files", "generator", "make_kit", "pair"]  # fixtures

HOSTILE = '<img src=x onerror="document.title=1"><script>alert(1)</script>\u202e\x1b[2J'
EVENT = DpEvent(sigma=1.75, q=1 / 16, steps=50)


@dataclass(frozen=True)
class Served:
    """A dashboard that runs.

    Attributes:
        client: with the session's cookie; it follows no redirects.
    """

    server: DashboardServer
    client: httpx.Client

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def text(self, path: str) -> str:
        """The page at ``path``, which must be there."""
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text


@contextmanager
def running(sources: Sources) -> Iterator[DashboardServer]:
    """A dashboard served from a thread."""
    server = DashboardServer(sources)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


Serve = Callable[..., Served]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves what is named, until the test is over."""
    with ExitStack() as stack:

        def start(**named: Any) -> Served:
            server = stack.enter_context(running(Sources(**named)))
            client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=30))
            assert client.get(server.url).status_code == 303
            return Served(server, client)

        yield start


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory, pair: tuple[str, str], generator: Any) -> Kit:
    """A server's folder after two rounds of four organizations; the second one is lost at round 2's mask."""
    drop: dict[int, tuple[DropPoint, ...]] = {1: (DropPoint(stage="mask", round=2),)}
    folder = tmp_path_factory.mktemp("deployed") / "server"
    kit = build(folder, pair, generator, organizations=4, rounds=2, drop=drop)
    enrol(kit)
    with Observer(kit.plan) as observer:
        run_server(kit.grid(), kit.plan, observer, kit.generator)
    return kit


@pytest.fixture
def organization(deployed: Kit, tmp_path: Path) -> Path:
    """An organization's folder after it, with both rounds' adapters: the last one came with a delivery of its own."""
    folder = tmp_path / "org-1"
    shutil.copytree(deployed.folders[0], folder, symlinks=True)
    return folder


@pytest.fixture(scope="session")
def simulated(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulation's folder after two rounds."""
    out = tmp_path_factory.mktemp("simulated") / "out"
    result = gradtf("simulate", "--config", files.config, "--rounds", 2, "--out", out)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def key() -> Ed25519PrivateKey:
    """What signs `ledger`."""
    return Ed25519PrivateKey.generate()


@pytest.fixture
def ledger(tmp_path: Path, key: Ed25519PrivateKey) -> Path:
    """A ledger with two charges, of an organization with a hostile name."""
    path = tmp_path / "hostile" / "ledger.sqlite"
    charge(path, key, 1, 2)
    return path


def charge(path: Path, key: Ed25519PrivateKey, *rounds: int) -> None:
    """Settled charges in the ledger at ``path``."""
    with Ledger.open(path, identity_key=key, organization=HOSTILE, delta=1e-5, budget=2.5) as book:
        for number in rounds:
            book.settle(book.reserve("run", number, 0, EVENT), EVENT)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One headless Chromium for all tests."""
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found
