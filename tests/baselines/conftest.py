"""The embedded pair with one tuned House Rule, shared by all tests of this folder."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch

from gradtf_fl.adapters import AdapterSpec
from gradtf_fl.baselines import Case, Pair
from gradtf_fl.curation.shadow import single_task
from gradtf_fl.tasks import Row, encode_rows
from gradtf_fl.tasks import house_rules as hr
from gradtf_fl.tasks.federation import tokens_to_rows
from gradtf_fl.training import StackedAdapters
from gradtf_fl.training.stacked import fine_tune_stacked
from tests.baselines.pair_recipes import TINY_RECIPE

RULES = ("afj", "cej")


@pytest.fixture(scope="session")
def pair() -> Pair:
    torch.set_num_threads(1)
    return Pair(
        StackedAdapters.load("embedded:tiny", AdapterSpec()), StackedAdapters.load("embedded:llm", AdapterSpec())
    )


def rows_of(pool: hr.Pool, count: int, seed: int) -> tuple[tuple[Row, ...], ...]:
    rng = np.random.default_rng(seed)
    return tuple(tuple(tokens_to_rows(single_task(hr.rule_named(name)).draw(rng, count, pool))) for name in RULES)


@pytest.fixture(scope="session")
def case(pair: Pair) -> Case:
    """Two organizations, a rule each."""
    private = rows_of("private", 128, 1)
    tokens = encode_rows(list(chain.from_iterable(private)), pair.tiny.tokenizer)
    tiny = fine_tune_stacked(pair.tiny, tokens, 2, TINY_RECIPE, [[1], [2]], [TINY_RECIPE.steps])[0]
    public = tuple(row.prompt for row in rows_of("public", 64, 2)[0])
    return Case(tiny, 0, private, public)


@pytest.fixture(scope="session")
def test_rows() -> tuple[tuple[Row, ...], ...]:
    return rows_of("test", 48, 3)
