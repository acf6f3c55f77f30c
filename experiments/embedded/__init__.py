"""How the embedded pair, its task library and its expected accuracies were made and measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from experiments.embedded.evaluate_transformer import (
        DELTA,
        LLM_RECIPE,
        MEMBERS,
        ROWS,
        TEST_ROWS,
        TINY_RECIPE,
        Bench,
        draw,
        tune,
    )
    from experiments.embedded.pretrain_pair import build_model, build_tokenizer
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "DELTA",
    "LLM_RECIPE",
    "MEMBERS",
    "ROWS",
    "TEST_ROWS",
    "TINY_RECIPE",
    "Bench",
    "build_model",
    "build_tokenizer",
    "draw",
    "tune",
]
