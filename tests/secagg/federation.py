"""A small federation for the tests: seeded identities, one round, and handles on every message."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from gradtf_fl.secagg import (
    ClientPolicy,
    PlayedRound,
    ReplayRandomness,
    RoundConfig,
    SecAggClient,
    SecureSum,
    Topology,
    topology,
)
from gradtf_fl.secagg.graph import group_members
from gradtf_fl.secagg.run import new_identities, roster_of

DIM = 5


@dataclass(frozen=True, kw_only=True)
class AnyGraphPolicy(ClientPolicy):
    """All of a `ClientPolicy` but its rules on the graph, so that k-regular rounds of a dozen members can be played."""

    def _graph_reasons(self, config: RoundConfig, n: int, bad: int) -> Iterator[str]:
        return iter(())


@dataclass
class Federation(PlayedRound):
    """``n`` organizations on a roster; number i is ``identities[i]``, ``clients[i]``, ``vectors[i]`` everywhere.

    The graph is that of `topology`; ``threshold`` alone is a complete graph's, ``degree``, ``threshold`` and
    ``quorum`` together make a k-regular one. With ``groups`` above 1 only ``members`` play.
    """

    n: int = 4
    bits: int = 24
    dim: int = DIM
    clip: float = 1.0
    max_weight: float = 1.0
    weight_rule: str = "uniform"
    degree: int | None = None
    threshold: int | None = None
    quorum: int | None = None
    groups: int = 1
    group: int = 0
    attempt: int = 0
    noise_multiplier: float = 0.0
    noisers: int = 0
    policy: ClientPolicy = field(default_factory=lambda: ClientPolicy(n_min=2, allow_two=True, max_weight=1e6))
    seed: bytes = b"federation"

    def __post_init__(self) -> None:
        self.randomness = ReplayRandomness(self.seed)
        identities = new_identities(self.n, self.randomness)
        self.roster = roster_of(identities)
        self.members = group_members(self.roster, self.groups, self.group)
        config = self.make_config()
        self.commitment = config.commitment
        seeds = [self.randomness(32) for _ in range(self.n)]
        rng = np.random.default_rng(int.from_bytes(self.randomness(4), "big"))
        vectors = [rng.normal(size=self.dim).astype(np.float32) for _ in range(self.n)]
        super().__init__(config, self.policy, identities, seeds, vectors, [1.0] * self.n, self.members)

    def shape(self) -> Topology:
        n = len(self.members)
        if self.threshold is None:
            return topology(n)
        if self.degree is None:
            return Topology(n - 1, self.threshold, self.threshold)
        return Topology(self.degree, self.threshold, self.quorum or self.threshold)

    def make_config(self, **changes: object) -> RoundConfig:
        shape = self.shape()
        config = RoundConfig(
            run_id="test",
            round=1,
            attempt=self.attempt,
            nonce=self.randomness(32),
            model_hash=bytes(32),
            dim=self.dim,
            bits=self.bits,
            clip=self.clip,
            max_weight=self.max_weight,
            weight_rule=self.weight_rule,  # type: ignore[arg-type]
            roster_hash=self.roster.hash,
            groups=self.groups,
            group=self.group,
            degree=shape.degree,
            threshold=shape.threshold,
            quorum=shape.quorum,
            noise_multiplier=self.noise_multiplier,
            noisers=self.noisers,
        )
        return replace(config, **changes)  # type: ignore[arg-type]

    def client(self, i: int, config: RoundConfig | None = None, seed: bytes | None = None) -> SecAggClient:
        """Client i as it enters this round, or another one (``config``) or with other secrets (``seed``)."""
        return SecAggClient(
            config or self.config,
            self.policy,
            self.roster,
            self.identities[i],
            last_round=(0, 0),
            randomness=lambda size: seed or self.seeds[i],
        )

    def finish(self, who: Collection[int] | None = None) -> SecureSum:
        """The stage "unmask"."""
        result = self.play("unmask", who)
        assert result is not None
        return result

    def run_reloaded(self, drop: Mapping[str, Collection[int]]) -> SecureSum:
        """`run` with clients that are stored and loaded again after every stage."""

        def reload_all() -> None:
            self.clients = {i: self.reload(i) for i in self.clients}

        return self.run(drop, after_stage=reload_all)
