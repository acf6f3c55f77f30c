"""Audit the real DP-SGD trainer many times: how often a true claim is refuted, and how often its control is caught.

    python -m experiments.paper.audit_power --out experiments/results/empirical_audit.json    # 10 minutes of one core

20 seeded audits for each of epsilon 1, 4 and 8, as `gradtf audit empirical --epsilon E --seed S` makes them. All six
bounds of an audit hold together with 95 % confidence, so that of 60 audits of a right trainer 3 may refute it by
chance. What is finished is in the file after each audit, and a second start continues from there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from gradtf_fl.files import write_whole
from gradtf_fl.training import AuditPlan, AuditResult, Play, run_audit

EPSILONS = (1.0, 4.0, 8.0)
SEEDS = 20


def outcome(result: AuditResult, seconds: float) -> dict[str, Any]:
    """One audit in a few numbers: (correct, made, bound by pair, bound by curve) for each score."""
    plan = result.plan
    return {
        "epsilon": plan.epsilon,
        "seed": plan.seed,
        "plan_sha256": plan.sha256,
        "claimed": round(plan.claimed_epsilon, 4),
        "lower_bound": round(result.audit.lower_bound, 4),
        "refuted_by": result.audit.refuting,
        "control_lower_bound": round(result.control.lower_bound, 4),
        "control_caught_by": result.control.refuting,
        "audit": scores(result.audit),
        "control": scores(result.control),
        "problems": result.problems,
        "seconds": round(seconds, 1),
    }


def scores(play: Play) -> dict[str, list[float]]:
    """(correct, made, bound by pair, bound by curve) for each score."""
    return {
        name: [found.guesses.correct, found.guesses.made, round(found.bound.pair, 4), round(found.bound.curve, 4)]
        for name, found in play.scores.items()
    }


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each epsilon."""
    rows = []
    for epsilon in EPSILONS:
        mine = [run for run in runs if run["epsilon"] == epsilon]
        if mine:
            rows.append(
                {
                    "epsilon": epsilon,
                    "audits": len(mine),
                    "refuted": sum(bool(run["refuted_by"]) for run in mine),
                    "failed": sum(bool(run["problems"]) for run in mine),
                    "greatest_lower_bound": max(run["lower_bound"] for run in mine),
                    "mean_lower_bound": round(sum(run["lower_bound"] for run in mine) / len(mine), 4),
                    "least_control_bound": min(run["control_lower_bound"] for run in mine),
                    "control_caught": {
                        name: sum(name in run["control_caught_by"] for run in mine) for name in mine[0]["control"]
                    },
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/empirical_audit.json"))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    document: dict[str, Any] = {"runs": []}
    if options.out.exists():
        document = json.loads(options.out.read_text())
    done = {(run["epsilon"], run["seed"]) for run in document["runs"]}
    for seed in range(options.seeds):
        for epsilon in EPSILONS:
            if (epsilon, seed) in done:
                continue
            began = time.monotonic()
            plan = AuditPlan.make(epsilon=epsilon, seed=1000 * seed)  # the control takes seed + 1
            result = run_audit(plan, lambda *_: None)
            document["runs"].append({**outcome(result, time.monotonic() - began), "seed": seed})
            document["plan"] = {**plan.to_json(), "epsilon": None, "sigma": None, "seed": "1000 x the run's"}
            document["summary"] = summary(document["runs"])
            write_whole(options.out, json.dumps(document, indent=1))
            last = document["runs"][-1]
            print(f"epsilon {epsilon:g} seed {seed}: bound {last['lower_bound']:.3f}, ", end="")
            print(
                f"control {last['control_lower_bound']:.2f} {last['control_caught_by']} {last['problems']}", flush=True
            )


if __name__ == "__main__":
    main()
