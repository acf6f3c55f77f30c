"""Audit the DP-SGD trainer at the smallest, the usual and the largest clip, and on a layer of 10^8 coordinates.

    python -m experiments.paper.clip_audit --out experiments/results/clip_audit.json    # 15 minutes of one core

20 seeded audits at each clip, as `gradtf audit empirical --clip C` makes them but smaller, each with its control
without noise; and 20 seeded games on a wide layer (`gradtf_fl.training.wide_audit`), at these clips in turn, each
with and without noise. The bounds of an audit hold together with 95 % confidence, so that of 20 audits of a right
trainer 1 may refute it by chance. What is finished is in the file after each audit, and a second start goes on there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from experiments.paper.audit_power import outcome
from gradtf_fl.files import write_whole
from gradtf_fl.round_messages import MAX_CLIP, MIN_CLIP
from gradtf_fl.training import AuditPlan, WideGame, play_wide, run_audit, wide_size

CLIPS = (MIN_CLIP, 0.5, MAX_CLIP)
SEEDS = 20
EPSILON = 1.0
SMALL: dict[str, int] = {"gradient_canaries": 240, "row_canaries": 24, "rows": 8, "steps": 10, "batch": 136}
WIDE = 10**8


def audited(clip: float, seed: int) -> dict[str, Any]:
    """One audit and its control on the embedded TinyLM."""
    began = time.monotonic()
    plan = AuditPlan.make(epsilon=EPSILON, clip=clip, seed=1000 * seed, **SMALL)
    result = run_audit(plan, lambda *_: None)
    found = outcome(result, time.monotonic() - began)
    return {**found, "clip": clip, "seed": seed, "one_row_changes": result.sensitivity.largest}


def played(size: int, clip: float, seed: int) -> dict[str, Any]:
    """One game on the wide layer, and its control."""
    began = time.monotonic()
    game, control = (play_wide(size, clip, seed, noise=noise) for noise in (True, False))
    return {
        "size": size,
        "clip": clip,
        "seed": seed,
        "claimed": round(game.claimed, 4),
        **_short(game, ""),
        **_short(control, "control_"),
        "largest_row_norm": max(control.row_norms, default=0.0),
        "seconds": round(time.monotonic() - began, 1),
    }


def _short(game: WideGame, prefix: str) -> dict[str, Any]:
    return {
        f"{prefix}correct": game.guesses.correct,
        f"{prefix}made": game.guesses.made,
        f"{prefix}lower_bound": round(game.bound.epsilon, 4),
        f"{prefix}refutes": game.bound.refutes,
    }


def summary(document: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each clip, and one for the wide layer."""
    rows = []
    for clip in CLIPS:
        mine = [run for run in document["audits"] if run["clip"] == clip]
        rows.append(
            {
                "what": f"TinyLM, clip {clip:g}",
                "audits": len(mine),
                "claimed": max((run["claimed"] for run in mine), default=None),
                "greatest_lower_bound": max((run["lower_bound"] for run in mine), default=None),
                "bound_below_claim": sum(run["lower_bound"] < run["claimed"] for run in mine),
                "controls_caught": sum(bool(run["control_caught_by"]) for run in mine),
                "one_row_changes_at_most": max((run["one_row_changes"] for run in mine), default=None),
            }
        )
    wide = document["wide"]
    rows.append(
        {
            "what": "wide layer, the three clips in turn",
            "audits": len(wide),
            "claimed": max((run["claimed"] for run in wide), default=None),
            "greatest_lower_bound": max((run["lower_bound"] for run in wide), default=None),
            "bound_below_claim": sum(run["lower_bound"] < run["claimed"] for run in wide),
            "controls_caught": sum(run["control_refutes"] for run in wide),
            "one_row_changes_at_most": max((run["largest_row_norm"] for run in wide), default=None),
        }
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/clip_audit.json"))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--wide", type=int, default=WIDE, help="coordinates of the wide layer; 0 leaves it out")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing new after so long")
    options = parser.parse_args()
    torch.set_num_threads(1)
    document: dict[str, Any] = {"audits": [], "wide": []}
    if options.out.exists():
        document = json.loads(options.out.read_text())
    audits = {(run["clip"], run["seed"]) for run in document["audits"]}
    games = {run["seed"] for run in document["wide"]}
    until = time.monotonic() + options.seconds

    def keep(kind: str, made: dict[str, Any]) -> None:
        document[kind].append(made)
        document["plan"] = {"epsilon": EPSILON, **SMALL, "seed": "1000 x the run's", "clips": CLIPS}
        document["summary"] = summary(document)
        write_whole(options.out, json.dumps(document, indent=1))
        print(kind, made["clip"], made["seed"], made["lower_bound"], made["control_lower_bound"], flush=True)

    for seed in range(options.seeds):
        for clip in CLIPS:
            if (clip, seed) not in audits and time.monotonic() < until:
                keep("audits", audited(clip, seed))
    for seed in range(options.seeds if options.wide else 0):
        if seed not in games and time.monotonic() < until:
            keep("wide", played(wide_size(options.wide), CLIPS[seed % len(CLIPS)], seed))


if __name__ == "__main__":
    main()
