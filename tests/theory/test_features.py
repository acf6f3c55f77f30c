"""Rows as hashed bags of words, and which rows count as of one source."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradtf_fl.tasks import Row
from gradtf_fl.theory.features import MOST_CHARACTERS, Rarity, bag, sources, unit_rows, words


def test_words_by_hand() -> None:
    assert words("Tom's 3 Äpfel cost 12.50!") == ["tom", "'", "s", "0", "äpfel", "cost", "0", ".", "0", "!"]
    assert len(words("a " * MOST_CHARACTERS)) == MOST_CHARACTERS // 2


def test_no_pair_spans_prompt_and_answer() -> None:
    assert bag(Row("a b", "c d")) == {"a": 1, "b": 1, "a b": 1, "c": 1, "d": 1, "c d": 1}


def test_rarity_by_hand() -> None:
    rarity = Rarity([{"a": 1, "b": 2}, {"a": 1}, {"a": 5}])
    assert rarity["a"] == pytest.approx(0)
    assert rarity["b"] == pytest.approx(math.log(4 / 2))
    assert rarity["never"] == pytest.approx(math.log(4))
    assert "never" not in rarity


def test_products_of_unit_rows_are_their_cosines() -> None:
    """Counts (1, 1, 3) and (0, 1, 3) damped to log 2 and log 4: cosine 5 / sqrt(6 * 5) where nothing collides."""
    table = unit_rows([{"a": 1, "b": 1, "c": 3}, {"b": 1, "c": 3}, {"d": 1}], dimension=4096)
    products = table @ table.T
    assert np.diag(products) == pytest.approx([1, 1, 1], abs=1e-6)
    assert products[0, 1] == pytest.approx(5 / math.sqrt(30), abs=1e-6)
    assert products[0, 2] == 0


def test_collisions_have_no_bias() -> None:
    """Rows without a common word, in so few buckets that all collide: their products average to nothing."""
    bags = [{f"w{row} {number}": 1 for number in range(100)} for row in range(150)]
    table = unit_rows(bags, dimension=128)
    products = (table @ table.T)[~np.eye(150, dtype=bool)]
    assert abs(products.mean()) < 0.005
    assert products.std() > 0.05


def test_an_empty_row_is_no_error() -> None:
    assert not unit_rows([bag(Row("", " "))]).any()


def test_rows_that_begin_alike_are_of_one_source_across_sides() -> None:
    passage = "The Bears beat the Lions in a game that nobody who was there will soon forget, they say."
    first = [Row(passage + " Who won?", "x"), Row(passage + " Who lost?", "y"), Row("Another one.", "z")]
    second = [Row("Something else", "q"), Row(passage + " Where?", "r")]
    mine, theirs = sources(first, second)
    assert mine[0] == mine[1] == theirs[1]
    assert len({mine[0], mine[2], theirs[0]}) == 3


def test_a_template_makes_no_source() -> None:
    template = "Answer the following question in one word, and give no explanation whatever: "
    rows = [Row(template + f"question {number}?", "x") for number in range(100)]
    assert len(set(sources(rows)[0])) == 100
    mixed = [*rows, *(Row(f"{number} is free text", "y") for number in range(100))]
    assert len(set(sources(mixed)[0])) == 200
