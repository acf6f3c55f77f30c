"""The least that a server could spend on a round here: its bytes through this machine's own AES, SHA and addition.

Counted, each in the same process as the server itself and over as many bytes: SHA-256 of every masked vector, as its
signature needs it; every vector unpacked and added; every mask that is left made by the faster of AES-256-CTR and
AES-256-GCM, and added. Each step runs in chunks that stay in the second-level cache and does nothing else. Not counted:
signatures, key agreements, shares, votes, and the sum's way from words to numbers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from experiments.bench.secagg_round import BITS, MeasuredRound
from experiments.measuring import cpu_seconds
from gradtf_fl.round_messages import Stage
from gradtf_fl.secagg import CHUNK_BYTES, packed_size

CHUNK = CHUNK_BYTES // 4  # words


@dataclass(frozen=True)
class ServerFloor:
    """CPU seconds of each step; the least of several runs.

    Attributes:
        sha: SHA-256 of all masked vectors.
        fold: all of them unpacked and added.
        masks: all masks made and added.
    """

    sha: float
    fold: float
    masks: float

    @property
    def seconds(self) -> float:
        """All steps."""
        return self.sha + self.fold + self.masks

    @classmethod
    def measure(cls, vectors: int, masks: int, dim: int, runs: int) -> ServerFloor:
        """Of ``vectors`` masked vectors [dim] and the weight, at 24 bits, with ``masks`` masks left in their sum."""
        size, total = packed_size(BITS, dim + 1), np.zeros(dim + 1, dtype="<u4")
        received = memoryview(np.random.default_rng(dim).bytes(vectors * size))  # each in memory of its own
        packed = [received[start : start + size] for start in range(0, len(received), size)]
        keys = [os.urandom(32) for _ in range(masks)]
        return cls(
            min(cpu_seconds(lambda: _hash(packed)) for _ in range(runs)),
            min(cpu_seconds(lambda: _fold(packed, total)) for _ in range(runs)),
            min(cpu_seconds(partial(_mask, keys, total, gcm)) for _ in range(runs) for gcm in (False, True)),
        )


def _hash(packed: Sequence[memoryview]) -> None:
    for vector in packed:
        hashlib.sha256(vector).digest()


def _fold(packed: Sequence[memoryview], total: NDArray[np.uint32]) -> None:
    words = np.empty(CHUNK, dtype="<u4")
    for vector in packed:
        for start in range(0, total.size, CHUNK):
            part = total[start : start + CHUNK]
            whole = min(part.size, (len(vector) - 1) // 3 - start)  # the last word has no fourth byte to read
            words[:whole] = np.ndarray(whole, "<u4", vector, 3 * start, (3,))
            np.add(part, words[: part.size], out=part)


def _mask(keys: Sequence[bytes], total: NDArray[np.uint32], gcm: bool) -> None:
    mode = modes.GCM(bytes(12)) if gcm else modes.CTR(bytes(16))
    streams = [Cipher(algorithms.AES256(key), mode).encryptor() for key in keys]
    zeros, out = bytes(CHUNK_BYTES), bytearray(CHUNK_BYTES + 15)
    mask = np.frombuffer(out, dtype="<u4", count=CHUNK)
    for start in range(0, total.size, CHUNK):
        part = total[start : start + CHUNK]
        source = memoryview(zeros)[: part.nbytes]
        for stream in streams:
            stream.update_into(source, out)
            np.add(part, mask[: part.size], out=part)


def measure_against_floor(n: int, dim: int, runs: int) -> tuple[float, ServerFloor]:
    """(CPU seconds of our server from the first masked vector on, the floor), with every tenth of ``n`` dropped.

    Of each stage of the server and of each step of the floor the least of ``runs`` counts. The two take turns, so that
    a machine that slows down slows both.
    """
    round_ = MeasuredRound(n, np.full(dim, 1e-4 / dim**0.5, np.float32)).until("mask")
    survivors = [i for i in range(n) if i % 10]
    masked = [round_.answer("mask", i) for i in survivors]
    stages: list[dict[Stage, float]] = []
    floors: list[ServerFloor] = []
    for _ in range(runs):
        twin = round_.fork()
        for message in masked:
            twin.receive("mask", message)
        twin.close("mask")
        result = twin.run({"mask": set(range(n)) - set(survivors)}, start="consistency")
        assert result.clients == len(survivors)
        stages.append(twin.server_s)
        floors.append(ServerFloor.measure(len(survivors), len(survivors) * (1 + n - len(survivors)), dim, 1))
    least = ServerFloor(*(min(getattr(floor, name) for floor in floors) for name in ("sha", "fold", "masks")))
    return sum(min(seconds[stage] for seconds in stages) for stage in stages[0]), least
