"""Build the table that ``gradtf audit what-if`` reads accuracies from: a few means of the committed measurements.

python -m experiments.embedded.expected_accuracy
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.embedded.evaluate_transformer import DELTA, ROWS, TEST_ROWS
from gradtf_fl.privacy import EXPECTED_ACCURACY
from gradtf_fl.training import DpRecipe

RESULTS = Path(__file__).parents[1] / "results"
WITHOUT_DP = RESULTS / "grad_transformer.json"
PRIVATE = RESULTS / "dp_accuracy.json"


def table(without_dp: dict[str, Any], private: dict[str, Any]) -> dict[str, Any]:
    """The asset's content from those of results/grad_transformer.json and results/dp_accuracy.json: seen rules.

    Raises:
        ValueError: they measure two checkpoints.
    """
    if without_dp["checkpoint_sha256"] != private["checkpoint_sha256"]:
        raise ValueError(f"{WITHOUT_DP.name} and {PRIVATE.name} measure different checkpoints: measure both again")
    recipe, plain = DpRecipe(), without_dp["rows"]["seen"]["plain"]
    seeds, rules = len({run["seed"] for run in private["runs"]}), len(private["runs"][0]["rules"])
    points = [
        {
            "epsilon": row["epsilon"],
            "organizations": row["organizations"],
            "tiny": row["tiny"][0],
            "generated": row["generated"][0],
        }
        for row in private["summary"]
    ]
    return {
        "source": f"experiments/results/{PRIVATE.name}",
        "checkpoint_sha256": private["checkpoint_sha256"],
        "task": f"House Rules, mean of {seeds} seeds with {rules} rules seen in curation each, {TEST_ROWS} test rows",
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
    found = table(json.loads(WITHOUT_DP.read_text()), json.loads(PRIVATE.read_text()))
    EXPECTED_ACCURACY.write_text(json.dumps(found, indent=1) + "\n")
    print(f"wrote {EXPECTED_ACCURACY}")


if __name__ == "__main__":
    main()
