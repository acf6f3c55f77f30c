"""The site, built once for all tests of this room."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
NO_NETWORK = """
import runpy, socket, sys
def refuse(*_): raise OSError("the build asked for the network")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
sys.argv = ["mkdocs", "build", "--strict", "--site-dir", sys.argv[1]]
runpy.run_module("mkdocs", run_name="__main__")
"""


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(the site, what the strict build said), built without a network."""
    if find_spec("mkdocs") is None:
        pytest.skip('mkdocs is not installed: pip install "gradtf-fl[docs]"')
    site = tmp_path_factory.mktemp("site")
    command, quiet = [sys.executable, "-c", NO_NETWORK, str(site)], os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=quiet, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return site, done.stderr


@pytest.fixture(scope="session")
def site(built: tuple[Path, str]) -> Path:
    """The folder of the built site."""
    return built[0]
