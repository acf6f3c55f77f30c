"""What readings and agreement tuning add to latent refinement, on House Rules without DP.

    python -m experiments.paper.agreement_tuning --out experiments/results/agreement_tuning.json

One organization for each of four rules a seed, drawn, tuned and tested as in preset ``table1``, with as many public
prompts. ``search`` is refinement as it was until then: the update as it is, the search, nothing after it.
``refined`` is what the package does. Its settings were chosen on unseen rules of seeds 0 to 4; seeds 5 to 9 had no
part in it. A second start continues where the first one ended.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.embedded import draw, tune
from experiments.measuring import interval, recovered
from experiments.paper.dp_accuracy import RuleKind, rules_of
from experiments.paper.measures.shipped import accuracy, answer_prompts, as_rows, bench, recipes
from gradtf_fl.files import write_whole
from gradtf_fl.transformer import RefinementRecipe, refine

RULES, ROWS, TEST_ROWS, PROMPTS, STEPS = 4, 1024, 256, 1024, 150
CHOSEN_ON = range(5)
NOW = RefinementRecipe()
SEARCH = replace(NOW, enough=0.5, readings=(), agreement=replace(NOW.agreement, passes=0))


def measure(kind: RuleKind, seed: int) -> dict[str, Any]:
    """Mean accuracy over the rules, and PGR, of both ways."""
    pair, rules = bench().pair, rules_of(seed, RULES, kind)
    tiny_recipe, llm_recipe = recipes(STEPS)
    private, test = draw(rules, ROWS, "private", seed), draw(rules, TEST_ROWS, "test", seed)
    tiny, llm = tune(pair.tiny, private, RULES, tiny_recipe, seed), tune(pair.llm, private, RULES, llm_recipe, seed)
    prompts = [row.prompt for row in as_rows(draw(rules_of(seed, 1), PROMPTS, "public", seed), 1)[0]]
    answered = answer_prompts(pair, tiny, prompts)
    floor, ceiling = accuracy(pair.tiny, tiny, test), accuracy(pair.llm, llm, test)
    run: dict[str, Any] = {"kind": kind, "seed": seed, "floor": floor, "ceiling": ceiling, "pgr": {}}
    for name, recipe in (("search", SEARCH), ("refined", NOW)):
        began = time.process_time()
        found = refine(bench().transformer, pair.llm, tiny, answered, recipe)
        run[f"{name}_cpu_s"] = round((time.process_time() - began) / RULES, 2)
        run[name] = accuracy(pair.llm, found.updates, test)
        run["generated"] = accuracy(pair.llm, found.plain, test)
    for name in ("generated", "search", "refined"):
        run["pgr"][name] = recovered(run[name], floor, ceiling)
    return run


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and half of the 95 % interval over seeds; seeds that settings were chosen on apart from the others."""
    lines = []
    for kind in ("unseen", "seen"):
        for chosen in (True, False):
            part = [run for run in runs if run["kind"] == kind and (run["seed"] in CHOSEN_ON) == chosen]
            if len(part) < 2:
                continue
            line: dict[str, Any] = {"kind": kind, "settings chosen on them": chosen, "seeds": len(part)}
            for name in ("floor", "generated", "search", "refined", "ceiling"):
                line[name] = [round(one, 4) for one in interval([float(np.mean(run[name])) for run in part])]
            for name in ("generated", "search", "refined"):
                line[f"PGR, {name}"] = [round(one, 4) for one in interval([run["pgr"][name] for run in part])]
            lines.append(line)
    return lines


def main() -> None:
    """Measure what is not in the document yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/agreement_tuning.json"))
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    document: dict[str, Any] = {"rules": RULES, "rows": ROWS, "prompts": PROMPTS, "summary": [], "runs": []}
    if options.out.exists():
        document = json.loads(options.out.read_text())
    done = {(run["kind"], run["seed"]) for run in document["runs"]}
    kinds: tuple[RuleKind, ...] = ("unseen", "seen")
    for kind in kinds:
        for seed in range(options.seeds):
            if (kind, seed) in done:
                continue
            document["runs"].append(measure(kind, seed))
            document["summary"] = summary(document["runs"])
            write_whole(options.out, json.dumps(document, indent=1))
            print(kind, seed, document["runs"][-1]["pgr"], flush=True)


if __name__ == "__main__":
    main()
