"""A process loads each model once for a curation, the LLM only where it is tuned, and shards come out the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gradtf_fl.adapters import update_space
from gradtf_fl.curation import curate
from gradtf_fl.curation.kept_models import forget_models
from tests.curation.test_curation import TRIAL
from tests.curation.text_pair import TextFiles, write_files


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the models whose weights were loaded, in order."""
    load, names = update_space.load_model, []

    def counted(name: str, place: Any = None) -> Any:
        names.append(name)
        return load(name, place)

    monkeypatch.setattr(update_space, "load_model", counted)
    forget_models()
    yield names
    forget_models()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TextFiles:
    return write_files(tmp_path_factory.mktemp("text"))


def quiet(done: int, steps: int) -> None:
    pass


def number_of(curation: Any, kind: str) -> int:
    return next(number for number, (name, _) in enumerate(curation.plan()) if name.startswith(kind))


def test_a_curation_loads_each_model_once(loads: list[str], files: TextFiles, tmp_path: Path) -> None:
    store = curate(files.curation(), tmp_path / "text")
    assert loads == [str(files.tiny), str(files.llm)]
    assert len(store.names) == 6
    loads.clear()
    assert len(curate(TRIAL, tmp_path / "rules").names) > 6
    assert loads == ["embedded:tiny", "embedded:llm"]


@pytest.mark.parametrize("kind", ["plain", "sgld", "dp"])
def test_only_pairs_load_the_llm(kind: str, loads: list[str], files: TextFiles) -> None:
    curation = files.curation()
    curation.make_shard(number_of(curation, kind), quiet, None)
    assert loads == [str(files.tiny)]
    curation.make_shard(number_of(curation, "pairs"), quiet, None)
    assert loads == [str(files.tiny), str(files.llm)]
    if kind != "sgld":
        loads.clear()
        forget_models()
        TRIAL.make_shard(number_of(TRIAL, kind), quiet, None)
        assert loads == ["embedded:tiny"]


def test_a_shard_does_not_depend_on_those_that_its_models_made_before(loads: list[str], files: TextFiles) -> None:
    for curation in (files.curation(), TRIAL):
        numbers = range(len(curation.plan()))
        alone = []
        for number in numbers:
            forget_models()
            alone.append(curation.make_shard(number, quiet, None))
        assert len(loads) > len(numbers)
        loads.clear()
        forget_models()
        for number in [*reversed(numbers), *numbers]:  # every one behind every kind, and twice
            again = curation.make_shard(number, quiet, None)
            assert again.keys() == alone[number].keys()
            for key, tensor in again.items():
                assert torch.equal(tensor, alone[number][key]), (number, key)
        assert len(loads) == 2
        loads.clear()
