"""Why `mse` shrinks: the share of variance within tasks, and the document from a small store."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.paper.measures.tuples import TupleParameters
from experiments.paper.shrinkage import shrinkage, within_share
from tests.experiments.test_trials import SIZES, silent


@pytest.mark.parametrize(("between", "expected"), [(0.0, 1.0), (1.0, 0.5), (3.0, 0.1)])
def test_the_share_within_tasks_is_that_of_the_noise(between: float, expected: float) -> None:
    generator = torch.Generator().manual_seed(0)
    means = between * torch.randn(300, 1, 8, 8, generator=generator)
    updates = means + torch.randn(300, 5, 8, 8, generator=generator)
    found = within_share((str(task), update) for task, some in enumerate(updates) for update in some)
    assert found == pytest.approx(expected, abs=0.02)


def test_no_share_of_one_task_or_of_single_updates() -> None:
    one = torch.ones(2)
    for updates in ([], [("a", one), ("a", one)], [("a", one), ("b", one)]):
        with pytest.raises(ValueError, match="two tasks"):
            within_share(updates)


def test_the_document_from_a_small_store(tmp_path: Path) -> None:
    sizes = SIZES | {"cache": str(tmp_path), "pair_singles": 2, "plain_mixtures": 0, "counts": [4], "mse_steps": 2}
    parameters = TupleParameters(**sizes)
    document = shrinkage(parameters, 0, silent, [(4, 1), (20, 2)])
    assert list(document["mse"]) == ["4 sets, 2 steps", "20 sets, 4 steps"]
    assert 0 < document["within"]["llm"] < 1
    assert document["best_spread_by_squared_error"] ** 2 == pytest.approx(1 - document["within"]["llm"])
