"""The shipped Grad-Transformer, its pair and its rivals, loaded once for all seeds, and how they are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from torch import Tensor

from experiments.embedded import LLM_RECIPE, TINY_RECIPE, Bench
from experiments.measuring import Cell, recovered
from gradtf_fl.baselines import (
    HOUSE_RULES_ROWS,
    Baseline,
    Case,
    Decoding,
    FromUpdate,
    Outcome,
    Pair,
    ProxyTuning,
    Settings,
    all_baselines,
    continuations,
    outcome_of_updates,
    run_baseline,
    update_only_baselines,
)
from gradtf_fl.config import HOUSE_RULES_ANSWER_TOKENS
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import Row, TokenRows, encode_rows, tokens_to_rows
from gradtf_fl.training import PlainRecipe, StackedAdapters
from gradtf_fl.transformer import Answered, KnownTasks, Refined, certainty, embedded_tasks, refine

OURS = "Grad-Transformer"
TINY_BASE, FLOOR, LLM_BASE, CEILING = "TinyLM base", "TinyLM tuned (floor)", "LLM base", "LLM tuned (ceiling)"

LEAST_GAP = 0.02
"""Between floor and ceiling accuracy, for a PGR to say anything: five of 256 test rows."""

Step = Callable[[str], None]
"""Told what begins now."""


@cache
def bench() -> Bench:
    """The two models, the Grad-Transformer and the controls in the package."""
    return Bench.shipped()


def ours() -> Baseline:
    """The Grad-Transformer as one more row of the table."""
    return FromUpdate(OURS, "this project", bench().transformer.generate)


@dataclass(frozen=True)
class RefinedBaseline:
    """The Grad-Transformer with refinement on the case's public prompts."""

    name: str = f"{OURS}, refined"
    source: str = "this project"
    private_rows_leave: bool = False

    def run(self, pair: Pair, case: Case) -> Outcome:
        """ConfigError where the case has no public prompts."""
        if case.public_prompts is None:
            raise ConfigError(f"{self.name} needs public prompts, and the case has none")
        found = refined_updates(pair, case.updates, case.public_prompts, case.first_updates)
        notes = {"refined": found.taken, "put_together": found.kinds > 0}
        shares = {f"share_{name}": float(t.float().mean()) for name, t in notes.items()}
        return outcome_of_updates(pair, found.updates, shares)


def refined_updates(
    pair: Pair, updates: Tensor, prompts: tuple[str, ...], first_updates: Tensor | None = None
) -> Refined:
    """Of TinyLM updates [K, L1, n1], and what they were after the first of several rounds: refined, and put together
    from known tasks where those explain them."""
    answered = answer_prompts(pair, updates, prompts)
    found = refine(bench().transformer, pair.llm, updates, answered, firsts=first_updates)
    made, kinds = known_tasks(prompts).put_together(pair.tiny, updates, found.updates, first_updates)
    return replace(found, updates=made, kinds=kinds)


@cache
def known_tasks(prompts: tuple[str, ...]) -> KnownTasks:
    """What the known tasks in the package answer to public prompts."""
    return KnownTasks(bench().pair.llm, embedded_tasks(), prompts, HOUSE_RULES_ANSWER_TOKENS)


def answer_prompts(pair: Pair, updates: Tensor, prompts: Sequence[str]) -> Answered:
    """Every prompt with what the TinyLM answers under each update."""
    theta = pair.tiny.initial + updates
    answers = continuations(pair.tiny, theta, [prompts] * len(updates), Decoding(HOUSE_RULES_ANSWER_TOKENS))
    rows = [Row(prompt, answer.text) for own in answers for prompt, answer in zip(prompts, own, strict=True)]
    read, written = (encode_rows(rows, side.tokenizer) for side in (pair.tiny, pair.llm))
    return Answered(written, certainty(pair.tiny, theta, read))


@cache
def update_rivals() -> tuple[Baseline, ...]:
    """Ours, and every rival that needs the TinyLM update alone."""
    return (ours(), *update_only_baselines(bench().controls, bench().pair), ProxyTuning())


def every_rival(texts: int, steps: int) -> tuple[Baseline, ...]:
    """Ours, and every rival, tuned as floor and ceiling are; ``texts`` are written for each organization."""
    settings = Settings(*recipes(steps), Decoding(HOUSE_RULES_ANSWER_TOKENS), HOUSE_RULES_ROWS, texts, Decoding(8, 1.0))
    return (ours(), RefinedBaseline(), *all_baselines(bench().controls, bench().pair, settings, whole_rows=True))


def recipes(steps: int) -> tuple[PlainRecipe, PlainRecipe]:
    """How TinyLM and LLM are tuned without DP."""
    return replace(TINY_RECIPE, steps=steps), replace(LLM_RECIPE, steps=steps)


def as_rows(tokens: TokenRows, sets: int) -> tuple[tuple[Row, ...], ...]:
    """House Rules token rows as text, in ``sets`` equally large parts."""
    rows = tokens_to_rows(tokens.input_ids.numpy())
    size = len(rows) // sets
    return tuple(tuple(rows[k * size : (k + 1) * size]) for k in range(sets))


def base_accuracy(stack: StackedAdapters, test: TokenRows, sets: int) -> list[float]:
    """Of the untuned model on each of ``sets`` parts of ``test``."""
    return accuracy(stack, stack.initial.new_zeros(sets, *stack.initial.shape), test)


def accuracy(stack: StackedAdapters, updates: Tensor, test: TokenRows) -> list[float]:
    """Of each update [K, blocks, block_dim] on its part of ``test``."""
    found: list[float] = stack.accuracy(stack.initial + updates, test).tolist()
    return found


def contest(
    rivals: Iterable[Baseline], case: Case, test: TokenRows, step: Step = lambda _: None
) -> dict[str, tuple[float, ...]]:
    """Exact match of each rival's LLM on each organization's part of ``test``, by the rival's name."""
    rows = as_rows(test, case.organizations)
    scores = {}
    for rival in rivals:
        step(rival.name)
        scores[rival.name] = run_baseline(rival, bench().pair, case).score(rows).exact_match
    return scores


def accuracy_cells(group: str, scores: Mapping[str, Sequence[float]]) -> list[Cell]:
    """Mean accuracy of each row of a table, in the column of ``group``."""
    return [Cell(name, f"accuracy, {group}", float(np.mean(values))) for name, values in scores.items()]


def pgr_cells(
    group: str, scores: Mapping[str, Sequence[float]], floor: Sequence[float], ceiling: Sequence[float]
) -> list[Cell]:
    """PGR of each rival, in the column of ``group``; none where floor and ceiling leave no gap to divide by."""
    if float(np.mean(ceiling)) - float(np.mean(floor)) < LEAST_GAP:
        return []
    return [Cell(name, f"PGR, {group}", recovered(values, floor, ceiling)) for name, values in scores.items()]
