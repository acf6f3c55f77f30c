"""Round 0 of a small federation, played to its proof."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gradtf_fl.round_messages import STAGES
from gradtf_fl.secagg import (
    BeaconProof,
    ClientPolicy,
    PlayedRound,
    ReplayRandomness,
    RoundConfig,
    SamplePlan,
    colluders_in_sample,
    draw_config,
    group_size,
    topology,
)
from gradtf_fl.secagg.run import new_identities, roster_of


class Draw(PlayedRound):
    """Round 0 of ``n`` organizations; `proof` plays it to its end."""

    def __init__(self, n: int = 6, plan: SamplePlan | None = None, seed: bytes = b"draw", attempt: int = 0) -> None:
        randomness = ReplayRandomness(seed)
        identities = new_identities(n, ReplayRandomness(b"identities"))
        config = draw_config(
            roster_of(identities),
            plan or SamplePlan(sample=4),
            topology(n),
            run_id="run",
            attempt=attempt,
            nonce=randomness(32),
            deadline_s=60.0,
        )
        self.own = ClientPolicy()
        seeds = [randomness(32) for _ in range(n)]
        super().__init__(config, self.own.for_beacon(), identities, seeds, [np.zeros(1, np.float32)] * n, [1.0] * n)

    def proof(self, drop: dict[str, list[int]] | None = None) -> BeaconProof:
        """What the server hands out, where the members in ``drop`` vanish at their stage."""
        alive = set(self.members)
        for stage in STAGES:
            alive -= set((drop or {}).get(stage, ()))
            for i in sorted(alive):
                self.receive(stage, self.answer(stage, i))
            if stage != STAGES[-1]:
                self.close(stage)
        return self.server.close_draw()


def sampled_config(draw: Draw, beacon: bytes, round_number: int = 1, **changes: object) -> RoundConfig:
    """A round of the sample that ``beacon`` draws, on the graph that withstands the colluders a sample may hold."""
    plan, policy = SamplePlan.from_canonical(draw.config.dp), draw.own
    size = group_size(plan.sample, plan.groups, 0)
    bad = colluders_in_sample(len(draw.roster), policy.colluders, size, policy.choices(plan.groups))
    shape = topology(size, bad=bad)
    config = RoundConfig(
        run_id="run",
        round=round_number,
        attempt=0,
        nonce=draw.seeds[0],
        model_hash=bytes(31) + b"m",
        dim=5,
        bits=24,
        clip=1.0,
        roster_hash=draw.roster.hash,
        sample=plan.sample,
        beacon=beacon,
        groups=plan.groups,
        degree=shape.degree,
        threshold=shape.threshold,
        quorum=shape.quorum,
    )
    return replace(config, **changes)  # type: ignore[arg-type]
