"""A federation that ran in this process, and an organization's folder after it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.strategies.conftest import finished, generator, make_kit, pair
from tests.strategies.federation_kit import Kit

__all__ = ["finished", "generator", "make_kit", "pair"]  # fixtures


@dataclass(frozen=True)
class Kept:
    """The first organization's folder after three rounds, and the kit that it came from."""

    folder: Path
    kit: Kit

    def adapter(self, round_number: int) -> Path:
        """PEFT folder of a round."""
        return self.folder / "rounds" / str(round_number) / "llm_adapter"


@pytest.fixture
def organization(finished: Kit, tmp_path: Path) -> Kept:
    folder = tmp_path / "org-1"
    shutil.copytree(finished.folders[0], folder, symlinks=True)
    return Kept(folder, replace(finished, folders=(folder, *finished.folders[1:])))
