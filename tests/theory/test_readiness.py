"""Readiness: made-up sides, the verdict's rules, and real benchmark rows where they are at hand."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import Row
from gradtf_fl.theory import assess
from gradtf_fl.theory import readiness as rd
from tests.benchmark_data import DATA, needs_data


def text_rows(words: str, rows: int, seed: int, length: int = 12) -> list[Row]:
    """Rows of random words from a list."""
    rng = np.random.default_rng(seed)
    choice = words.split()
    return [Row(" ".join(rng.choice(choice, length)), " ".join(rng.choice(choice, 3))) for _ in range(rows)]


FRUIT = " ".join(f"fruit{letter}{other}" for letter in "abcdefgh" for other in "uvwxyz")
TOOLS = " ".join(f"tools{letter}{other}" for letter in "abcdefgh" for other in "uvwxyz")


def test_rows_of_one_distribution_are_near() -> None:
    found = assess(text_rows(FRUIT, 300, 0), text_rows(FRUIT, 400, 1))
    assert found.verdict == "near"
    assert found.without_near.low < 0.05 < found.without_near.high
    assert found.lonelier == pytest.approx(0.5, abs=0.05)
    assert found.compared == found.given == (300, 400)
    assert not found.kinds


def test_rows_of_other_words_are_far() -> None:
    found = assess(text_rows(TOOLS, 300, 0), text_rows(FRUIT, 300, 1))
    assert found.verdict == "far"
    assert found.without_near.value > 0.9
    assert found.divergence.saturated
    assert [kind.what for kind in found.kinds] == [rd.MEASURES[3][0]]
    assert found.kinds[0].share == 1
    assert found.kinds[0].without_near == found.without_near.value


def test_a_part_without_a_near_row_is_found_and_pointed_at() -> None:
    odd = text_rows(TOOLS, 60, 2, length=40)
    found = assess([*text_rows(FRUIT, 240, 0), *odd], text_rows(FRUIT, 400, 1))
    assert found.verdict == "some way off"
    assert found.without_near.value == pytest.approx(0.2 + 0.8 * 0.05, abs=0.03)
    assert set(found.farthest[:60]) == set(range(240, 300))
    named = {kind.what: kind.without_near for kind in found.kinds}
    assert named == {rd.MEASURES[0][0]: 1.0, rd.MEASURES[3][0]: 1.0}


def test_duplicates_count_once_and_public_rows_are_counted() -> None:
    private, public = text_rows(FRUIT, 60, 0), text_rows(FRUIT, 60, 1)
    found = assess([*private, *private[:5], *public[:7]], public)
    assert found.given == (72, 60)
    assert found.compared == (67, 60)
    assert found.identical == 7


def test_many_rows_are_sampled_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rd, "MOST_ROWS", 80)
    private, public = text_rows(FRUIT, 200, 0), text_rows(FRUIT, 90, 1)
    found = assess(private, public, seed=1)
    assert found.compared == (80, 80)
    assert found == assess(private, public, seed=1)
    assert found != assess(private, public, seed=2)


def test_too_few_different_rows_are_refused_on_both_sides() -> None:
    with pytest.raises(ConfigError) as caught:
        assess(text_rows(FRUIT, 10, 0) * 10, text_rows(FRUIT, 49, 0))
    assert [problem.split(";")[0] for problem in caught.value.problems] == [
        "private: 10 different rows",
        "public: 49 different rows",
    ]


@pytest.mark.parametrize(
    ("share", "lonelier", "auc", "word"),
    [
        (0.05, 0.5, 0.5, "near"),
        (0.10, 0.7, 0.90, "near"),
        (0.11, 0.5, 0.5, "some way off"),
        (0.05, 0.5, 0.91, "some way off"),
        (0.34, 0.79, 1.0, "some way off"),
        (0.34, 0.95, 0.98, "some way off"),
        (0.35, 0.5, 0.5, "far"),
        (0.05, 0.80, 0.99, "far"),
    ],
)
def test_verdict(share: float, lonelier: float, auc: float, word: str) -> None:
    assert rd.verdict(share, lonelier, auc) == word


def test_few_rows_may_differ_more_by_chance() -> None:
    assert rd.near_limit(2000, 2000) == rd.NEAR_SHARE
    assert rd.near_limit(100, 100) == pytest.approx(0.05 + 3 * (0.05 * 0.95 / 50) ** 0.5)
    assert rd.verdict(0.14, 0.5, 0.5, rd.near_limit(100, 100)) == "near"


def test_json_holds_no_word_of_a_row() -> None:
    found = assess(text_rows(TOOLS, 60, 0), text_rows(FRUIT, 60, 1))
    text = json.dumps(found.to_json(), allow_nan=False)
    assert "tool" not in text
    assert "fruit" not in text
    assert rd.KEEP_LOCAL in text


def test_wilson_interval_by_hand() -> None:
    """0 of 10: the upper end is z^2 / (10 + z^2)."""
    found = rd._wilson(0, 10)
    assert (found.value, found.low) == (0, 0)
    assert found.high == pytest.approx(1.96**2 / (10 + 1.96**2))


def benchmark(name: str, part: str, prompt: str, answer: str) -> list[Row]:
    with gzip.open(DATA / name / f"{part}.jsonl.gz", "rt", encoding="utf8") as lines:
        documents = [json.loads(line) for line in lines]
    return [Row(document[prompt], document[answer]) for document in documents]


@needs_data
def test_real_rows_near_and_far() -> None:
    """600 rows a side: two halves of GSM8K, and GSM8K against DialogSum."""
    mathematics = benchmark("gsm8k", "test", "question", "answer")[:600]
    near = assess(mathematics, benchmark("gsm8k", "train", "question", "answer")[:600])
    far = assess(mathematics, benchmark("dialogsum", "train", "dialogue", "summary")[:600])
    assert near.verdict == "near"
    assert near.divergence.auc.value < 0.6
    assert near.divergence.kl.low == 0
    assert far.verdict == "far"
    assert far.divergence.saturated
    assert far.without_near.value > 3 * near.without_near.value
