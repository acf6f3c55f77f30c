"""One round of gradtf_fl/secagg with every client real, its CPU seconds and bytes counted stage by stage."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from experiments.measuring import CpuClock, median
from gradtf_fl.secagg import (
    STAGES,
    ClientPolicy,
    Identity,
    ReplayRandomness,
    Roster,
    RoundConfig,
    RoundSecrets,
    SecAggClient,
    SecAggServer,
    SecureSum,
    encoding_of,
    packed_size,
    topology,
)

BITS = 24


class MeasuredRound:
    """``n`` clients and a server at the start of a round of ``dim`` coordinates; client i is member i of the roster.

    Attributes:
        client_s: CPU seconds by stage and client; "advertise" includes the policy's check of the round.
        server_s: CPU seconds of receiving and closing, by stage.
        sent, received: bytes by stage and client.
    """

    def __init__(self, n: int, dim: int) -> None:
        randomness = ReplayRandomness(b"bench")
        self._identities = sorted((Identity.generate(randomness) for _ in range(n)), key=lambda one: one.public)
        self.roster = Roster(tuple(identity.public for identity in self._identities))
        self.shape = topology(n)
        self.config = RoundConfig(
            run_id="bench",
            round=1,
            attempt=0,
            nonce=randomness(32),
            model_hash=bytes(32),
            dim=dim,
            bits=BITS,
            clip=1.0,
            roster_hash=self.roster.hash,
            degree=self.shape.degree,
            threshold=self.shape.threshold,
            quorum=self.shape.quorum,
        )
        self._policy = ClientPolicy()
        self.seeds = [randomness(32) for _ in range(n)]
        self.client_s: dict[str, dict[int, float]] = defaultdict(dict)
        self.server_s: dict[str, float] = defaultdict(float)
        self.sent: dict[str, dict[int, int]] = defaultdict(dict)
        self.received: dict[str, dict[int, int]] = defaultdict(dict)
        self.server = SecAggServer(self.config, self.roster)
        self._inbox: dict[int, bytes] = {}
        self._clients = {i: self._client(i) for i in range(n)}

    def _client(self, i: int) -> SecAggClient:
        with CpuClock() as clock:
            client = SecAggClient(
                self.config,
                self._policy,
                self.roster,
                self._identities[i],
                last_round=(0, 0),
                randomness=lambda size: self.seeds[i],
            )
        self.client_s["advertise"][i] = clock.seconds
        return client

    def reloaded(self, i: int) -> SecAggClient:
        """Client i through its stored state, as it would come back in another process."""
        return SecAggClient.from_bytes(self._clients[i].to_bytes(), self._policy, self.roster, self._identities[i])

    def fork(self) -> MeasuredRound:
        """This round between two stages, to be played on without changing this one; its clocks start at zero."""
        twin = copy.copy(self)
        twin._clients = {i: self.reloaded(i) for i in self._clients}
        twin.server = copy.deepcopy(self.server)
        twin.client_s, twin.server_s = defaultdict(dict), defaultdict(float)
        twin.sent, twin.received = defaultdict(dict), defaultdict(dict)
        return twin

    # -- playing ------------------------------------------------------------------------------------------

    def answer(self, stage: str, client: SecAggClient, i: int, vector: NDArray[np.float32]) -> bytes:
        """What client i sends at ``stage``, from what the server sent it last."""
        match stage:
            case "advertise":
                return client.advertise()
            case "share":
                return client.share(self._inbox[i])
            case "mask":
                return client.mask(self._inbox[i], vector)
            case "consistency":
                return client.consistency(self._inbox[i])
        return client.unmask(self._inbox[i])

    def play(self, stage: str, who: Collection[int], vector: NDArray[np.float32]) -> SecureSum | None:
        """The clients in ``who`` answer, each with the same vector; the server closes the stage."""
        receive = {
            "advertise": self.server.receive_advert,
            "share": self.server.receive_shares,
            "mask": self.server.receive_masked,
            "consistency": self.server.receive_consistency,
            "unmask": self.server.receive_unmask,
        }[stage]
        seconds, clock = self.client_s[stage], CpuClock()
        for i in who:
            with CpuClock() as own:
                message = self.answer(stage, self._clients[i], i, vector)
            seconds[i] = seconds.get(i, 0.0) + own.seconds
            self.received[stage][i], self.sent[stage][i] = len(self._inbox.get(i, b"")), len(message)
            with clock:
                receive(message)
        with clock:
            result = self._close(stage)
        self.server_s[stage] += clock.seconds
        return result

    def _close(self, stage: str) -> SecureSum | None:
        outbox: Mapping[bytes, bytes] = {}
        match stage:
            case "advertise":
                outbox = self.server.close_advertise()
            case "share":
                outbox = self.server.close_share()
            case "mask":
                outbox = self.server.close_mask()
            case "consistency":
                outbox = self.server.close_consistency()
            case "unmask":
                return self.server.close_unmask()
        self._inbox = {self.roster.index(key): message for key, message in outbox.items()}
        return None

    def until_mask(self, vector: NDArray[np.float32]) -> MeasuredRound:
        """Adverts and shares of all clients."""
        for stage in STAGES[:2]:
            self.play(stage, range(len(self.roster)), vector)
        return self

    def finish(self, survivors: Collection[int], vector: NDArray[np.float32]) -> SecureSum:
        """The stages from "mask" on; all but the ``survivors`` have vanished."""
        result = None
        for stage in STAGES[2:]:
            result = self.play(stage, survivors, vector)
        assert result is not None
        return result

    # -- figures ------------------------------------------------------------------------------------------

    def client_total_s(self) -> float:
        """Median over the clients that answered all stages of the CPU seconds of their whole round."""
        return median(sum(self.client_s[stage][i] for stage in STAGES) for i in self.client_s["unmask"])

    def server_total_s(self) -> float:
        """CPU seconds of the server from the first masked vector on."""
        return sum(self.server_s[stage] for stage in STAGES[2:])

    def bytes_beside_the_vector(self, counted: dict[str, dict[int, int]]) -> float:
        """Median over clients of the bytes ``sent`` or ``received`` in all stages, without the packed residues."""
        vector = packed_size(BITS, self.config.dim + 1) if counted is self.sent else 0
        return median(sum(counted[stage][i] for stage in STAGES) - vector for i in counted["unmask"])

    def is_exact(self, result: SecureSum, members: Collection[int], vector: NDArray[np.float32]) -> bool:
        """Whether the decoded sum is, integer by integer, the sum of what ``members`` encoded."""
        encoding = encoding_of(self.config, len(self.roster))
        total = np.zeros(self.config.dim + 1, dtype=np.int64)
        for i in members:
            secrets = RoundSecrets(self.seeds[i], self.config.commitment, i)
            total += encoding.integers(np.concatenate(list(encoding.words(vector, 1.0, secrets))))
        unit = encoding.total(np.ones(1, dtype=np.int64))[0] / result.clients  # integer 1 in the mean
        return result.clients == len(members) and np.array_equal(np.rint(result.mean / unit), total[:-1])
