"""A store of random tuples, and the objectives of an untrained model on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gradtf_fl.adapters import AdapterSpec
from gradtf_fl.training.stacked import StackedAdapters
from gradtf_fl.transformer.model import GradTransformerModel, Standardisation
from gradtf_fl.transformer.objectives import Objectives
from gradtf_fl.transformer.processes import Processes
from tests.transformer.random_store import CPU, SMALL, write_store


@pytest.fixture(scope="session")
def stacks() -> dict[str, StackedAdapters]:
    names = {"tiny": "embedded:tiny", "llm": "embedded:llm"}
    return {role: StackedAdapters.load(name, AdapterSpec()) for role, name in names.items()}


@pytest.fixture(scope="session")
def random_tuples(stacks: dict[str, StackedAdapters], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `write_store`."""
    folder = tmp_path_factory.mktemp("tuples")
    write_store(folder, stacks)
    return folder


@pytest.fixture
def objectives(stacks: dict[str, StackedAdapters]) -> Callable[[Processes], Objectives]:
    torch.manual_seed(0)
    shapes = [(s.layout.blocks, s.layout.block_dim) for s in stacks.values()]
    scales = [Standardisation(torch.zeros(shape), torch.full(shape, 0.1)) for shape in shapes]
    model = GradTransformerModel(SMALL, *scales)
    return lambda processes: Objectives(model, stacks["llm"], CPU, processes)
