"""A provider's files, of the final shape and without skill, and one invocation of the root command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gradtf_fl.cli.main import cli


@dataclass(frozen=True)
class Files:
    """A provider's files, and a TOML that makes the smallest simulation with them."""

    tiny: str
    llm: str
    transformer: Path
    controls: Path
    config: Path


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    from tests.cli.provider_files import write_files

    return write_files(tmp_path_factory.mktemp("provider"))


def gradtf(*arguments: object) -> Result:
    """One invocation; stdout and stderr apart."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])
