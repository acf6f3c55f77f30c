"""Figure 6 and Tables 8-11: CPU seconds of what an organization and the provider do, and of tuning the LLM directly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from experiments.bench import MeasuredRound
from experiments.embedded import DELTA, LLM_RECIPE, TINY_RECIPE, draw, tune
from experiments.measuring import Cell, Progress, StepCounter, cpu_seconds, measure, median
from experiments.paper.dp_accuracy import rules_of
from experiments.paper.measures.shipped import bench
from gradtf_fl.adapters import AdaptedModel
from gradtf_fl.config import Count, Epsilon, Section
from gradtf_fl.privacy import noise_multiplier
from gradtf_fl.training import DpRecipe, PlainRecipe, StackedAdapters, fine_tune, train_dp

STEP, RUN, SHARE = "seconds a step", "seconds in all", "share of tuning the LLM"
PLAIN, LLM = (f"organization: tune the {model}, plain, batch {TINY_RECIPE.batch}" for model in ("TinyLM", "LLM itself"))
DP = f"organization: tune the TinyLM, DP-SGD, batch {DpRecipe().batch}"
SECURE_SUM = "organization: its part of one secure sum"
WITH_US = f"organization: DP-SGD on the TinyLM and {DpRecipe().rounds} secure sums"


class Timing(Section):
    """Parameters.

    Attributes:
        steps: of every tuning.
        rows: of an organization, or of a shadow set.
        epsilon: of the private run.
        organizations: that mask together.
        stack: shadow sets that are tuned at once.
        repeats: of generating and masking; the median counts.
    """

    steps: Count
    rows: Count
    epsilon: Epsilon
    organizations: Count
    stack: Count
    repeats: Count


@dataclass(frozen=True)
class _Job:
    """``seconds`` of CPU for ``steps`` steps (0: it has none) of each of ``sets`` adapters."""

    what: str
    seconds: Callable[[], float]
    steps: int = 0
    sets: int = 1


@measure(Timing, shipped=True)
def seconds(parameters: Timing, seed: int, progress: Progress) -> list[Cell]:
    """CPU seconds of all threads: a machine that does other work besides changes them little."""
    jobs = [*_organization_jobs(parameters, seed), *_provider_jobs(parameters, seed)]
    counter = StepCounter(progress, len(jobs))
    taken = {}
    for job in jobs:
        counter.begin(job.what)
        taken[job.what] = job.seconds() / job.sets
    steps = {job.what: job.steps for job in jobs if job.steps}
    whole = taken[DP] + DpRecipe().rounds * taken[SECURE_SUM]
    cells = []
    for what, in_all in {PLAIN: taken[PLAIN], LLM: taken[LLM], WITH_US: whole, **taken}.items():
        if what in steps:
            cells.append(Cell(what, STEP, in_all / steps[what]))
        cells += [Cell(what, RUN, in_all), Cell(what, SHARE, in_all / taken[LLM])]
    return cells


def _organization_jobs(p: Timing, seed: int) -> list[_Job]:
    rows, dp = draw(rules_of(seed, 1), p.rows, "private", seed), DpRecipe()
    source, target = bench().transformer.source, bench().transformer.target
    tiny, private, llm = (AdaptedModel.load(side.model, side.spec).attach() for side in (source, source, target))
    sigma = noise_multiplier(p.epsilon, DELTA, dp.batch / p.rows, p.steps)

    def tuned(model: Any, recipe: PlainRecipe) -> float:
        work = partial(fine_tune, model, rows, steps=p.steps, batch=recipe.batch, rate=recipe.rate, seed=seed)
        return cpu_seconds(work)

    def tuned_privately() -> float:
        work = partial(train_dp, private, rows, sigma=sigma, clip=dp.clip, batch=dp.batch, steps=p.steps, rate=dp.rate)
        return cpu_seconds(partial(work, seed=seed))

    return [
        _Job(PLAIN, lambda: tuned(tiny, TINY_RECIPE), p.steps),
        _Job(DP, tuned_privately, p.steps),
        _Job(SECURE_SUM, lambda: _secure_sum(p, source.layout.size)),
        _Job(LLM, lambda: tuned(llm, LLM_RECIPE), p.steps),
    ]


def _secure_sum(p: Timing, size: int) -> float:
    """CPU seconds of one organization's part of a round, the median of organizations and repeats."""
    vector = np.zeros(size, dtype=np.float32)
    taken = []
    for _ in range(p.repeats):
        played = MeasuredRound(p.organizations, vector).until("mask")
        played.finish(range(p.organizations))
        taken.append(played.client_total_s())
    return median(taken)


def _provider_jobs(p: Timing, seed: int) -> list[_Job]:
    """Generating is repeated; shadow sets are tuned ``stack`` at once, and count one by one."""
    shadows = draw(rules_of(seed, 1) * p.stack, p.rows, "public", seed)
    tiny, llm = (replace(recipe, steps=p.steps) for recipe in (TINY_RECIPE, LLM_RECIPE))
    update = np.zeros(bench().tiny.initial.shape, dtype=np.float32)

    def shadow(stack: StackedAdapters, recipe: PlainRecipe) -> float:
        return cpu_seconds(lambda: tune(stack, shadows, p.stack, recipe, seed))

    def generated() -> float:
        return median(cpu_seconds(lambda: bench().transformer.generate(update)) for _ in range(p.repeats))

    shadow_of = "provider: tune a shadow {}, one of " + f"{p.stack} stacked"
    return [
        _Job("provider: generate one LLM update", generated),
        _Job(shadow_of.format("TinyLM"), lambda: shadow(bench().tiny, tiny), p.steps, p.stack),
        _Job(shadow_of.format("LLM"), lambda: shadow(bench().llm, llm), p.steps, p.stack),
    ]
