"""Build the table that ``gradtf audit what-if`` reads accuracies from: a few means of the committed measurements.

python -m experiments.expected_accuracy
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.evaluate_transformer import DELTA, MEMBERS, ROWS, TEST_ROWS
from gradtf_fl.privacy.what_if import EXPECTED_ACCURACY
from gradtf_fl.training.stacked import DpRecipe

SOURCE = Path(__file__).parent / "results" / "grad_transformer.json"


def table(results: dict[str, Any]) -> dict[str, Any]:
    """The asset's content from the content of results/grad_transformer.json: rules that were seen in curation."""
    seen = results["rows"]["seen"]
    recipe = DpRecipe()
    points = []
    for key, means in seen.items():
        kind, _, epsilon = key.partition("_")
        if kind == "epsilon" and epsilon.replace(".", "").isdigit():
            for organizations, tiny, generated in (
                (1, "tiny_tuned", "generated_one"),
                (MEMBERS, "tiny_five", "generated_five"),
            ):
                point = {"tiny": means[tiny], "generated": means[generated]}
                points.append({"epsilon": float(epsilon), "organizations": organizations, **point})
    plain, rules = seen["plain"], len(seen["rules"])
    return {
        "source": f"experiments/results/{SOURCE.name}",
        "checkpoint_sha256": results["checkpoint_sha256"],
        "task": f"House Rules, mean of {rules} rules seen in curation, {TEST_ROWS} test rows each, one seed",
        "conditions": {
            "rows": ROWS,
            "batch": recipe.batch,
            "rounds": recipe.rounds,
            "steps": recipe.steps,
            "delta": DELTA,
            "clip": recipe.clip,
            "rate": recipe.rate,
        },
        "untuned": {"tiny": plain["tiny_base"], "llm": plain["llm_base"]},
        "without_dp": {"tiny": plain["tiny_tuned"], "generated": plain["generated"], "llm": plain["llm_ceiling"]},
        "points": sorted(points, key=lambda point: (point["organizations"], point["epsilon"])),
    }


def main() -> None:
    EXPECTED_ACCURACY.write_text(json.dumps(table(json.loads(SOURCE.read_text())), indent=1) + "\n")
    print(f"wrote {EXPECTED_ACCURACY}")


if __name__ == "__main__":
    main()
