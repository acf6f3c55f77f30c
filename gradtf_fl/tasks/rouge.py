"""ROUGE-1 (Lin 2004) as the paper reports it, by the rouge-score package."""

from __future__ import annotations

import re
from functools import cache
from typing import Any


def rouge1(reference: str, text: str) -> float:
    """F-measure of unigram overlap, with Porter stemming, in 0..1; 0 for an empty ``text``."""
    return float(_scorer().score(reference, text)["rouge1"].fmeasure)


def scoreable(reference: str) -> bool:
    """Whether rouge-score reads any word of ``reference``: it drops all but the letters a to z and digits.

    A reference in another script would score 0 against everything, itself included.
    """
    return re.search("[a-z0-9]", reference.lower()) is not None


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1"], use_stemmer=True)
