"""A small federation for the tests: seeded identities, one round, and handles on every message."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.secagg import (
    ClientPolicy,
    Identity,
    ReplayRandomness,
    Roster,
    RoundConfig,
    SecAggClient,
    SecAggServer,
    SecureSum,
    default_threshold,
)
from gradtf_fl.secagg.round_secrets import RoundSecrets

DIM = 5


@dataclass
class Federation:
    """``n`` organizations in one round; member i of the roster is ``identities[i]``, ``clients[i]``, ``vectors[i]``."""

    n: int = 4
    bits: int = 24
    dim: int = DIM
    clip: float = 1.0
    max_weight: float = 1.0
    weight_rule: str = "uniform"
    threshold: int | None = None
    policy: ClientPolicy = field(default_factory=lambda: ClientPolicy(n_min=2, allow_two=True, max_weight=1e6))
    seed: bytes = b"federation"

    def __post_init__(self) -> None:
        self.randomness = ReplayRandomness(self.seed)
        made = [Identity.generate(self.randomness) for _ in range(self.n)]
        self.identities = sorted(made, key=lambda identity: identity.public)
        self.roster = Roster(tuple(identity.public for identity in self.identities))
        self.config = self.make_config()
        self.seeds = [self.randomness(32) for _ in range(self.n)]
        self.clients = [self.client(i) for i in range(self.n)]
        self.server = SecAggServer(self.config, self.roster)
        rng = np.random.default_rng(int.from_bytes(self.randomness(4), "big"))
        self.vectors = [rng.normal(size=self.dim).astype(np.float32) for _ in range(self.n)]
        self.weights = [1.0] * self.n

    def make_config(self, **changes: object) -> RoundConfig:
        config = RoundConfig(
            run_id="test",
            round=1,
            attempt=0,
            nonce=self.randomness(32),
            model_hash=bytes(32),
            dim=self.dim,
            bits=self.bits,
            clip=self.clip,
            max_weight=self.max_weight,
            weight_rule=self.weight_rule,  # type: ignore[arg-type]
            roster_hash=self.roster.hash,
            degree=self.n - 1,
            threshold=default_threshold(self.n) if self.threshold is None else self.threshold,
        )
        return replace(config, **changes)  # type: ignore[arg-type]

    def client(self, i: int, config: RoundConfig | None = None, seed: bytes | None = None) -> SecAggClient:
        return SecAggClient(
            config or self.config,
            self.policy,
            self.roster,
            self.identities[i],
            last_round=(0, 0),
            randomness=lambda size: seed or self.seeds[i],
        )

    def reload(self, i: int) -> SecAggClient:
        """A copy of client i, through its stored bytes; the original is not touched."""
        return SecAggClient.from_bytes(self.clients[i].to_bytes(), self.policy, self.roster, self.identities[i])

    def secrets(self, i: int) -> RoundSecrets:
        return RoundSecrets(self.seeds[i], self.config.commitment, i)

    # the stages, each for the members in ``who``; what the server sends out is kept

    def advertise(self, who: Collection[int] | None = None) -> bytes:
        for i in self._who(who):
            self.server.receive_advert(self.clients[i].advertise())
        self.adverts = self.server.close_advertise()
        return self.adverts

    def share(self, who: Collection[int] | None = None) -> list[bytes]:
        for i in self._who(who):
            self.server.receive_shares(self.clients[i].share(self.adverts))
        by_key = self.server.close_share()
        self.deliveries = [by_key.get(key, b"") for key in self.roster.keys]
        return self.deliveries

    def mask(self, who: Collection[int] | None = None) -> bytes:
        for i in self._who(who):
            message = self.clients[i].mask(self.deliveries[i], self.vectors[i], self.weights[i])
            self.server.receive_masked(message)
        self.survivors = self.server.close_mask()
        return self.survivors

    def consistency(self, who: Collection[int] | None = None) -> bytes:
        for i in self._who(who):
            self.server.receive_consistency(self.clients[i].consistency(self.survivors))
        self.votes = self.server.close_consistency()
        return self.votes

    def unmask(self, who: Collection[int] | None = None) -> SecureSum:
        for i in self._who(who):
            self.server.receive_unmask(self.clients[i].unmask(self.votes))
        return self.server.close_unmask()

    def until(self, stage: str) -> Federation:
        """Runs every stage before ``stage`` with everyone."""
        for name in ("advertise", "share", "mask", "consistency", "unmask"):
            if name == stage:
                return self
            getattr(self, name)()
        return self

    def run(self, drop: Mapping[str, Collection[int]], reload_between: bool = False) -> SecureSum:
        """All stages; ``drop``: members that vanish at a stage."""
        alive = set(range(self.n))
        result: object = None
        for name in ("advertise", "share", "mask", "consistency", "unmask"):
            alive -= set(drop.get(name, ()))
            result = getattr(self, name)(sorted(alive))
            if reload_between:
                self.clients = [self.reload(i) for i in range(self.n)]
        assert isinstance(result, SecureSum)
        return result

    def expected(self, members: Collection[int]) -> NDArray[np.float64]:
        """The mean [dim] that must come out bit by bit, from the members' own unmasked integers."""
        quantizer = self.config.quantizer(self.n)
        total = np.zeros(self.dim + 1, dtype=np.int64)
        for i in members:
            words = quantizer.encode(self.vectors[i], self.weights[i], self.secrets(i).rounding_key)
            total += quantizer.integers(np.concatenate(list(words)))
        weight = int(total[-1]) * self.max_weight / quantizer.q_max
        return total[:-1].astype(np.float64) * (quantizer.step / weight)

    def _who(self, who: Collection[int] | None) -> Collection[int]:
        return range(self.n) if who is None else who

    def copy_of_server(self) -> SecAggServer:
        return copy.deepcopy(self.server)
