"""Pair (b): two real models with different tokenizers, on domains of real text.

Each organization tunes the TinyLM on private windows of one domain; the LLM update generated from it is scored on
fresh test windows by loss per character. Recovered share = (base - generated) / (base - tuned), where base is the
LLM's own loss and tuned that of the LLM tuned on the private windows. The provider curates public windows and trains
a Grad-Transformer once, for all seeds; private and test windows are drawn again by each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from experiments.embedded import Bench
from experiments.measuring import Cell, Progress, StepCounter, measure, recovered
from experiments.paper.dp_accuracy import rules_of
from experiments.paper.measures.shipped import OURS, bench
from experiments.paper.measures.text_provider import Provider, TextPlan, nearest_tuned_longer, provider
from gradtf_fl.baselines import Case, FromUpdate, run_baseline, score_rows, update_only_baselines
from gradtf_fl.config import Count
from gradtf_fl.curation import encode_causal
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import Row, TokenRows, read_task_rows
from gradtf_fl.training import PlainRecipe, StackedAdapters, fine_tune_stacked

BASE, TUNED, TINY_BASE, TINY_TUNED = "LLM base", "LLM tuned", "TinyLM base", "TinyLM tuned"
NATS = ", nats a character"
AVERAGE = "all seen domains with a gain"
UNSEEN = " (unseen)"

Sets = tuple[tuple[Row, ...], ...]
Losses = dict[str, tuple[float, ...]]
"""Nats per character on each domain's test rows, by way of making the LLM."""


class TextPair(TextPlan):
    """Parameters.

    Attributes:
        test_rows: fresh test windows of a domain.
        unseen: domains that the provider has never seen; shown, not averaged.
        least_gain: a domain whose base LLM tuning improves by less (nats per character) is shown, but not averaged: its
            recovered share divides by next to nothing.
    """

    llm: str
    unseen: list[str]
    test_rows: Count
    least_gain: Annotated[float, Field(ge=0)]


@measure(TextPair)
def text_pair(parameters: TextPair, seed: int, progress: Progress) -> list[Cell]:
    """Recovered share by domain and over domains, and the losses that it is made of."""
    counter = StepCounter(progress, 3)
    counter.begin("provider: curate and train")
    made = provider(parameters, parameters.llm, progress)
    counter.begin("organizations")
    domains = [*parameters.tasks, *parameters.unseen]
    losses = measured(made, domains, parameters.test_rows, seed, (nearest_tuned_longer(made),))
    counter.begin("shares")
    with_gain = [k for k, gain in enumerate(gains_of(losses)) if gain >= parameters.least_gain]
    seen = [k for k in with_gain if k < len(parameters.tasks)]
    names = [f"{domain}{UNSEEN if k >= len(parameters.tasks) else ''}" for k, domain in enumerate(domains)]
    cells = [
        Cell(name, f"{way}{NATS}", losses[way][k])
        for k, name in enumerate(names)
        for way in (TINY_BASE, TINY_TUNED, BASE, TUNED, OURS)
    ]
    groups = {names[k]: [k] for k in with_gain} | {AVERAGE: seen}
    return cells + [Cell(name, way, share) for name, ks in groups.items() for way, share in shares(losses, ks).items()]


class ModelScales(TextPlan):
    """Parameters.

    Attributes:
        llms: the LLMs, one pair each with the TinyLM.
        rules: House Rules of the embedded pair, seen ones with a gap to recover.
    """

    llms: list[str]
    rules: Count
    test_rows: Count
    least_gain: Annotated[float, Field(ge=0)]


@measure(ModelScales, shipped=True)
def model_scales(parameters: ModelScales, seed: int, progress: Progress) -> list[Cell]:
    """Recovered share of each pair, over domains (loss per character) or rules (accuracy)."""
    cells = []
    for number, llm in enumerate(parameters.llms):
        progress(f"{parameters.tiny} -> {llm}", number, len(parameters.llms) + 1)
        losses = measured(provider(parameters, llm, progress), parameters.tasks, parameters.test_rows, seed)
        ks = [k for k, gain in enumerate(gains_of(losses)) if gain >= parameters.least_gain]
        cells += [Cell(f"{parameters.tiny} -> {llm}", way, share) for way, share in shares(losses, ks).items()]
    progress("House Rules", len(parameters.llms), len(parameters.llms) + 1)
    return cells + [Cell("House Rules, 28 k -> 484 k", *cell) for cell in _rule_shares(bench(), parameters.rules, seed)]


def _rule_shares(shipped: Bench, rules: int, seed: int) -> list[tuple[str, float]]:
    scores = shipped.plain(rules_of(seed, rules), seed)
    names = {"generated": OURS, "mean_update": "mean", "nearest_update": "nearest", "ridge": "ridge"}
    ends = scores["llm_base"], scores["llm_ceiling"]
    return [(shown, recovered(scores[name], *ends)) for name, shown in names.items()]


@dataclass(frozen=True)
class PrivateText:
    """Private and test rows of one organization a domain."""

    private: Sets
    test: Sets


def draw_private(made: Provider, domains: Sequence[str], test_rows: int, seed: int) -> PrivateText:
    """Fresh rows of each domain, none of them public; ConfigError when a domain has too few."""
    rng = np.random.default_rng([seed, 0x54455854])
    curation = made.curation
    private, test, problems = [], [], []
    for name in domains:
        rows = read_task_rows(made.source(name), curation.task)
        for side, pool, count in (("private", rows.private, curation.rows), ("test", rows.test, test_rows)):
            if len(pool) < count:
                problems.append(f"task {name}: {len(pool)} {side} rows, {count} are required")
                continue
            chosen = tuple(pool[i].row for i in rng.choice(len(pool), count, replace=False))
            (private if side == "private" else test).append(chosen)
    if problems:
        raise ConfigError(problems)
    return PrivateText(tuple(private), tuple(test))


def measured(
    made: Provider, domains: Sequence[str], test_rows: int, seed: int, more: Sequence[FromUpdate] = ()
) -> Losses:
    """Losses of both models before and after tuning, and of the LLM with every update made from the TinyLM's.

    ``more`` are rivals beyond those of `update_only_baselines`.
    """
    rows, pair, curation = draw_private(made, domains, test_rows, seed), made.pair, made.curation
    tiny = tuned(pair.tiny, rows.private, curation.plain, seed)
    llm = tuned(pair.llm, rows.private, curation.llm_recipe, seed)
    case = Case(tiny, seed)
    ways = (
        FromUpdate(OURS, "this project", made.transformer.generate),
        *update_only_baselines(made.controls, pair),
        *more,
    )
    losses = {way.name: run_baseline(way, pair, case).score(rows.test).loss_per_character for way in ways}
    return losses | {
        TINY_BASE: side_losses(pair.tiny, torch.zeros_like(tiny), rows.test),
        TINY_TUNED: side_losses(pair.tiny, tiny, rows.test),
        BASE: side_losses(pair.llm, torch.zeros_like(llm), rows.test),
        TUNED: side_losses(pair.llm, llm, rows.test),
    }


def tuned(side: StackedAdapters, private: Sets, recipe: PlainRecipe, seed: int) -> Tensor:
    """Updates [K, blocks, block_dim] of K organizations, each tuned on its own rows without DP."""
    rows = encode_causal(list(chain.from_iterable(private)), side.tokenizer, side.max_tokens)
    seeds = [[seed, 8, number] for number in range(len(private))]
    return fine_tune_stacked(side, rows, len(private), recipe, seeds, [recipe.steps])[0]


def side_losses(side: StackedAdapters, updates: Tensor, test: Sets) -> tuple[float, ...]:
    """Nats per character of a model with each of ``updates`` on its own test rows."""
    theta = side.initial + updates

    def logits(rows: TokenRows) -> Tensor:
        return side.answer_logits(theta, rows)

    return score_rows(logits, test, side.tokenizer, side.max_tokens).loss_per_character


def gains_of(losses: Losses) -> list[float]:
    """What tuning the LLM itself gains on each domain, nats per character."""
    return [base - end for base, end in zip(losses[BASE], losses[TUNED], strict=True)]


def shares(losses: Losses, domains: Sequence[int]) -> dict[str, float]:
    """Recovered share of every way of making an update, over the means of ``domains`` (their places)."""

    def of(way: str) -> list[float]:
        return [losses[way][k] for k in domains]

    ways = [way for way in losses if way not in (TINY_BASE, TINY_TUNED, BASE, TUNED)]
    return {way: recovered(of(way), of(BASE), of(TUNED)) for way in ways}
