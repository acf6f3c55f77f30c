"""The whole protocol on one screen: every client and the server in one process, with dropouts at will.

`run_secure_sum` plays a round from vectors to their mean. `PlayedRound` is the round it plays, stage by stage: tests
and benchmarks measure, change or lose its messages one at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.round_messages import STAGES, Stage
from gradtf_fl.secagg.client import SecAggClient
from gradtf_fl.secagg.crypto.primitives import Randomness, system_randomness
from gradtf_fl.secagg.crypto.round_secrets import RoundSecrets
from gradtf_fl.secagg.degree import Topology, topology
from gradtf_fl.secagg.policy import ClientPolicy
from gradtf_fl.secagg.quantization import CHUNK, Floats
from gradtf_fl.secagg.roster import Identity, Roster
from gradtf_fl.secagg.round_config import RoundConfig, WeightRule
from gradtf_fl.secagg.server import SecAggServer, SecureSum
from gradtf_fl.secagg.vectors import encoding_of
from gradtf_fl.secagg.violations import TooFewMembers, TooFewNeighbours


def run_secure_sum(
    vectors: Sequence[Floats],
    weights: Sequence[float] | None = None,
    *,
    clip: float = 1.0,
    max_weight: float = 1.0,
    weight_rule: WeightRule = "uniform",
    bits: int = 24,
    threshold: int | None = None,
    drop: Mapping[str, Collection[int]] | None = None,
    randomness: Randomness = system_randomness,
) -> SecureSum:
    """Weighted mean of ``vectors`` (each [dim]) over the clients that masked theirs.

    >>> import numpy as np
    >>> from gradtf_fl import run_secure_sum
    >>> vectors = [np.array([0.1, 0.2]), np.array([0.3, 0.0]), np.array([0.2, -0.2]), np.array([0.2, 0.4])]
    >>> result = run_secure_sum(vectors, drop={"mask": [3]})  # the last one vanishes before its masked vector is sent
    >>> result.clients
    3
    >>> np.abs(result.mean - [0.2, 0.0]).max() < 1e-5
    np.True_

    Args:
        drop: stage name -> positions in ``vectors`` of the clients that vanish before they answer that stage.

    Raises:
        RoundAborted: too few clients are left after a stage, see `degree.topology`.
    """
    n = len(vectors)
    shape = topology(n) if threshold is None else Topology(n - 1, threshold, threshold)
    identities = new_identities(n, randomness)
    config = played_config(
        "run_secure_sum",
        identities,
        shape,
        vectors[0].size,
        randomness(32),
        bits=bits,
        clip=clip,
        max_weight=max_weight,
        weight_rule=weight_rule,
    )
    policy = ClientPolicy(
        n_min=2, allow_two=True, t_min=config.threshold, max_clip=clip, max_weight=max_weight, max_bits=bits
    )
    seeds = [randomness(32) for _ in range(n)]
    weights = [1.0] * n if weights is None else weights
    return PlayedRound(config, policy, identities, seeds, vectors, weights).run(drop or {})


def new_identities(n: int, randomness: Randomness) -> list[Identity]:
    """``n`` new identities in the order of their roster."""
    return sorted((Identity.generate(randomness) for _ in range(n)), key=lambda identity: identity.public)


def roster_of(identities: Sequence[Identity]) -> Roster:
    """The roster that lists ``identities``."""
    return Roster(tuple(identity.public for identity in identities))


def played_config(
    run_id: str,
    identities: Sequence[Identity],
    shape: Topology,
    dim: int,
    nonce: bytes,
    *,
    bits: int = 24,
    clip: float = 1.0,
    max_weight: float = 1.0,
    weight_rule: WeightRule = "uniform",
) -> RoundConfig:
    """The first attempt at round 1 of a run whose model nobody looks at.

    Args:
        identities: the whole roster.
        shape: degree and thresholds of the graph.
        dim: coordinates of the vectors.
        nonce: 32 bytes.
    """
    return RoundConfig(
        run_id=run_id,
        round=1,
        attempt=0,
        nonce=nonce,
        model_hash=bytes(32),
        dim=dim,
        bits=bits,
        clip=clip,
        max_weight=max_weight,
        weight_rule=weight_rule,
        roster_hash=roster_of(identities).hash,
        degree=shape.degree,
        threshold=shape.threshold,
        quorum=shape.quorum,
    )


class Step(NamedTuple):
    """What the two sides do at one stage.

    Attributes:
        answer: a client and its number -> its message, from what the server sent it for this stage.
        receive: a client's message -> the server's receipt.
        close: ends the stage -> the server's message to each client (by public key) for the next stage, or the sum.
    """

    answer: Callable[[SecAggClient, int], bytes]
    receive: Callable[[bytes], bytes]
    close: Callable[[], Mapping[bytes, bytes] | SecureSum]


class PlayedRound:
    """One round; a client's number is its index on the roster.

    A subclass measures or tampers by overriding `client`, `answer`, `receive` or `close`.

    Attributes:
        seeds: 32 bytes for each number, from which all of a client's secrets are derived.
        vectors: update [dim] for each number.
        weights: weight for each number.
        clients: by number; only the members of the round's group.
        sent: stage -> number -> the server's message, which the client answers at that stage.
        pieces: masked pieces of the clients that masked their vectors, where these have several.
        gone: stage -> clients that left on their own at it, because too few others were left.
    """

    def __init__(
        self,
        config: RoundConfig,
        policy: ClientPolicy,
        identities: Sequence[Identity],
        seeds: Sequence[bytes],
        vectors: Sequence[Floats],
        weights: Sequence[float],
        members: Collection[int] | None = None,
    ) -> None:
        self.config, self.policy, self.identities, self.seeds = config, policy, identities, seeds
        self.vectors, self.weights = vectors, weights
        self.roster = roster_of(identities)
        self.members = tuple(range(len(identities)) if members is None else members)
        self.clients = {i: self.client(i) for i in self.members}
        self.server = SecAggServer(config, self.roster)
        self.sent: dict[str, dict[int, bytes]] = {}
        self.pieces: dict[int, list[bytes]] = {}
        self.gone: dict[str, list[int]] = {}

    def step(self, stage: Stage) -> Step:
        """The protocol: what each client answers, and what the server does with it."""
        server, sent = self.server, self.sent.get(stage, {})
        match stage:
            case "advertise":
                return Step(lambda client, i: client.advertise(), server.receive_advert, server.close_advertise)
            case "share":
                return Step(lambda client, i: client.share(sent[i]), server.receive_shares, server.close_share)
            case "accept":
                return Step(lambda client, i: client.accept(sent[i]), server.receive_accept, server.close_accept)
            case "mask":
                return Step(lambda client, i: self._piece(client, i, sent[i]), server.receive_masked, server.close_mask)
            case "consistency":
                return Step(
                    lambda client, i: client.consistency(sent[i]), server.receive_consistency, server.close_consistency
                )
            case "unmask":
                return Step(lambda client, i: client.unmask(sent[i]), server.receive_unmask, server.close_unmask)

    def _piece(self, client: SecAggClient, i: int, accepted: bytes) -> bytes:
        """The piece that the server collects now. Where there are others they are kept, for it will ask for them."""
        if client.next_stage == "mask" or i not in self.pieces:
            pieces = client.mask(accepted, self.vectors[i], self.weights[i])
            if client.pieces == 1:
                return next(pieces)
            self.pieces[i] = list(pieces)
        return self.pieces[i][self.server.piece or 0]

    # -- a stage ------------------------------------------------------------------------------------------

    def answer(self, stage: Stage, i: int) -> bytes:
        """What client ``i`` sends at ``stage``."""
        return self.step(stage).answer(self.clients[i], i)

    def receive(self, stage: Stage, message: bytes) -> bytes:
        """The server's receipt for ``message``."""
        return self.step(stage).receive(message)

    def close(self, stage: Stage) -> SecureSum | None:
        """The server ends the stage: the sum after the last one, else ``sent`` holds what the clients answer next."""
        out = self.step(stage).close()
        if isinstance(out, SecureSum):
            return out
        following = STAGES[STAGES.index(stage) + 1]
        self.sent[following] = {self.roster.index(key): message for key, message in out.items()}
        return None

    def play(self, stage: Stage, who: Collection[int] | None = None) -> SecureSum | None:
        """The whole stage for the members in ``who`` (None: all of them)."""
        playing = self.members if who is None else who
        for i in playing:
            self.receive(stage, self.answer(stage, i))
        if stage == "mask":
            self.collect_pieces(playing)
        return self.close(stage)

    def collect_pieces(self, who: Collection[int]) -> None:
        """The pieces after the first, from those in ``who``."""
        while self.server.pieces > 1 and self.server.piece is not None:
            self.server.close_piece()
            if self.server.piece is not None:
                for i in sorted(who):
                    self.receive("mask", self.answer("mask", i))

    # -- stages in their order ----------------------------------------------------------------------------

    def until(self, stage: Stage) -> Self:
        """Play every stage before ``stage`` with everyone."""
        for name in STAGES[: STAGES.index(stage)]:
            self.play(name)
        return self

    def run(
        self,
        drop: Mapping[str, Collection[int]],
        start: Stage = STAGES[0],
        after_stage: Callable[[], None] = lambda: None,
    ) -> SecureSum:
        """Play all stages from ``start`` on.

        Args:
            drop: stage -> members that vanish before they answer it.
            after_stage: called whenever a stage is closed.

        Raises:
            RoundAborted: too few clients are left after a stage.
        """
        alive, result = set(self.members), None
        for stage in STAGES:
            alive.difference_update(drop.get(stage, ()))
            if STAGES.index(stage) < STAGES.index(start):
                continue
            for i in sorted(alive):
                try:
                    self.receive(stage, self.answer(stage, i))
                except (
                    TooFewNeighbours,
                    TooFewMembers,
                ):  # this client leaves; the server decides whether enough remain
                    alive.discard(i)
                    self.gone.setdefault(stage, []).append(i)
            if stage == "mask":
                self.collect_pieces(alive)
            result = self.close(stage)
            after_stage()
        assert result is not None
        return result

    # -- copies, and what must come out -------------------------------------------------------------------

    def client(self, i: int) -> SecAggClient:
        """Client ``i`` as it enters the round.

        Raises:
            PolicyViolation: it does not take part in such a round.
        """
        return SecAggClient(
            self.config,
            self.policy,
            self.roster,
            self.identities[i],
            last_round=(0, -1),
            randomness=lambda size: self.seeds[i],
            beacon=self.config.beacon,
        )

    def reload(self, i: int) -> SecAggClient:
        """A copy of client ``i`` through its stored bytes, as it would return in another process."""
        return SecAggClient.from_bytes(self.clients[i].to_bytes(), self.policy, self.roster, self.identities[i])

    def fork(self) -> Self:
        """A copy between two stages that can be played to another end; identities and vectors are shared."""
        twin = copy.copy(self)
        twin.clients = {i: self.reload(i) for i in self.clients}
        twin.server = copy.deepcopy(self.server)
        twin.sent, twin.pieces, twin.gone = (
            dict(self.sent),
            dict(self.pieces),
            {stage: list(left) for stage, left in self.gone.items()},
        )
        return twin

    def secrets(self, i: int) -> RoundSecrets:
        """All secrets of client ``i``."""
        return RoundSecrets(self.seeds[i], self.config.commitment, i)

    def integers(self, members: Collection[int]) -> NDArray[np.int64]:
        """What the unmasked sum over ``members`` must be [words + 1], the weight last."""
        encoding = encoding_of(self.config, len(self.members))
        total = np.zeros(encoding.size + 1, dtype=np.int64)
        for i in members:
            words = encoding.words(self.vectors[i], self.weights[i], self.secrets(i))
            total += encoding.integers(np.concatenate(list(words)))
        return total

    def expected(self, members: Collection[int]) -> NDArray[np.float64]:
        """The mean [dim] that must come out bit by bit, from the members' own unmasked integers."""
        encoding, total = encoding_of(self.config, len(self.members)), self.integers(members)
        chunks = (total[start : min(start + CHUNK, encoding.size)] for start in range(0, encoding.size, CHUNK))
        mean: NDArray[np.float64] = np.concatenate([chunk.copy() for chunk in encoding.totals(chunks)])
        return mean / (int(total[-1]) * self.config.max_weight / encoding.q_max)
