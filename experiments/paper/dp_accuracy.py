"""Accuracy under DP on House Rules: TinyLM and generated LLM, epsilon by epsilon, for 1, 5 and 20 organizations.

    python -m experiments.paper.dp_accuracy --out experiments/results/dp_accuracy.json   # about 40 minutes of one core
    python -m experiments.paper.dp_accuracy --plot experiments/results/dp_accuracy.json

For each seed some rules are drawn from those that `gradtf simulate` draws from. Of each, federations of 1, 5 and 20
organizations with 1,024 private rows each train in three rounds, epsilon covering the whole run; the LLM update is
generated from the mean of their updates and scored on 256 test rows. PGR = (generated - floor) / (ceiling - floor):
floor is the TinyLM that ONE organization tuned under the same DP, ceiling the LLM tuned WITHOUT DP. What is finished is
in the file after each (seed, epsilon), and a second start continues from there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from experiments.embedded import DELTA, ROWS, TEST_ROWS, Bench, draw
from experiments.measuring import interval, recovered
from gradtf_fl.files import write_whole
from gradtf_fl.privacy import noise_multiplier
from gradtf_fl.tasks import house_rules as hr
from gradtf_fl.training import DpRecipe, dp_fine_tune_stacked

EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)
SIZES = (1, 5, 20)
RuleKind = Literal["seen", "unseen"]


def rules_of(seed: int, count: int, kind: RuleKind = "seen") -> list[hr.Rule]:
    """``count`` rules: seen ones with a gap to recover, or unseen ones (16 at most)."""
    seen, unseen = hr.split_rules()
    rules = [rule for rule in seen if rule.name in hr.RULES_WITH_A_GAP] if kind == "seen" else list(unseen)
    order = np.random.default_rng([seed, 11]).permutation(len(rules))
    return [rules[i] for i in order[:count]]


def measure(
    bench: Bench, rules: list[hr.Rule], epsilon: float, seed: int, sizes: Sequence[int] = SIZES
) -> dict[str, list[float]]:
    """Accuracy by rule: ``tiny_SIZE`` (mean update of the federation), ``generated_SIZE``, ``nearest_SIZE``."""
    test, recipe = draw(rules, TEST_ROWS, "test", seed), DpRecipe()
    sigma = noise_multiplier(epsilon, DELTA, recipe.batch / ROWS, recipe.rounds * recipe.steps)
    scores: dict[str, list[float]] = {}
    for size in sizes:
        updates = []
        for rule in rules:  # one rule at a time: memory of 20 organizations, not of all
            rows = draw([rule], ROWS, "private", seed, size)
            trained = dp_fine_tune_stacked(bench.tiny, rows, [0] * size, [sigma] * size, recipe, [seed, size, 13])
            updates.append(trained[-1].mean(0))
        mean = torch.stack(updates)
        scores[f"tiny_{size}"] = bench.tiny.accuracy(bench.tiny.initial + mean, test).tolist()
        made = bench.generated(mean, test)
        scores[f"generated_{size}"], scores[f"nearest_{size}"] = made["generated"], made["nearest_update"]
    return scores


def summary(document: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each (epsilon, organizations): means over rules, then mean and 95 % interval over seeds."""
    rows = []
    for epsilon in EPSILONS:
        runs = [run for run in document["runs"] if run["epsilon"] == epsilon]
        for size in SIZES if runs else ():
            row: dict[str, Any] = {"epsilon": epsilon, "organizations": size, "seeds": len(runs)}
            for name in ("tiny", "generated", "nearest"):
                row[name] = rounded([float(np.mean(run[f"{name}_{size}"])) for run in runs])
            row["pgr"] = rounded([pgr(run, size) for run in runs])
            rows.append(row)
    return rows


def pgr(run: dict[str, Any], size: int) -> float:
    """Of the means over rules."""
    return recovered(run[f"generated_{size}"], run["tiny_1"], run["llm_ceiling"])


def rounded(values: list[float]) -> list[float]:
    """[mean, half width of the 95 % interval] over seeds."""
    return [round(value, 4) for value in interval(values)]


def plot(document: dict[str, Any], path: Path) -> None:
    """Accuracy and PGR over epsilon, one line for each number of organizations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = document["summary"]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for size, colour, aside in zip(SIZES, ("#b4531f", "#1f6feb", "#1a7f37"), (0.96, 1.0, 1.04), strict=True):
        mine = [row for row in rows if row["organizations"] == size]
        x = [row["epsilon"] * aside for row in mine]  # side by side, so that no interval hides another
        label = f"{size} organization{'s' if size > 1 else ''}"
        for axis, name, style in ((left, "generated", "-o"), (left, "tiny", "--s"), (right, "pgr", "-o")):
            mean, width = zip(*(row[name] for row in mine), strict=True)
            what = {"generated": "generated LLM", "tiny": "TinyLM", "pgr": "PGR"}[name]
            text = f"{what}, {label}" if axis is left else label
            axis.errorbar(x, mean, yerr=width, fmt=style, color=colour, label=text, capsize=3, markersize=4)
    for axis, what in ((left, "accuracy on private test rows"), (right, "performance gap recovered")):
        axis.set_xscale("log", base=2)
        axis.set_xticks(EPSILONS, [f"{epsilon:g}" for epsilon in EPSILONS])
        axis.set_xlabel(f"epsilon of a row for the whole run (delta {DELTA:g})")
        axis.set_ylabel(what)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
    left.set_ylim(0.4, 1.03)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/dp_accuracy.json"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rules", type=int, default=8, help="rules for each seed")
    parser.add_argument("--plot", type=Path, metavar="JSON", help="only draw what this file holds")
    options = parser.parse_args()
    if options.plot is not None:
        plot(json.loads(options.plot.read_text()), options.plot.with_suffix(".png"))
        return
    bench = Bench.shipped()
    document: dict[str, Any] = {"checkpoint_sha256": bench.transformer.sha256, "delta": DELTA, "rows": ROWS, "runs": []}
    if options.out.exists():
        document = json.loads(options.out.read_text())
    done = {(run["seed"], run["epsilon"]) for run in document["runs"]}
    for seed in range(options.seeds):
        rules = rules_of(seed, options.rules)
        ceiling: list[float] | None = None
        for epsilon in EPSILONS:
            if (seed, epsilon) in done:
                continue
            began = time.monotonic()
            if ceiling is None:
                ceiling = bench.plain(rules, seed)["llm_ceiling"]
            run: dict[str, Any] = {"seed": seed, "epsilon": epsilon, "rules": [rule.name for rule in rules]}
            run |= {"llm_ceiling": ceiling, **measure(bench, rules, epsilon, seed)}
            run["seconds"] = round(time.monotonic() - began, 1)
            document["runs"].append(run)
            document["summary"] = summary(document)
            write_whole(options.out, json.dumps(document, indent=1))
            print(f"seed {seed} epsilon {epsilon:g}:", {s: round(pgr(run, s), 3) for s in SIZES}, flush=True)


if __name__ == "__main__":
    main()
