"""Unmixing: the parts of a weighted sum of signatures are found again, and what is none is not explained."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradtf_fl.transformer.unmixing import unmix

KINDS = ((0, 1, 2), (3, 4), (5, 6, 7))


def signatures(seed: int) -> Tensor:
    """Eight updates [8, 2, 20]; those of a kind are alike, as tasks that share a part are."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(3, 2, 20, generator=generator)
    kind = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    return common[kind] + torch.randn(8, 2, 20, generator=generator)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    picks=st.tuples(st.sampled_from(KINDS[0]), st.sampled_from(KINDS[1]), st.sampled_from(KINDS[2])),
    weights=st.lists(st.floats(0.2, 1), min_size=3, max_size=3),
)
def test_the_parts_of_a_sum_are_found(seed: int, picks: tuple[int, int, int], weights: list[float]) -> None:
    known = signatures(seed)
    first = sum((w * known[task] for w, task in zip(weights, picks, strict=True)), torch.zeros(2, 20))
    found = unmix(known, first, KINDS)
    assert [tasks[int(left.argmin())] for tasks, left in zip(KINDS, found.residuals, strict=True)] == list(picks)
    assert found.unexplained < 1e-4


def test_residuals_are_shares_of_the_squared_length() -> None:
    known = torch.eye(4).reshape(4, 1, 4)
    found = unmix(known, torch.tensor([[3.0, 0.0, 4.0, 0.0]]), [(0, 1), (2, 3)])
    assert found.unexplained == pytest.approx(0, abs=1e-5)
    assert float(found.residuals[0][1].exp()) == pytest.approx(9 / 25, abs=1e-5)
    assert float(found.residuals[1][1].exp()) == pytest.approx(16 / 25, abs=1e-5)


def test_what_no_task_explains_stays_unexplained() -> None:
    known = torch.eye(4)[:3].reshape(3, 1, 4)
    half = unmix(known, torch.tensor([[1.0, 0.0, 0.0, 1.0]]), [(0, 1, 2)])
    assert half.unexplained == pytest.approx(0.5, abs=1e-5)
    assert unmix(known, torch.tensor([[0.0, 0.0, 0.0, 1.0]]), [(0, 1, 2)]).unexplained == pytest.approx(1, abs=1e-5)


def test_an_empty_sum_and_no_kinds_explain_nothing() -> None:
    known = signatures(0)
    assert unmix(known, torch.zeros(2, 20), KINDS).unexplained == 1
    assert [len(left) for left in unmix(known, torch.zeros(2, 20), KINDS).residuals] == [3, 2, 3]
    assert unmix(known, known[0], []).unexplained == 1


def test_kinds_may_have_tasks_in_common() -> None:
    known = signatures(1)
    found = unmix(known, known[1], [(0, 1), (1, 2)])
    assert all(math.isfinite(float(value)) for left in found.residuals for value in left)
    assert found.unexplained < 1e-4
