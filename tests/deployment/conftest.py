"""A federation that ran: one organization's kept adapters, copied for each test."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from gradtf_fl.transformer import GradTransformer
from strategies import run_server
from tests.flower.conftest import generator, make_kit, pair
from tests.flower.federation_kit import Kit, build

__all__ = ["generator", "make_kit", "pair"]  # fixtures


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
