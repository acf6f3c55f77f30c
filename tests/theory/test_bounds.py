"""Lemma 5.1, Theorem 5.2, Corollary 5.3: hand-computed, and against cases in which the gap is known exactly."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradtf_fl.errors import ConfigError
from gradtf_fl.theory import (
    absolute_gap_bound,
    bounded_subgaussian,
    generalization_bound,
    shadow_information,
    utility_bound,
)


def test_by_hand() -> None:
    assert bounded_subgaussian(-1, 3) == 2
    assert generalization_bound(mutual_information=2, rows=4, subgaussian=3) == 3  # 3 sqrt(2 * 2 / 4)
    assert utility_bound(mutual_information=2, divergence=1.5, private_rows=4, subgaussian=3) == 6  # 3 sqrt(2 (.5+1.5))
    assert absolute_gap_bound(mutual_information=0, rows=1, subgaussian=1) == pytest.approx(math.sqrt(2 * math.log(2)))
    assert shadow_information([0.5, 0.25]) == 0.75


def test_infinite_information_gives_an_infinite_bound() -> None:
    assert generalization_bound(mutual_information=math.inf, rows=10, subgaussian=1) == math.inf
    assert utility_bound(mutual_information=0, divergence=math.inf, private_rows=10, subgaussian=1) == math.inf
    assert shadow_information([1, math.inf]) == math.inf


@given(kinds=st.integers(2, 500), kept=st.floats(0, 1))
def test_the_lemma_holds_for_a_model_that_remembers_its_one_row(kinds: int, kept: float) -> None:
    """W is the row with probability ``kept``, another draw otherwise; loss is 1 unless W is the row."""
    right = kept + (1 - kept) / kinds
    gap = right - 1 / kinds
    wrong = (1 - right) / (kinds - 1)
    information = math.log(kinds) + sum(
        times * p * math.log(p) for times, p in ((1, right), (kinds - 1, wrong)) if p > 0
    )
    bound = generalization_bound(
        mutual_information=max(0.0, information), rows=1, subgaussian=bounded_subgaussian(0, 1)
    )
    assert gap <= bound + 1e-6


@given(private=st.floats(0.01, 0.99), shadow=st.floats(0.01, 0.99), rows=st.integers(1, 100_000))
def test_the_theorem_holds_for_a_model_that_reads_no_row(private: float, shadow: float, rows: int) -> None:
    """Rows are coins, the loss of a row is its side: the gap is the difference of the coins, whatever the rows."""
    divergence = private * math.log(private / shadow) + (1 - private) * math.log((1 - private) / (1 - shadow))
    bound = utility_bound(
        mutual_information=0, divergence=max(0.0, divergence), private_rows=rows, subgaussian=bounded_subgaussian(0, 1)
    )
    assert abs(private - shadow) <= bound + 1e-9


def test_a_rows_divergence_over_the_number_of_rows_would_be_no_bound() -> None:
    """The reading of Theorem 5.2 that docs/theory.md rejects: coins .5 and .1, a model that reads no row."""
    divergence = 0.5 * math.log(0.5 / 0.1) + 0.5 * math.log(0.5 / 0.9)
    gap = 0.5 - 0.1
    assert generalization_bound(mutual_information=divergence, rows=10_000, subgaussian=0.5) < gap
    assert utility_bound(mutual_information=0, divergence=divergence, private_rows=10_000, subgaussian=0.5) >= gap


def test_the_mean_of_the_absolute_gap_needs_log_2() -> None:
    """A model that reads nothing, one fair coin as the only row: the gap is +-1/2, so its mean is 0."""
    assert generalization_bound(mutual_information=0, rows=1, subgaussian=0.5) == 0
    assert absolute_gap_bound(mutual_information=0, rows=1, subgaussian=0.5) >= 0.5


def test_every_bad_argument_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        utility_bound(mutual_information=-1, divergence=math.nan, private_rows=0, subgaussian=math.inf)
    names = [problem.split()[0] for problem in caught.value.problems]
    assert names == ["mutual_information", "divergence", "private_rows", "subgaussian"]
    for low, high in ((1, 1), (2, 1), (0, math.inf)):
        with pytest.raises(ConfigError, match="clipped"):
            bounded_subgaussian(low, high)
    for terms in ([], [1, -1], [math.nan]):
        with pytest.raises(ConfigError, match="shadow set"):
            shadow_information(terms)
