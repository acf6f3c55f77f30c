"""Text rows as bags of words and pairs of words, hashed to unit vectors [rows, FEATURES]. numpy only."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise, takewhile

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.tasks import Row

Features = NDArray[np.float32]
Bag = Mapping[str, int]
"""How often each word, and each pair of neighbouring words, occurs in a row."""

FEATURES = 4096
"""Buckets. Signs are hashed too, so that collisions add noise to a similarity of two rows and no bias."""
MOST_CHARACTERS = 4000
"""Of a prompt or an answer; the rest is not read."""
WORD = re.compile(r"\d+|[^\W\d_]+|[^\w\s]")
SOURCE_CHARACTERS = 64
MOST_OF_A_SIDE, ALWAYS_A_SOURCE = 0.05, 10


def words(text: str) -> list[str]:
    """Lower-case words, punctuation marks, and any number as "0"."""
    found = WORD.findall(text[:MOST_CHARACTERS].lower())
    return ["0" if word[0].isdigit() else word for word in found]


def bag(row: Row) -> Counter[str]:
    """The row's words and pairs of words; no pair spans prompt and answer."""
    grams: Counter[str] = Counter()
    for text in (row.prompt, row.answer):
        found = words(text)
        grams.update(found)
        grams.update(map(" ".join, pairwise(found)))
    return grams


class Rarity(dict[str, float]):
    """Inverse document frequency log((1 + rows) / (1 + rows with the gram)); a gram never seen has the greatest."""

    def __init__(self, bags: Sequence[Bag]) -> None:
        self.rows_with = Counter(gram for grams in bags for gram in grams)
        self.never_seen = float(np.log(1 + len(bags)))
        super().__init__((gram, self.never_seen - float(np.log1p(n))) for gram, n in self.rows_with.items())

    def __missing__(self, gram: str) -> float:
        return self.never_seen


def unit_rows(bags: Sequence[Bag], rarity: Rarity | None = None, dimension: int = FEATURES) -> Features:
    """log(1 + count) x rarity (1 without) of each gram, hashed, float32 [rows, dimension].

    A row's length before hashing is 1, so the product of two rows is about their cosine. The hash is the same on
    every machine and in every run.
    """
    table = np.zeros((len(bags), dimension), dtype=np.float32)
    places: dict[str, int] = {}
    for number, grams in enumerate(bags):
        values = np.log1p(np.fromiter(grams.values(), dtype=np.float64, count=len(grams)))
        if rarity is not None:
            values *= np.fromiter((rarity[gram] for gram in grams), dtype=np.float64, count=len(grams))
        for gram in grams:
            if gram not in places:
                places[gram] = zlib.crc32(gram.encode())
        hashed = np.fromiter((places[gram] for gram in grams), dtype=np.int64, count=len(grams))
        values *= np.where(hashed & 1, 1.0, -1.0) / max(float(np.linalg.norm(values)), 1e-12)
        table[number] = np.bincount((hashed >> 1) % dimension, values, dimension)
    return table


def sources(*sides: Sequence[Row]) -> list[NDArray[np.int64]]:
    """A number for each row of each side, equal for rows that begin alike: a passage with several questions.

    Two such rows are no two independent samples. Rows begin alike when the first 64 characters of their prompts
    agree, after what all prompts of a side have in common. A start that more than 10 rows and 5 % of a side share is a
    template, and its rows keep numbers of their own.
    """
    numbers: dict[str, int] = {}
    found: list[NDArray[np.int64]] = []
    for side in sides:
        start = _common_start([row.prompt for row in side])
        keys = [row.prompt[start : start + SOURCE_CHARACTERS] for row in side]
        most = max(ALWAYS_A_SOURCE, MOST_OF_A_SIDE * len(side))
        templates = {key for key, times in Counter(keys).items() if times > most}
        marked: Iterable[str] = (f"{len(found)} {i}\0{k}" if k in templates else k for i, k in enumerate(keys))
        found.append(np.array([numbers.setdefault(key, len(numbers)) for key in marked], dtype=np.int64))
    return found


def _common_start(texts: Sequence[str]) -> int:
    """How many characters all ``texts`` begin with; the first and the last in order differ first."""
    ends = zip(min(texts, default=""), max(texts, default=""), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], ends))
