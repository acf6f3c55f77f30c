"""Tune the embedded LLM on every public House Rule: the provider's known tasks (10 minutes of one core).

    python -m experiments.tune_known_tasks --out build/known-tasks
    python -m experiments.tune_known_tasks --out build/known-tasks --install   # into gradtf_fl/assets, with the figures

Of each rule the LLM sees rows of public code pairs, half of them with the operation's tag and half without any, as
federations have them. Eight rules are tuned at once and kept in a file; a killed run goes on after the last of them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from experiments.benchmark import machine
from experiments.runner import PACKAGES, revision
from gradtf_fl.baselines.interface import PairSide
from gradtf_fl.cli.whole_file import write_whole
from gradtf_fl.curation.shadow import as_token_rows
from gradtf_fl.models import ASSETS
from gradtf_fl.tasks import house_rules as hr
from gradtf_fl.tasks.rows import TokenRows
from gradtf_fl.training.stacked import PlainRecipe, fine_tune_stacked, stack_rows
from gradtf_fl.transformer import GradTransformer, embedded_checkpoint
from gradtf_fl.transformer.known_tasks import TaskLibrary

AT_ONCE, ROWS, TEST_ROWS = 8, 1024, 256
RECIPE = PlainRecipe(steps=400, batch=32)
RESULTS = Path(__file__).parent / "results" / "known_tasks.json"


def rows_of(rule: hr.Rule, rows: int, pool: hr.Pool, seed: int) -> TokenRows:
    """Rows of ``rule``, every other one with its operation shown."""
    rng = np.random.default_rng([seed, 0x4B4E4F57, rule.index])
    pairs = hr.code_pairs(pool)
    pairs = pairs[rng.choice(len(pairs), rows, replace=False)]
    shown = np.zeros((rows, 3), bool)
    shown[::2, 1] = True
    return as_token_rows(hr.encode(np.full(rows, rule.index), pairs[:, 0], pairs[:, 1], shown))


def tune(llm: PairSide, rules: list[hr.Rule], seed: int) -> torch.Tensor:
    """LLM updates float32 [rules, L2, n2]."""
    rows = stack_rows([rows_of(rule, ROWS, "public", seed) for rule in rules])
    seeds = [[seed, rule.index] for rule in rules]
    return fine_tune_stacked(llm.stack, rows, len(rules), RECIPE, seeds, [RECIPE.steps])[0]


def tokens_of(rule: hr.Rule, seed: int) -> torch.Tensor:
    """Which tokens the rule's public prompts hold, bool [V]."""
    held = torch.zeros(len(hr.VOCABULARY), dtype=torch.bool)
    held[rows_of(rule, ROWS, "public", seed).input_ids[:, : hr.PROMPT_TOKENS].unique()] = True
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/known-tasks"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--install", action="store_true", help="into gradtf_fl/assets and experiments/results")
    options = parser.parse_args()
    torch.set_num_threads(1)  # small products: a second thread mostly waits
    options.out.mkdir(parents=True, exist_ok=True)
    side = GradTransformer.load(embedded_checkpoint()).target
    llm = PairSide.load(side.model, side.spec)
    rules, began = list(hr.split_rules()[0]), time.process_time()
    parts, accuracy = [], []
    for start in range(0, len(rules), AT_ONCE):
        some = rules[start : start + AT_ONCE]
        path = options.out / f"seed-{options.seed}-{start:02d}.safetensors"
        if not path.exists():
            save_file({"updates": tune(llm, some, options.seed).contiguous()}, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
        parts.append(load_file(path)["updates"].half().float())
        test = stack_rows([rows_of(rule, TEST_ROWS, "test", options.seed) for rule in some])
        accuracy += llm.stack.accuracy(llm.stack.initial + parts[-1], test).tolist()
        print(json.dumps({r.name: round(a, 3) for r, a in zip(some, accuracy[start:], strict=True)}), flush=True)
    library = TaskLibrary(torch.cat(parts), torch.stack([tokens_of(rule, options.seed) for rule in rules]))
    record = {
        "seed": options.seed,
        "recipe": {"steps": RECIPE.steps, "batch": RECIPE.batch, "rate": RECIPE.rate, "rows": ROWS},
        "sha256": library.sha256,
        "revision": revision(),
        "machine": machine(PACKAGES),
        "cpu_seconds": round(time.process_time() - began, 1),
        "mean_accuracy": round(float(np.mean(accuracy)), 4),
        "accuracy": {rule.name: round(value, 4) for rule, value in zip(rules, accuracy, strict=True)},
    }
    if options.install:
        library.save(ASSETS / "known-tasks.safetensors")
        write_whole(RESULTS, json.dumps(record, indent=1) + "\n")
    print(f"mean accuracy {record['mean_accuracy']} on {TEST_ROWS} fresh rows of each of {len(rules)} rules")


if __name__ == "__main__":
    main()
