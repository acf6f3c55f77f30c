"""Tune the embedded pair on every public House Rule: the provider's known tasks (10 minutes of one core).

    python -m experiments.embedded.tune_known_tasks --out build/known-tasks
    python -m experiments.embedded.tune_known_tasks --out build/known-tasks --install   # into the assets

Of each rule the LLM sees rows of public code pairs, half of them with the operation's tag and half without any, as
federations have them. The TinyLM trains for one round of a federation, with the operation's tag, on eight sets of rows;
their mean update is the rule's signature. Eight rules are tuned at once and kept in a file; a killed run continues
after the last of them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from experiments.measuring import PACKAGES, machine, revision
from gradtf_fl.adapters import ASSETS
from gradtf_fl.curation import as_token_rows
from gradtf_fl.files import write_whole
from gradtf_fl.tasks import HiddenTask, TokenRows
from gradtf_fl.tasks import house_rules as hr
from gradtf_fl.training import (
    DpRecipe,
    PlainRecipe,
    StackedAdapters,
    dp_fine_tune_stacked,
    fine_tune_stacked,
    stack_rows,
)
from gradtf_fl.transformer import GradTransformer, TaskLibrary, embedded_checkpoint

AT_ONCE, ROWS, TEST_ROWS, SETS = 8, 1024, 256, 8
RECIPE, SHOWN = PlainRecipe(steps=400, batch=32), (False, True, False)
RESULTS = Path(__file__).parents[1] / "results" / "known_tasks.json"


def rows_of(rule: hr.Rule, rows: int, pool: hr.Pool, seed: int) -> TokenRows:
    """Rows of ``rule``, every other one with its operation shown."""
    rng = np.random.default_rng([seed, 0x4B4E4F57, rule.index])
    pairs = hr.code_pairs(pool)
    pairs = pairs[rng.choice(len(pairs), rows, replace=False)]
    shown = np.zeros((rows, 3), bool)
    shown[::2, 1] = True
    return as_token_rows(hr.encode(np.full(rows, rule.index), pairs[:, 0], pairs[:, 1], shown))


def tune(llm: StackedAdapters, rules: list[hr.Rule], seed: int) -> torch.Tensor:
    """LLM updates float32 [rules, L2, n2]."""
    rows = stack_rows([rows_of(rule, ROWS, "public", seed) for rule in rules])
    seeds = [[seed, rule.index] for rule in rules]
    return fine_tune_stacked(llm, rows, len(rules), RECIPE, seeds, [RECIPE.steps])[0]


def signatures(tiny: StackedAdapters, rules: list[hr.Rule], seed: int) -> torch.Tensor:
    """Mean TinyLM updates float32 [rules, L1, n1] of ``SETS`` organizations each, after a first round without noise."""
    rng = np.random.default_rng([seed, 0x5349474E, rules[0].index])
    tasks = [HiddenTask((rule,), SHOWN) for rule in rules for _ in range(SETS)]
    rows = stack_rows([as_token_rows(task.draw(rng, ROWS, "public")) for task in tasks])
    groups, recipe = range(len(tasks)), DpRecipe(rounds=1)
    updates = dp_fine_tune_stacked(tiny, rows, groups, [0.0] * len(tasks), recipe, [seed, 1, rules[0].index])[0]
    return updates.reshape(len(rules), SETS, *updates.shape[1:]).mean(1)


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
    pair = GradTransformer.load(embedded_checkpoint())
    tiny, llm = (StackedAdapters.load(side.model, side.spec) for side in (pair.source, pair.target))
    rules = list(hr.split_rules()[0])
    parts, marks, accuracy, seconds = [], [], [], 0.0
    for start in range(0, len(rules), AT_ONCE):
        some = rules[start : start + AT_ONCE]
        path = options.out / f"seed-{options.seed}-{start:02d}.safetensors"
        if not path.exists():
            began = time.process_time()
            made = {"updates": tune(llm, some, options.seed), "signatures": signatures(tiny, some, options.seed)}
            made["cpu_seconds"] = torch.tensor(time.process_time() - began)
            save_file({name: tensor.contiguous() for name, tensor in made.items()}, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
        kept = load_file(path)
        parts.append(kept["updates"].half().float())
        marks.append(kept["signatures"].half().float())
        seconds += float(kept["cpu_seconds"])
        test = stack_rows([rows_of(rule, TEST_ROWS, "test", options.seed) for rule in some])
        accuracy += llm.accuracy(llm.initial + parts[-1], test).tolist()
        print(json.dumps({r.name: round(a, 3) for r, a in zip(some, accuracy[start:], strict=True)}), flush=True)
    tokens = torch.stack([tokens_of(rule, options.seed) for rule in rules])
    library = TaskLibrary(torch.cat(parts), torch.cat(marks), tokens)
    record = {
        "seed": options.seed,
        "recipe": {"steps": RECIPE.steps, "batch": RECIPE.batch, "rate": RECIPE.rate, "rows": ROWS, "sets": SETS},
        "sha256": library.sha256,
        "revision": revision(),
        "machine": machine(PACKAGES),
        "cpu_seconds": round(seconds, 1),
        "mean_accuracy": round(float(np.mean(accuracy)), 4),
        "accuracy": {rule.name: round(value, 4) for rule, value in zip(rules, accuracy, strict=True)},
    }
    if options.install:
        library.save(ASSETS / "known-tasks.safetensors")
        write_whole(RESULTS, json.dumps(record, indent=1) + "\n")
    print(f"mean accuracy {record['mean_accuracy']} on {TEST_ROWS} fresh rows of each of {len(rules)} rules")


if __name__ == "__main__":
    main()
