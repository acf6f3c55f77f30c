"""How many colluders a sample holds, against the bound, and what a server gains that tries many beacons.

    python -m experiments.bench.sampling --out experiments/results/sampling.json      # about a minute

1,000 organizations, 100 a round, a tenth colluding. Every draw is the protocol's own (`gradtf_fl.secagg.sampled`), from
a random beacon. A server that tries B beacons takes the best of B draws: up to 2^10 really drawn, up to 2^20 computed
from the hypergeometric distribution, which the draws are compared with. The bound that organizations use allows a
failure of 2^-40, which no experiment reaches. So the same function is also asked for 1/16, and the share of best draws
that exceed that bound is counted.
"""

from __future__ import annotations

import argparse
import bisect
import hashlib
import json
import math
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.measuring import machine, revision
from gradtf_fl.files import write_whole
from gradtf_fl.secagg import (
    ClientPolicy,
    PlayedRound,
    ReplayRandomness,
    Roster,
    SamplePlan,
    colluders_in_sample,
    draw_config,
    new_identities,
    roster_of,
    sampled,
    topology,
)

PACKAGES = ("cryptography", "numpy")
COARSE_BITS = 4  # a bound that fails once in 16, so that failures can be counted


@dataclass(frozen=True)
class SamplingBench:
    """How much is drawn.

    Attributes:
        organizations: N.
        sample: drawn a round.
        share: of the organizations that collude.
        draws: beacons.
        tried: how many of them a server tries before it takes the best.
        rosters: sizes of rosters whose round 0 is played.
    """

    organizations: int = 1000
    sample: int = 100
    share: float = 0.1
    draws: int = 100_000
    tried: tuple[int, ...] = (1, 2**5, 2**10)
    computed: tuple[int, ...] = (1, 2**5, 2**10, 2**15, 2**20)
    rosters: tuple[int, ...] = (20, 100)


FULL = SamplingBench()
QUICK = SamplingBench(draws=4096, tried=(1, 2**5), rosters=(5,))


def bench_sampling(plan: SamplingBench) -> dict[str, Any]:
    """The document."""
    found = colluders_drawn(plan)
    chances = distribution(plan)
    counts = Counter(found.tolist())
    return {
        "machine": machine(PACKAGES),
        "revision": revision(),
        "organizations": plan.organizations,
        "sample": plan.sample,
        "colluding": math.ceil(plan.share * plan.organizations),
        "draws": plan.draws,
        "mean": float(found.mean()),
        "largest": int(found.max()),
        "histogram": {str(count): counts[count] for count in sorted(counts)},
        "expected": {str(count): round(float(chances[count] * plan.draws), 2) for count in sorted(counts)},
        "chi_squared": chi_squared(found, chances),
        "bounds": {name: _bound(plan, trials) for name, trials in _trials(plan).items()},
        "tried": [_tried(plan, found, chances, trials) for trials in plan.tried],
        "computed": [_computed(plan, chances, trials) for trials in plan.computed],
        "beacons": [_round_0(size) for size in plan.rosters],
    }


def colluders_drawn(plan: SamplingBench) -> NDArray[np.int64]:
    """Colluders in the sample of each beacon [draws]; who colludes is fixed before, as the first of the roster."""
    roster = Roster(tuple(number.to_bytes(32, "big") for number in range(plan.organizations)))
    bad = math.ceil(plan.share * plan.organizations)
    found = np.empty(plan.draws, np.int64)
    for number in range(plan.draws):
        beacon = hashlib.sha256(b"bench/sampling" + number.to_bytes(8, "big")).digest()
        found[number] = bisect.bisect_left(sampled(roster, beacon, 1, plan.sample), bad)
    return found


def distribution(plan: SamplingBench) -> NDArray[np.float64]:
    """P[X = x] of the hypergeometric distribution, x = 0 .. sample."""
    bad, all_ways = math.ceil(plan.share * plan.organizations), math.comb(plan.organizations, plan.sample)
    ways = (math.comb(bad, x) * math.comb(plan.organizations - bad, plan.sample - x) for x in range(plan.sample + 1))
    return np.array([way / all_ways for way in ways])


def chi_squared(found: NDArray[np.int64], chances: NDArray[np.float64]) -> dict[str, float]:
    """Of the draws against the distribution, in cells of at least five expected draws; its mean is ``cells - 1``."""
    expected = chances * len(found)
    kept = expected >= 5
    observed = np.bincount(found, minlength=len(chances))
    cells = [*zip(observed[kept], expected[kept], strict=True), (observed[~kept].sum(), expected[~kept].sum())]
    return {"value": round(float(sum((o - e) ** 2 / e for o, e in cells)), 2), "cells": len(cells)}


def best_of(chances: NDArray[np.float64], trials: int) -> NDArray[np.float64]:
    """P[best of ``trials`` draws = x]: P[X <= x]^trials - P[X < x]^trials, from tails that lose no small number."""
    tail = np.append(np.cumsum(chances[::-1])[::-1], 0.0)  # P[X >= x]
    below = np.exp(trials * np.log1p(-np.minimum(tail, 1 - 1e-16)))
    best: NDArray[np.float64] = below[1:] - below[:-1]
    return best


def _trials(plan: SamplingBench) -> dict[str, int]:
    return {"1": 1, "2^20": 2**20, "of the default policy": ClientPolicy().choices(groups=1)}


def _bound(plan: SamplingBench, trials: int) -> dict[str, Any]:
    c = colluders_in_sample(plan.organizations, plan.share, plan.sample, trials)
    shape = topology(plan.sample, bad=c)
    return {"trials": trials, "colluders": c, "quorum": shape.quorum, "threshold": shape.threshold}


def _tried(plan: SamplingBench, found: NDArray[np.int64], chances: NDArray[np.float64], trials: int) -> dict[str, Any]:
    best = found[: len(found) // trials * trials].reshape(-1, trials).max(axis=1)
    coarse = colluders_in_sample(plan.organizations, plan.share, plan.sample, trials, COARSE_BITS)
    return {
        "trials": trials,
        "servers": len(best),
        "mean_best": round(float(best.mean()), 3),
        "largest_best": int(best.max()),
        "bound": colluders_in_sample(plan.organizations, plan.share, plan.sample, trials),
        "coarse_bound": coarse,
        "above_coarse_bound": round(float((best > coarse).mean()), 4),
        "allowed_above": 2.0**-COARSE_BITS,
        "computed_mean_best": _computed(plan, chances, trials)["mean_best"],
    }


def _computed(plan: SamplingBench, chances: NDArray[np.float64], trials: int) -> dict[str, Any]:
    best = best_of(chances, trials)
    return {
        "trials": trials,
        "mean_best": round(float(best @ np.arange(len(best))), 3),
        "largest_99_percent": int(np.searchsorted(np.cumsum(best), 0.99)),
        "bound": colluders_in_sample(plan.organizations, plan.share, plan.sample, trials),
    }


def _round_0(organizations: int) -> dict[str, Any]:
    """Round 0 of that many organizations in one process, and what its proof costs each of them."""
    randomness = ReplayRandomness(b"bench/sampling")
    identities = new_identities(organizations, randomness)
    roster, policy = roster_of(identities), ClientPolicy()
    shape = topology(organizations)
    config = draw_config(
        roster,
        SamplePlan(max(3, organizations // 10)),
        shape,
        run_id="bench",
        attempt=0,
        nonce=randomness(32),
        deadline_s=600.0,
    )
    seeds = [randomness(32) for _ in range(organizations)]
    zeros = [np.zeros(1, np.float32)] * organizations
    played = PlayedRound(config, policy.for_beacon(), identities, seeds, zeros, [1.0] * organizations)
    started = time.perf_counter()
    played.until("unmask")
    for i in played.members:
        played.receive("unmask", played.answer("unmask", i))
    proof = played.server.close_draw()
    played_s, data = time.perf_counter() - started, proof.encode()
    started = time.perf_counter()
    proof.verified(roster, policy)
    return {
        "organizations": organizations,
        "degree": shape.degree,
        "seconds_of_all": round(played_s, 2),
        "proof_bytes": len(data),
        "verify_seconds": round(time.perf_counter() - started, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the JSON document there")
    parser.add_argument("--quick", action="store_true", help="a few draws, for a look")
    arguments = parser.parse_args()
    document = bench_sampling(QUICK if arguments.quick else FULL)
    text = json.dumps(document, indent=1) + "\n"
    print(text, end="")
    if arguments.out is not None:
        write_whole(arguments.out, text)


if __name__ == "__main__":
    main()
