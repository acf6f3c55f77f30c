"""Bound against measured gap: Lemma 5.1 and Theorem 5.2 for the embedded Grad-Transformer on House Rules.

    python -m experiments.paper.bound_against_gap --out experiments/results/bound_against_gap    # writes .json and .png

The loss is a row's mean answer loss clipped to [0, CAP] nats. Every rule has one organization: the TinyLM is tuned on
1,024 rows (plainly, or by DP-SGD as in the federation), the Grad-Transformer makes the LLM's update, and the LLM is
scored on those very rows, on fresh rows of the rule, and on rows of public rules at random. docs/theory.md says what
each bound rests on and what the figure shows.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from experiments.embedded import DELTA, ROWS, TEST_ROWS, draw
from experiments.measuring import machine, revision
from experiments.paper.bound_figure import caption, figure
from gradtf_fl.curation import CurationConfig, as_token_rows
from gradtf_fl.privacy import DpEvent, noise_multiplier
from gradtf_fl.tasks import HiddenTask, TokenRows
from gradtf_fl.tasks import house_rules as hr
from gradtf_fl.theory import (
    InformationBound,
    bounded_subgaussian,
    dp_sgd,
    generalization_bound,
    least,
    row_entropy,
    shadow_information,
    storage,
    utility_bound,
)
from gradtf_fl.training import DpRecipe, StackedAdapters, dp_fine_tune_stacked, fine_tune_stacked, stack_rows
from gradtf_fl.transformer import GradTransformer, embedded_checkpoint

CAP = 2 * math.log(10)
"""Twice the loss of guessing a digit, nats. A mean loss cannot differ from another by more: the trivial bound."""
EPSILONS = (8.0, 1.0)
GENERATED_AT_ONCE = 8
Losses = dict[str, list[float]]


@dataclass(frozen=True)
class Line:
    """One bound and the gap that it bounds, nats of clipped loss. ``bound`` is None where it is infinite."""

    what: str
    mechanism: str
    bound: float | None
    gap: float
    interval: tuple[float, float]
    information: float | None
    divergence: float | None
    because: str


class Measured:
    """Losses per rule of generated LLMs, and the pair that they come from."""

    def __init__(self, transformer: GradTransformer, seed: int) -> None:
        self.transformer, self.seed = transformer, seed
        self.tiny = StackedAdapters.load(transformer.source.model, transformer.source.spec)
        self.llm = StackedAdapters.load(transformer.target.model, transformer.target.spec)
        self.recipe = DpRecipe()
        q, self.steps = self.recipe.batch / ROWS, self.recipe.rounds * self.recipe.steps
        self.sigma = {epsilon: noise_multiplier(epsilon, DELTA, q, self.steps) for epsilon in EPSILONS}
        everything = HiddenTask(hr.split_rules()[0])
        self.mixture = as_token_rows(
            everything.draw(np.random.default_rng([seed, 98]), len(hr.code_pairs("test")), "test")
        )
        self.events = {epsilon: DpEvent(sigma, q, self.steps) for epsilon, sigma in self.sigma.items()}

    def losses(self, rules: list[hr.Rule], pool: hr.Pool, epsilon: float | None) -> Losses:
        """Mean clipped loss by rule: on the rows that the TinyLM was tuned on, fresh ones, and any public rule's."""
        rows, test = draw(rules, ROWS, pool, self.seed), draw(rules, TEST_ROWS, "test", self.seed)
        if epsilon is None:
            recipe = CurationConfig().plain
            seeds = [[self.seed, 5, number] for number in range(len(rules))]
            updates = fine_tune_stacked(self.tiny, rows, len(rules), recipe, seeds, [recipe.steps])[0]
        else:
            sigmas = [self.sigma[epsilon]] * len(rules)
            groups = range(len(rules))
            updates = dp_fine_tune_stacked(self.tiny, rows, groups, sigmas, self.recipe, [self.seed, 7])[-1]
        made = torch.from_numpy(np.stack([self.transformer.generate(update.numpy()) for update in updates]))
        any_rule = stack_rows([self.mixture] * len(rules))
        return {
            "tuned_on": self._clipped(made, rows),
            "fresh": self._clipped(made, test),
            "any_public_rule": self._clipped(made, any_rule),
        }

    @torch.no_grad()
    def _clipped(self, made: torch.Tensor, rows: TokenRows) -> list[float]:
        per_rule = len(rows) // len(made)
        means: list[float] = []
        for start in range(0, len(made), GENERATED_AT_ONCE):
            part = made[start : start + GENERATED_AT_ONCE]
            chosen = rows.take(slice(start * per_rule, (start + len(part)) * per_rule))
            losses = self.llm.row_losses(self.llm.initial + part, chosen).clamp(max=CAP)
            means += losses.reshape(len(part), per_rule).mean(1).tolist()
        return means


def rule_divergence(rule: hr.Rule) -> float:
    """KL of the rows of one rule against rows of a public rule drawn at random, nats; inf if some row has no such rule.

    Exact: codes are uniform, so it is the mean over all code pairs of log(64 / public rules with the same answer).
    """
    grid = np.arange(hr.CODES * hr.CODES)
    a, b = grid // hr.CODES, grid % hr.CODES
    answers = rule.apply(a, b)
    public = hr.split_rules()[0]
    agreeing = sum((other.apply(a, b) == answers).astype(np.int64) for other in public)
    if (np.asarray(agreeing) == 0).any():
        return math.inf
    return float(np.log(len(public) / agreeing).mean())


def by_rule(values: list[float]) -> tuple[float, tuple[float, float]]:
    """Mean over rules and its 95 % interval (normal), as a gap: absolute value of the mean."""
    mean, half = float(np.mean(values)), 1.96 * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return abs(mean), (mean - half, mean + half)


def difference(losses: Losses, population: str) -> list[float]:
    """Loss on rows of a population minus loss on the rows tuned on, by rule."""
    return [other - own for other, own in zip(losses[population], losses["tuned_on"], strict=True)]


def line(what: str, mechanism: str, bound: float, gaps: list[float], info: InformationBound, kl: float | None) -> Line:
    gap, interval = by_rule(gaps)
    finite = [None if value is None or math.isinf(value) else value for value in (bound, info.nats, kl)]
    return Line(what, mechanism, finite[0], gap, interval, finite[1], finite[2], info.because)


def lemma_lines(measured: Measured, public: Losses, stored: int) -> list[Line]:
    """Lemma 5.1 for the shipped Grad-Transformer, and for one made from DP shadows.

    A row is a rule and two codes, its loss is that of its rule's LLM: W is phi AND the TinyLM updates of all rules.
    """
    gaps, sigma = difference(public, "fresh"), bounded_subgaussian(0, CAP)
    rules = len(hr.split_rules()[0])
    rows = rules * ROWS
    tiny, llm = (side.layout.blocks * side.layout.block_dim for side in sides(measured))
    checkpoint, updates = storage(stored, 16), storage(rules * tiny, 32)
    w = InformationBound(checkpoint.nats + updates.nats, f"{checkpoint.because}, and {updates.because}")
    found = {
        "shipped: storage size": w,
        "shipped: entropy of the rows": row_entropy(rows, float(len(hr.ALL_RULES) * hr.CODES**2)),
    }
    for epsilon, event in measured.events.items():
        pair = sum(dp_sgd([event], ROWS, values).nats for values in (tiny, llm))
        found[f"what if: shadows at epsilon {epsilon:g}"] = InformationBound(
            shadow_information([pair] * rules),
            f"{rules} disjoint shadow sets of {ROWS} rows, both models by DP-SGD, phi from the tuples alone",
        )
    return [
        line(
            "Lemma 5.1, public rows",
            name,
            generalization_bound(mutual_information=info.nats, rows=rows, subgaussian=sigma),
            gaps,
            info,
            None,
        )
        for name, info in found.items()
    ]


def sides(measured: Measured) -> tuple[Any, Any]:
    """TinyLM and LLM side of the Grad-Transformer."""
    return measured.transformer.source, measured.transformer.target


def private_lines(
    measured: Measured, what: str, runs: dict[float | None, Losses], population: str, divergence: float
) -> list[Line]:
    """Theorem 5.2 for one organization: the loss of its rows against that of a ``population``.

    ``divergence`` is the KL, nats, of one of its rows against one of the population.
    """
    sigma, layout = bounded_subgaussian(0, CAP), measured.transformer.source.layout
    dimension = layout.blocks * layout.block_dim
    kinds = float(hr.CODES**2)  # of one rule: the codes decide the answer
    lines = []
    for epsilon, losses in runs.items():
        if epsilon is None:
            info = least(storage(dimension, 32), row_entropy(ROWS, kinds))
        else:
            info = dp_sgd([measured.events[epsilon]], ROWS, dimension)
        bound = utility_bound(mutual_information=info.nats, divergence=divergence, private_rows=ROWS, subgaussian=sigma)
        name = "plain" if epsilon is None else f"DP-SGD, epsilon {epsilon:g}"
        lines.append(line(what, name, bound, difference(losses, population), info, divergence))
    return lines


def study(
    transformer: GradTransformer, stored: int, seed: int, rules: int, told: Callable[[str], None]
) -> dict[str, Any]:
    """Measure and bound. ``stored``: values in the checkpoint. ``rules`` seen rules, at most as many unseen ones."""
    measured = Measured(transformer, seed)
    public, held_out = hr.split_rules()
    order = np.random.default_rng([seed, 4]).permutation(len(public))
    seen, unseen = [public[i] for i in order[:rules]], list(held_out)[:rules]
    runs: dict[str, dict[float | None, Losses]] = {"seen": {}, "unseen": {}}
    for epsilon in (None, *EPSILONS):
        for name, chosen in (("seen", seen), ("unseen", unseen)):
            runs[name][epsilon] = measured.losses(chosen, "private", epsilon)
            told(f"{name} rules, epsilon {epsilon or 'none'}")
    on_public = measured.losses(seen, "public", None)
    mixture = float(np.mean([rule_divergence(rule) for rule in seen]))
    lines = lemma_lines(measured, on_public, stored)
    for what, of, population, divergence in (
        ("Theorem 5.2, seen rules, against the same rule", "seen", "fresh", 0.0),
        ("Theorem 5.2, seen rules, against any public rule", "seen", "any_public_rule", mixture),
        ("Theorem 5.2, unseen rules, against any public rule", "unseen", "any_public_rule", math.inf),
    ):
        lines += private_lines(measured, what, runs[of], population, divergence)
    means = {
        name: {str(e or "none"): {k: float(np.mean(v)) for k, v in losses.items()} for e, losses in of.items()}
        for name, of in {**runs, "public": {None: on_public}}.items()
    }
    return {
        "seed": seed,
        "checkpoint_sha256": transformer.sha256,
        "rules": {"seen": [r.name for r in seen], "unseen": [r.name for r in unseen]},
        "unseen_rules_with_rows_that_no_public_rule_makes": sum(math.isinf(rule_divergence(r)) for r in unseen),
        "loss": {"clipped_at": CAP, "subgaussian": bounded_subgaussian(0, CAP), "unit": "nats", "means": means},
        "sigma": {f"{epsilon:g}": sigma for epsilon, sigma in measured.sigma.items()},
        "lines": [asdict(one) for one in lines],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformer", type=Path, default=embedded_checkpoint())
    parser.add_argument("--out", type=Path, default=Path("build/bound_against_gap"), help="without .json and .png")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rules", type=int, default=16, help="seen rules measured (unseen: at most as many)")
    options = parser.parse_args()
    began = time.monotonic()
    described = machine(["numpy", "torch", "matplotlib"])
    document = study(
        GradTransformer.load(options.transformer),
        sum(tensor.numel() for tensor in load_file(options.transformer).values()),
        options.seed,
        options.rules,
        lambda done: print(f"{done}: {time.monotonic() - began:.0f} s", flush=True),
    )
    document = {"git": revision(), "machine": described, **document}
    document["seconds"] = round(time.monotonic() - began, 1)
    document["caption"] = caption(document)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    figure(document, options.out.with_suffix(".png"))
    print(document["caption"])


if __name__ == "__main__":
    main()
