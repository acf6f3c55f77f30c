"""Models that a process keeps while it works on one curation: each is loaded once, however many shards are made.

`StackedAdapters` puts its layers into a model once. Every forward pass begins by giving all of them their adapters, and
nothing else in the model changes, so a shard comes out the same whichever shards were made before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gradtf_fl.adapters import AdapterSpec, Place, load_encoder, model_hash
from gradtf_fl.training import StackedAdapters


@dataclass(frozen=True)
class Encoder:
    """How rows become a model's tokens; weights are not wanted for that."""

    config: Any
    tokenizer: Any


def kept_stack(name: str, spec: AdapterSpec, place: Place | None = None) -> StackedAdapters:
    """The model called ``name`` with stacked adapters; ConfigError as in `AdaptedModel.load`."""
    return _stack(name, model_hash(name), spec, place)


def kept_encoder(name: str) -> Encoder:
    """What encodes rows for the model called ``name``; ConfigError when it can't be had."""
    return _encoder(name, model_hash(name))


def forget_models() -> None:
    """Give back the memory of all kept models."""
    _stack.cache_clear()
    _encoder.cache_clear()


@lru_cache(maxsize=2)
def _stack(name: str, model_sha256: str, spec: AdapterSpec, place: Place | None) -> StackedAdapters:
    return StackedAdapters.load(name, spec, place)


@lru_cache(maxsize=2)
def _encoder(name: str, model_sha256: str) -> Encoder:
    return Encoder(*load_encoder(name))
