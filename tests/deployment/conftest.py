"""A federation that ran: one organization's kept adapters, copied for each test."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from strategies import run_server
from tests.flower.federation_kit import TRANSFORMER, Kit, build, write_pair, write_transformer


@dataclass(frozen=True)
class Kept:
    """The first organization's folder after three rounds, and the kit that it came from."""

    folder: Path
    kit: Kit

    def adapter(self, round_number: int) -> Path:
        """PEFT folder of a round."""
        return self.folder / "rounds" / str(round_number) / "llm_adapter"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    pair = write_pair(tmp_path_factory.mktemp("pair"))
    generator = write_transformer(Path(pair[0]).parent / TRANSFORMER, pair)
    kit = build(tmp_path_factory.mktemp("federation") / "out", pair, generator, rounds=3)
    run_server(kit.grid(), kit.plan, None, kit.generator)
    return kit


@pytest.fixture
def organization(finished: Kit, tmp_path: Path) -> Kept:
    folder = tmp_path / "org-1"
    shutil.copytree(finished.folders[0], folder, symlinks=True)
    return Kept(folder, replace(finished, folders=(folder, *finished.folders[1:])))
