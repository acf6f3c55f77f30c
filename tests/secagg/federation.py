"""A small federation for the tests: seeded identities, one round, and handles on every message."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.secagg import (
    STAGES,
    ClientPolicy,
    Identity,
    ReplayRandomness,
    Roster,
    RoundConfig,
    SecAggClient,
    SecAggServer,
    SecureSum,
    TooFewMembers,
    TooFewNeighbours,
    Topology,
    group_members,
    topology,
)
from gradtf_fl.secagg.crypto.round_secrets import RoundSecrets
from gradtf_fl.secagg.vectors import encoding_of

DIM = 5


@dataclass(frozen=True, kw_only=True)
class AnyGraphPolicy(ClientPolicy):
    """All of a `ClientPolicy` but its rules on the graph, so that k-regular rounds of a dozen members can be played."""

    def _graph_reasons(self, config: RoundConfig, n: int) -> Iterator[str]:
        return iter(())


@dataclass
class Federation:
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
        made = [Identity.generate(self.randomness) for _ in range(self.n)]
        self.identities = sorted(made, key=lambda identity: identity.public)
        self.roster = Roster(tuple(identity.public for identity in self.identities))
        self.members = group_members(self.roster, self.groups, self.group)
        self.config = self.make_config()
        self.commitment = self.config.commitment
        self.seeds = [self.randomness(32) for _ in range(self.n)]
        self.clients = {i: self.client(i) for i in self.members}
        self.server = SecAggServer(self.config, self.roster)
        rng = np.random.default_rng(int.from_bytes(self.randomness(4), "big"))
        self.vectors = [rng.normal(size=self.dim).astype(np.float32) for _ in range(self.n)]
        self.weights = [1.0] * self.n
        self.directories: dict[int, bytes] = {}
        self.deliveries: dict[int, bytes] = {}
        self.survivors: dict[int, bytes] = {}
        self.votes: dict[int, bytes] = {}
        self.gone: dict[str, list[int]] = {}

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

    def fork(self) -> Federation:
        """A copy that can be played to another end; identities and vectors are shared."""
        twin = copy.copy(self)
        twin.clients = {i: self.reload(i) for i in self.clients}
        twin.server = copy.deepcopy(self.server)
        twin.gone = dict(self.gone)
        return twin

    def secrets(self, i: int) -> RoundSecrets:
        return RoundSecrets(self.seeds[i], self.commitment, i)

    # -- one stage: answers of the clients, receipt, and what the server sends out, which is kept ----------

    def answer(self, stage: str, i: int) -> bytes:
        client = self.clients[i]
        match stage:
            case "advertise":
                return client.advertise()
            case "share":
                return client.share(self.directories[i])
            case "mask":
                return client.mask(self.deliveries[i], self.vectors[i], self.weights[i])
            case "consistency":
                return client.consistency(self.survivors[i])
        return client.unmask(self.votes[i])

    def receive(self, stage: str, message: bytes) -> bytes:
        server = self.server
        match stage:
            case "advertise":
                return server.receive_advert(message)
            case "share":
                return server.receive_shares(message)
            case "mask":
                return server.receive_masked(message)
            case "consistency":
                return server.receive_consistency(message)
        return server.receive_unmask(message)

    def close(self, stage: str) -> SecureSum | None:
        match stage:
            case "advertise":
                self.directories = self._by_member(self.server.close_advertise())
            case "share":
                self.deliveries = self._by_member(self.server.close_share())
            case "mask":
                self.survivors = self._by_member(self.server.close_mask())
            case "consistency":
                self.votes = self._by_member(self.server.close_consistency())
            case "unmask":
                return self.server.close_unmask()
        return None

    def play(self, stage: str, who: Collection[int] | None = None) -> SecureSum | None:
        """The whole stage for the members in ``who`` (None: all of them)."""
        for i in self.members if who is None else who:
            self.receive(stage, self.answer(stage, i))
        return self.close(stage)

    def until(self, stage: str) -> Federation:
        """Plays every stage before ``stage`` with everyone."""
        for name in STAGES[: STAGES.index(stage)]:
            self.play(name)
        return self

    def finish(self, who: Collection[int] | None = None) -> SecureSum:
        """The stage "unmask"."""
        result = self.play("unmask", who)
        assert result is not None
        return result

    def run(
        self, drop: Mapping[str, Collection[int]], reload_between: bool = False, start: str = STAGES[0]
    ) -> SecureSum:
        """All stages from ``start`` on; ``drop``: members that vanish at a stage.

        A client that finds too few neighbours or members leaves like one that vanishes; ``gone`` names it.
        """
        alive = set(self.members)
        result = None
        for stage in STAGES:
            alive -= set(drop.get(stage, ()))
            if STAGES.index(stage) < STAGES.index(start):
                continue
            for i in sorted(alive):
                try:
                    self.receive(stage, self.answer(stage, i))
                except (TooFewNeighbours, TooFewMembers):
                    alive.discard(i)
                    self.gone.setdefault(stage, []).append(i)
            result = self.close(stage)
            if reload_between:
                self.clients = {i: self.reload(i) for i in self.clients}
        assert result is not None
        return result

    def integers(self, members: Collection[int]) -> NDArray[np.int64]:
        """What the unmasked sum over ``members`` must be, word by word, the weight last."""
        encoding = encoding_of(self.config, len(self.members))
        total = np.zeros(encoding.size + 1, dtype=np.int64)
        for i in members:
            words = encoding.words(self.vectors[i], self.weights[i], self.secrets(i))
            total += encoding.integers(np.concatenate(list(words)))
        return total

    def expected(self, members: Collection[int]) -> NDArray[np.float64]:
        """The mean [dim] that must come out bit by bit, from the members' own unmasked integers."""
        encoding, total = encoding_of(self.config, len(self.members)), self.integers(members)
        return encoding.total(total[:-1]) / (int(total[-1]) * self.max_weight / encoding.q_max)

    def _by_member(self, messages: Mapping[bytes, bytes]) -> dict[int, bytes]:
        return {self.roster.index(key): message for key, message in messages.items()}
