"""One round of gradtf_fl/secagg with every client real, its CPU seconds and bytes counted stage by stage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Self

import numpy as np
from numpy.typing import NDArray

from experiments.measuring import CpuClock, median
from gradtf_fl.round_messages import STAGES, Stage
from gradtf_fl.secagg import (
    ClientPolicy,
    PlayedRound,
    ReplayRandomness,
    SecAggClient,
    SecureSum,
    new_identities,
    packed_size,
    played_config,
    topology,
)

BITS = 24


class MeasuredRound(PlayedRound):
    """``n`` clients and a server at the start of a round, in which every client has the same ``vector`` [dim].

    Attributes:
        shape: degree and thresholds of the graph.
        client_s: CPU seconds by stage and client; "advertise" includes the policy's check of the round.
        server_s: CPU seconds of receiving and closing, by stage.
        bytes_sent, bytes_received: by stage and client.
    """

    def __init__(self, n: int, vector: NDArray[np.float32]) -> None:
        self._reset_counters()
        self.shape = topology(n)
        randomness = ReplayRandomness(b"bench")
        identities = new_identities(n, randomness)
        config = played_config("bench", identities, self.shape, vector.size, randomness(32), bits=BITS)
        seeds = [randomness(32) for _ in range(n)]
        super().__init__(config, ClientPolicy(), identities, seeds, [vector] * n, [1.0] * n)

    def _reset_counters(self) -> None:
        self.client_s: dict[Stage, dict[int, float]] = {stage: defaultdict(float) for stage in STAGES}
        self.server_s: dict[Stage, float] = defaultdict(float)
        self.bytes_sent: dict[Stage, dict[int, int]] = {stage: {} for stage in STAGES}
        self.bytes_received: dict[Stage, dict[int, int]] = {stage: {} for stage in STAGES}

    def fork(self) -> Self:
        """This round between two stages, to be played on without changing this one; its counters start at zero."""
        twin = super().fork()
        twin._reset_counters()
        return twin

    # -- what is measured ---------------------------------------------------------------------------------

    def client(self, i: int) -> SecAggClient:
        with CpuClock() as clock:
            client = super().client(i)
        self.client_s["advertise"][i] += clock.seconds
        return client

    def answer(self, stage: Stage, i: int) -> bytes:
        with CpuClock() as clock:
            message = super().answer(stage, i)
        self.client_s[stage][i] += clock.seconds
        self.bytes_sent[stage][i] = len(message)
        self.bytes_received[stage][i] = len(self.sent.get(stage, {}).get(i, b""))
        return message

    def receive(self, stage: Stage, message: bytes) -> bytes:
        with CpuClock() as clock:
            receipt = super().receive(stage, message)
        self.server_s[stage] += clock.seconds
        return receipt

    def close(self, stage: Stage) -> SecureSum | None:
        with CpuClock() as clock:
            result = super().close(stage)
        self.server_s[stage] += clock.seconds
        return result

    def finish(self, survivors: Collection[int]) -> SecureSum:
        """The stages from "mask" on; all but the ``survivors`` have vanished."""
        return self.run({"mask": set(self.members) - set(survivors)}, start="mask")

    # -- figures ------------------------------------------------------------------------------------------

    def client_total_s(self) -> float:
        """Median over the clients that answered all stages of the CPU seconds of their whole round."""
        return median(sum(self.client_s[stage][i] for stage in STAGES) for i in self.client_s["unmask"])

    def server_total_s(self) -> float:
        """CPU seconds of the server from the first masked vector on."""
        return sum(self.server_s[stage] for stage in STAGES[STAGES.index("mask") :])

    def bytes_beside_the_vector(self, counted: dict[Stage, dict[int, int]]) -> float:
        """Median over clients of the bytes sent or received in all stages, without the packed residues."""
        vector = packed_size(BITS, self.config.dim + 1) if counted is self.bytes_sent else 0
        return median(sum(counted[stage][i] for stage in STAGES) - vector for i in counted["unmask"])

    def is_exact(self, result: SecureSum, members: Collection[int]) -> bool:
        """Whether the sum is, bit by bit, that of what ``members`` encoded."""
        return result.clients == len(members) and np.array_equal(result.mean, self.expected(members))
