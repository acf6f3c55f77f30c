"""What a provider's work will take, measured on this machine before it begins.

One shadow set's tuning and one training step are timed for real, on the project's own rows and models, a few steps
each; everything else is arithmetic.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from gradtf_fl.adapters import Place
from gradtf_fl.curation import TaskCuration, TupleStore, curate
from gradtf_fl.preparation.judgement import WAYS_OF_LLM, WAYS_OF_TINY, played
from gradtf_fl.preparation.run import check_work
from gradtf_fl.preparation.work import ProviderWork
from gradtf_fl.transformer import train_grad_transformer

BRIEF = 2, 6
"""Steps of the two runs whose difference is timed."""


@dataclass(frozen=True)
class Estimate:
    """Of the work that is left.

    Attributes:
        curation_s, training_s, library_s, judging_s: seconds by part, on this device.
        shadow_set_s: seconds of one shadow set of both models.
        peak_bytes: memory of this process at its fullest while it measured, and so about while it works.
        disk_bytes: size of the tuple store.
        shards_left, shards: that are not there yet, and all.
    """

    curation_s: float
    training_s: float
    library_s: float
    judging_s: float
    shadow_set_s: float
    peak_bytes: int
    disk_bytes: int
    shards_left: int
    shards: int

    @property
    def seconds(self) -> float:
        """All parts together."""
        return self.curation_s + self.training_s + self.library_s + self.judging_s


def estimate(work: ProviderWork, place: Place | None = None, workers: int = 1) -> Estimate:
    """Time a few steps of every kind.

    Raises:
        ConfigError: what would stop the work itself: a model, rows or settings.
    """
    check_work(work)
    curation = work.curation
    plan = curation.plan()
    stored = TupleStore.open(work.tuples).names if (work.tuples / "index.json").is_file() else []
    left = [(name, groups) for name, groups in plan if name not in stored]
    per_step: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="gradtf-probe-") as folder:
        first = Path(folder)
        brief = replace(curation, shadow_sets=1, pair_sets=3, mixtures=0, last_k=1, sources=curation.sources[:1])
        seconds = {}
        for steps in BRIEF:
            plain, llm = (replace(recipe, steps=steps) for recipe in (curation.plain, curation.llm_recipe))
            short = replace(brief, plain=plain, llm_recipe=llm, snapshots=(steps,), mechanisms=("adamw",), stack=3)
            seconds[steps] = _curate(short, first / f"tuples-{steps}", place)
        span = BRIEF[1] - BRIEF[0]
        for kind in ("pairs", "plain"):
            per_step[kind] = max(0.0, seconds[BRIEF[1]][kind] - seconds[BRIEF[0]][kind]) / span
        per_set = {"pairs": per_step["pairs"] / 3, "plain": per_step["plain"]}
        trained = []
        for steps in BRIEF:
            brief_training = replace(work.training, objective="functional", steps=steps, checkpoint_every=10**9)
            began = time.perf_counter()
            train_grad_transformer(brief_training, first / f"tuples-{BRIEF[1]}", first / f"trained-{steps}")
            trained.append(time.perf_counter() - began)
        step_s = max(0.0, trained[1] - trained[0]) / span
        disk = sum(file.stat().st_size for file in (first / f"tuples-{BRIEF[0]}").rglob("*.safetensors"))
        pair = next(shard for shard in TupleStore.open(first / f"tuples-{BRIEF[0]}").shards() if "llm" in shard.tensors)
        last_bytes = 2 * pair.tensors["llm"][0].numel() * curation.last_k if curation.last_k > 1 else 0
    pairs = sum(group.members for name, groups in plan for group in groups if name.startswith("pairs"))
    sets_brief, sets = 4, sum(group.members for _, groups in plan for group in groups)
    curation_s = sum(
        per_set["pairs" if name.startswith("pairs") else "plain"] * curation.plain.steps * group.members
        for name, groups in left
        for group in groups
    )
    seen = work.training.steps * work.training.groups * work.training.rows
    alone = max(0.0, per_set["pairs"] - per_set["plain"])
    return Estimate(
        curation_s=curation_s / max(1, workers),
        training_s=0.0 if work.checkpoint.is_file() else step_s * work.training.all_steps,
        library_s=0.0 if work.library.is_file() else alone * seen / curation.llm_recipe.batch,
        judging_s=_judging(curation, per_set["plain"], alone),
        shadow_set_s=per_set["pairs"] * curation.plain.steps,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        disk_bytes=disk * sets // sets_brief + last_bytes * pairs,
        shards_left=len(left),
        shards=len(plan),
    )


def _judging(curation: TaskCuration, tiny_step_s: float, llm_step_s: float) -> float:
    """Seconds to tune both models for every organization played and to score every way of making an update.

    A forward pass counts as a third of a step.
    """
    _, train, test = played(curation)
    passes = WAYS_OF_TINY * tiny_step_s + WAYS_OF_LLM * llm_step_s
    scoring = len(test[0]) / curation.plain.batch * passes / 3
    return len(train) * ((tiny_step_s + llm_step_s) * curation.plain.steps + scoring)


def _curate(curation: object, out: Path, place: Place | None) -> dict[str, float]:
    """Seconds of each kind of shard."""
    seconds: dict[str, float] = {}
    began, kind = time.perf_counter(), ""

    def told(what: str, done: int, total: int) -> None:
        nonlocal began, kind
        name = what.partition("-")[0]
        if name != kind:
            if kind:
                seconds[kind] = seconds.get(kind, 0.0) + time.perf_counter() - began
            began, kind = time.perf_counter(), name

    curate(curation, out, told, 1, place)  # type: ignore[arg-type]
    return seconds
