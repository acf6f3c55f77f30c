"""Who holds which rows: nothing twice, nothing invented, and what each way of sharing out promises."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradtf_fl.config import SharingOut
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks.partitions import share_out, share_out_alike

LABELS = [f"label-{number % 5}" for number in range(500)]


def shares(partition: str, organizations: int = 4, least: int = 1, seed: int = 0, **more: object) -> list[list[int]]:
    made = share_out(LABELS, organizations, SharingOut(partition=partition, **more), least, seed)  # type: ignore[arg-type]
    return [part.tolist() for part in made]


def counts(part: list[int]) -> Counter[str]:
    return Counter(LABELS[i] for i in part)


@given(
    partition=st.sampled_from(["iid", "dirichlet", "shards", "pathological"]),
    organizations=st.integers(2, 5),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=60, deadline=None)
def test_every_row_has_one_holder_and_the_seed_decides(partition: str, organizations: int, seed: int) -> None:
    made = shares(partition, organizations, seed=seed)
    held = [i for part in made for i in part]
    assert len(held) == len(set(held))
    whole = partition != "pathological" or organizations * 2 >= 5  # with fewer places than labels some are nobody's
    assert (set(held) == set(range(500))) == whole or not whole
    assert made == shares(partition, organizations, seed=seed)


def test_iid_is_even_in_size_and_in_labels() -> None:
    made = shares("iid")
    assert [len(part) for part in made] == [125] * 4
    assert all(15 <= count <= 36 for part in made for count in counts(part).values())


def test_dirichlet_is_skewed_at_small_alpha_and_even_at_large_ones() -> None:
    def largest(alpha: float) -> float:
        parts = [part for seed in range(10) for part in shares("dirichlet", seed=seed, alpha=alpha)]
        return float(np.mean([max(counts(part).values()) / len(part) for part in parts]))

    assert largest(0.1) > 0.55
    assert largest(1000.0) < 0.25


def test_dirichlet_draws_until_everybody_has_enough() -> None:
    assert min(map(len, shares("dirichlet", least=60, alpha=0.3))) >= 60
    with pytest.raises(
        ConfigError, match=r"org-\d would hold \d+.* of 500 private rows, and an organization needs 126"
    ):
        shares("dirichlet", least=126)


def test_shards_and_pathological_give_each_few_labels() -> None:
    assert all(len(counts(part)) <= 3 for part in shares("shards", labels_each=2))  # a shard may hold a border
    assert [len(counts(part)) for part in shares("pathological", 5, labels_each=2)] == [2] * 5
    with pytest.raises(ConfigError, match="labels_each is 6, the rows have 5 labels"):
        shares("pathological", labels_each=6)


def test_sizes_are_in_proportion() -> None:
    assert [len(part) for part in shares("sizes", 3, sizes=[1, 3, 6])] == [50, 150, 300]


def test_natural_is_an_organization_a_label() -> None:
    made = shares("natural", 5, by="author")
    assert [len(counts(part)) for part in made] == [1] * 5
    with pytest.raises(ConfigError, match="author has 5 values, and 6 organizations are required"):
        shares("natural", 6, by="author")


def test_labels_are_wanted_where_they_decide() -> None:
    with pytest.raises(ConfigError, match=r"one label, 'only'; name the field"):
        share_out(["only"] * 50, 3, SharingOut(partition="dirichlet"), 1, 0)


def test_test_rows_follow_the_training_rows() -> None:
    made = share_out(LABELS, 5, SharingOut(partition="pathological", labels_each=1), 1, 0)
    others = [f"label-{number % 6}" for number in range(600)]  # a sixth label that nobody trains on
    tests = share_out_alike(others, LABELS, made, 0)
    assert sorted(i for part in tests for i in part.tolist()) == list(range(600))
    for mine, theirs in zip(made, tests, strict=True):
        (label,) = counts(mine.tolist())
        found = Counter(others[i] for i in theirs)
        assert found[label] == 100
        assert found["label-5"] == 20
