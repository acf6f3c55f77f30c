"""One untrained pair and one generator for all tests of this room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gradtf_fl.transformer import GradTransformer
from tests.flower.federation_kit import TRANSFORMER, Kit, build, write_pair, write_transformer


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def generator(pair: tuple[str, str]) -> GradTransformer:
    return write_transformer(Path(pair[0]).parent / TRANSFORMER, pair)


@pytest.fixture
def make_kit(tmp_path: Path, pair: tuple[str, str], generator: GradTransformer) -> Callable[..., Kit]:
    def make(name: str = "out", **settings: object) -> Kit:
        return build(tmp_path / name, pair, generator, **settings)  # type: ignore[arg-type]

    return make
