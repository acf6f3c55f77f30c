"""Measure a Grad-Transformer on private House Rules data: seen and unseen rules, without DP and under DP-SGD.

    python -m experiments.embedded.evaluate_transformer --out experiments/results/grad_transformer.json

One organization a rule tunes the TinyLM on 1,024 private rows; the LLM update generated from it is scored on 256 test
rows, as are the directly tuned LLM (ceiling) and the controls. Under DP, one and five organizations a rule train in
three rounds, as the federation does; ``five`` feeds the mean of five updates, which is what secure aggregation gives.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradtf_fl.baselines import Controls, Pair, embedded_controls
from gradtf_fl.curation import CurationConfig, as_token_rows, single_task
from gradtf_fl.privacy import noise_multiplier
from gradtf_fl.tasks import TokenRows
from gradtf_fl.tasks import house_rules as hr
from gradtf_fl.training import (
    DpRecipe,
    PlainRecipe,
    StackedAdapters,
    dp_fine_tune_stacked,
    fine_tune_stacked,
    stack_rows,
)
from gradtf_fl.transformer import GradTransformer, embedded_checkpoint

ROWS, TEST_ROWS, DELTA, MEMBERS = 1024, 256, 1e-5, 5
TINY_RECIPE, LLM_RECIPE = CurationConfig().plain, PlainRecipe(batch=CurationConfig().plain.batch)


def draw(rules: list[hr.Rule], rows: int, pool: hr.Pool, seed: int, copies: int = 1) -> TokenRows:
    """Rows of every rule, ``copies`` organizations each, ordered rule by rule."""
    rng = np.random.default_rng([seed, 99])
    sets = [as_token_rows(single_task(rule).draw(rng, rows, pool)) for rule in rules for _ in range(copies)]
    return stack_rows(sets)


def tune(stack: StackedAdapters, rows: TokenRows, count: int, recipe: PlainRecipe, seed: int) -> torch.Tensor:
    """Updates of ``count`` adapters, each on its own rows, without DP."""
    seeds = [[seed, 5, number] for number in range(count)]
    return fine_tune_stacked(stack, rows, count, recipe, seeds, [recipe.steps])[0]


class Bench:
    """The two models, the Grad-Transformer and the controls, and how each is scored on test rows."""

    def __init__(self, transformer: GradTransformer, controls: Controls) -> None:
        self.transformer, self.controls = transformer, controls
        self.pair = Pair(
            *(StackedAdapters.load(side.model, side.spec) for side in (transformer.source, transformer.target))
        )
        self.tiny, self.llm = self.pair.tiny, self.pair.llm

    @classmethod
    def shipped(cls) -> Bench:
        """The pair, Grad-Transformer and controls in the package."""
        return cls(GradTransformer.load(embedded_checkpoint()), Controls.load(embedded_controls()))

    def generated(self, updates: torch.Tensor, test: TokenRows) -> dict[str, list[float]]:
        """Accuracy per rule of the LLM under each way of making its update from ``updates`` [rules, L1, n1]."""
        ways = {
            "generated": self.transformer.generate,
            "mean_update": lambda _: self.controls.mean_update(),
            "nearest_update": self.controls.nearest,
            "ridge": self.controls.ridge,
        }
        scores = {}
        for name, way in ways.items():
            made = torch.from_numpy(np.stack([way(update.numpy()) for update in updates]))
            scores[name] = self.llm.accuracy(self.llm.initial + made, test).tolist()
        return scores

    def plain(self, rules: list[hr.Rule], seed: int) -> dict[str, list[float]]:
        """One organization a rule, no DP: base, tuned TinyLM, ceiling, generated and controls."""
        rows, test = draw(rules, ROWS, "private", seed), draw(rules, TEST_ROWS, "test", seed)
        tiny = tune(self.tiny, rows, len(rules), TINY_RECIPE, seed)
        llm = tune(self.llm, rows, len(rules), LLM_RECIPE, seed)
        return {
            "tiny_base": self.tiny.accuracy(self.tiny.initial.expand(len(rules), -1, -1), test).tolist(),
            "llm_base": self.llm.accuracy(self.llm.initial.expand(len(rules), -1, -1), test).tolist(),
            "tiny_tuned": self.tiny.accuracy(self.tiny.initial + tiny, test).tolist(),
            "llm_ceiling": self.llm.accuracy(self.llm.initial + llm, test).tolist(),
            **self.generated(tiny, test),
        }

    def private(self, rules: list[hr.Rule], epsilon: float, seed: int) -> dict[str, list[float]]:
        """One and five organizations a rule under DP-SGD in three rounds at ``epsilon`` for the whole run."""
        test = draw(rules, TEST_ROWS, "test", seed)
        recipe = DpRecipe()
        sigma = noise_multiplier(epsilon, DELTA, recipe.batch / ROWS, recipe.rounds * recipe.steps)
        rows = draw(rules, ROWS, "private", seed, MEMBERS)
        groups = [number for number in range(len(rules)) for _ in range(MEMBERS)]
        sigmas = [sigma] * len(groups)
        federated = dp_fine_tune_stacked(self.tiny, rows, groups, sigmas, recipe, [seed, 6])[-1]
        five = federated.reshape(len(rules), MEMBERS, *federated.shape[1:]).mean(1)
        first = torch.arange(len(rules)) * MEMBERS
        per_set = torch.arange(ROWS)
        own = rows.take((first[:, None] * ROWS + per_set).reshape(-1))
        alone = dp_fine_tune_stacked(self.tiny, own, range(len(rules)), sigmas[: len(rules)], recipe, [seed, 7])[-1]
        return {
            "tiny_tuned": self.tiny.accuracy(self.tiny.initial + alone, test).tolist(),
            "tiny_five": self.tiny.accuracy(self.tiny.initial + five, test).tolist(),
            **{f"{name}_one": values for name, values in self.generated(alone, test).items()},
            **{f"{name}_five": values for name, values in self.generated(five, test).items()},
        }


def gap_rules(rules: list[hr.Rule], private: dict[str, list[float]]) -> dict[str, Any]:
    """PGR of five organizations by rule, for the rules that ``simulate --rules same`` draws from, lowest first.

    Against a perfect LLM, so each is a lower bound of the PGR against the tuned one.
    """
    rows = zip(rules, private["tiny_tuned"], private["generated_five"], strict=True)
    pgr = {r.name: round((made - tiny) / (1 - tiny), 3) for r, tiny, made in rows if r.name in hr.RULES_WITH_A_GAP}
    return dict(sorted(pgr.items(), key=lambda item: item[1]))


def summary(scores: dict[str, list[float]]) -> dict[str, float]:
    """Mean accuracy of each row of the table."""
    return {name: round(float(np.mean(values)), 4) for name, values in scores.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformer", type=Path, default=embedded_checkpoint())
    parser.add_argument("--controls", type=Path, default=embedded_controls())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rules", type=int, default=64, help="seen rules measured (unseen: at most as many)")
    parser.add_argument("--epsilons", default="8,1", help="comma-separated; empty for none")
    options = parser.parse_args()
    bench = Bench(GradTransformer.load(options.transformer), Controls.load(options.controls))
    began = time.monotonic()
    document: dict[str, Any] = {"seed": options.seed, "checkpoint_sha256": bench.transformer.sha256, "rows": {}}
    seen, unseen = hr.split_rules()
    order = np.random.default_rng([options.seed, 4]).permutation(len(seen))
    chosen = [seen[i] for i in order[: options.rules]]
    for name, rules in (("seen", chosen), ("unseen", list(unseen)[: options.rules])):
        scores = bench.plain(rules, options.seed)
        floor, ceiling = np.mean(scores["tiny_tuned"]), np.mean(scores["llm_ceiling"])
        row: dict[str, Any] = {"rules": [r.name for r in rules], "plain": summary(scores), "plain_by_rule": scores}
        row["pgr"] = round(float((np.mean(scores["generated"]) - floor) / (ceiling - floor)), 3)
        print(name, row["plain"], "PGR", row["pgr"], flush=True)
        for epsilon in [float(e) for e in options.epsilons.split(",") if e]:
            private = bench.private(rules, epsilon, options.seed)
            row[f"epsilon_{epsilon:g}"] = summary(private)
            row[f"epsilon_{epsilon:g}_by_rule"] = private
            if name == "seen":
                row[f"epsilon_{epsilon:g}_pgr_by_rule"] = found = gap_rules(rules, private)
                print("lowest PGR:", dict(list(found.items())[:6]), flush=True)
            print(name, "epsilon", epsilon, row[f"epsilon_{epsilon:g}"], flush=True)
        document["rows"][name] = row
    document["seconds"] = round(time.monotonic() - began, 1)
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
