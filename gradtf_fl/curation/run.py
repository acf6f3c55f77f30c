"""Curation: public rows -> shadow sets -> update-vector tuples in a store (paper, section 4.1).

What is curated is a `Curation`: House Rules (`rule_curation`) or text tasks for any two models (`task_curation`). It
plans shards from its seed alone and makes each of them by itself, so shards are made in any order, in any process, on
any machine, and a killed run continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from gradtf_fl.adapters import AdapterSpec, Place
from gradtf_fl.curation.kept_models import forget_models, kept_stack
from gradtf_fl.curation.shards import Group
from gradtf_fl.curation.store import TupleStore
from gradtf_fl.curation.workers import Workers, finished_shards
from gradtf_fl.training import StepsDone

CurationProgress = Callable[[str, int, int], None]


class Curation(Protocol):
    """What is curated, a value that can be sent to other processes."""

    @property
    def tiny(self) -> str:
        """The TinyLM's name."""

    @property
    def llm(self) -> str:
        """The LLM's name."""

    @property
    def spec(self) -> AdapterSpec:
        """Of both models' adapters."""

    def header(self) -> dict[str, Any]:
        """Everything that a shard depends on, as JSON; ConfigError when the settings can't be curated."""

    def plan(self) -> Sequence[tuple[str, Sequence[Group]]]:
        """All shards by name and the shadow federations in each, in order, from the seed alone."""

    def make_shard(self, number: int, progress: StepsDone, place: Place | None) -> dict[str, Tensor]:
        """Tensors of shard ``number`` of the plan, made there; see `store`."""


def curate(
    curation: Curation,
    out: str | Path,
    progress: CurationProgress | None = None,
    workers: Workers | None = 1,
    place: Place | None = None,
) -> TupleStore:
    """Fill the store ``out``; shards that are there are kept, so a killed run resumes where it stopped.

    What a kill loses is the shards that were being made, one for each worker: `stack` shadow sets each.

    >>> from tempfile import mkdtemp
    >>> from gradtf_fl import CurationConfig, curate
    >>> from gradtf_fl.training import DpRecipe, PlainRecipe
    >>> brief = PlainRecipe(steps=2, batch=4)
    >>> trial = CurationConfig(
    ...     rows=16, rules=2, single_groups=1, extra_singles=0, mixture_groups=0, plain_singles=1, plain_mixtures=0,
    ...     pair_singles=1, pair_mixtures=0, plain=brief, llm_recipe=brief, dp=DpRecipe(1, 2, 4), snapshots=(1, 2),
    ... )
    >>> store = curate(trial, f"{mkdtemp()}/tuples")
    >>> [store.shard(name).tensors["tiny"].shape[1] for name in store.names]  # sets: pairs, plain, federations of 5
    [2, 2, 10]

    Args:
        progress: called with what is being done (a shard and its optimizer step), shards done, and all.
        workers: processes, one thread each (``None`` takes one per core), or "ray" for Ray tasks. A shard comes out
            the same in any of them.
        place: where models are fine-tuned, and how their base weights are held there; None: on the CPU, in float32.

    Raises ConfigError when ``out`` holds a store with other settings, a model or rows can't be had, or Ray is missing.
    """
    try:
        store = TupleStore.create(out, _header(curation, place))
        if workers != 1:
            forget_models()  # the workers load their own
        return _fill(store, curation, progress, workers, place)
    finally:
        forget_models()


def _fill(
    store: TupleStore,
    curation: Curation,
    progress: CurationProgress | None,
    workers: Workers | None,
    place: Place | None,
) -> TupleStore:
    """Make the shards that are missing."""
    groups = dict(curation.plan())
    for name in store.names:
        store.shard(name)  # verifies it
    missing = [(number, name) for number, name in enumerate(groups) if name not in store.names]
    done = len(groups) - len(missing)

    def told(name: str, step: int, steps: int) -> None:
        if progress is not None:
            progress(f"{name}, step {step} of {steps}", done, len(groups))

    for name, tensors in finished_shards(partial(curation.make_shard, place=place), missing, workers, told):
        if progress is not None:
            progress(name, done, len(groups))
        store.add(name, tensors, {"groups": [group.about() for group in groups[name]]})
        done += 1
    store.order(list(groups))
    if progress is not None:
        progress("done", len(groups), len(groups))
    return store


def _header(curation: Curation, place: Place | None) -> dict[str, Any]:
    spec = curation.spec
    header = curation.header() | {"spec": spec.to_json()}
    for role, name in (("tiny", curation.tiny), ("llm", curation.llm)):
        space = kept_stack(name, spec, place).adapted.space
        header[role] = {"name": name, "sha256": space.model_sha256, "layout": space.layout.to_json()}
    return header
