"""Short recipes for the embedded pair: enough to learn something, quick enough for tests."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

from gradtf_fl.training.stacked import PlainRecipe, StackedAdapters

TINY_RECIPE = PlainRecipe(steps=80, batch=16, rate=2e-2)
LLM_RECIPE = PlainRecipe(steps=20, batch=8)


def with_tokenizer(side: StackedAdapters, tokenizer: Any) -> StackedAdapters:
    """The same model in memory, as if it had come with another tokenizer."""
    other = copy(side)
    other.adapted = replace(side.adapted, tokenizer=tokenizer)
    return other
