"""One untrained pair and one generator for all tests of this room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gradtf_fl.transformer import GradTransformer
from strategies import run_server
from tests.strategies.federation_kit import TRANSFORMER, Kit, build, write_pair, write_transformer


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


@pytest.fixture(scope="session")
def finished(pair: tuple[str, str], generator: GradTransformer, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    kit = build(tmp_path_factory.mktemp("federation") / "out", pair, generator, rounds=3)
    run_server(kit.grid(), kit.plan, None, kit.generator)
    return kit
