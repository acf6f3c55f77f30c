"""One untrained pair and one generator for all tests of this room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flower.federation_kit import Kit, LinearGenerator, build, write_pair


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def generator(pair: tuple[str, str]) -> LinearGenerator:
    return LinearGenerator(*pair)


@pytest.fixture
def make_kit(tmp_path: Path, pair: tuple[str, str], generator: LinearGenerator) -> Callable[..., Kit]:
    def make(name: str = "out", **settings: object) -> Kit:
        return build(tmp_path / name, pair, generator, **settings)  # type: ignore[arg-type]

    return make
