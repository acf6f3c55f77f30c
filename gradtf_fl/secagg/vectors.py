"""From an organization's vector to the words that are masked, and from their sum back: plain, or with noise.

Both encodings end with one more word, the weight. `encoding_of` is the only place that knows which one a round uses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.secagg.crypto.masks import Words
from gradtf_fl.secagg.crypto.primitives import USAGE_ROTATION, digest
from gradtf_fl.secagg.crypto.round_secrets import RoundSecrets
from gradtf_fl.secagg.noise.distributed_noise import DistributedNoise
from gradtf_fl.secagg.noise.rotation import Rotation
from gradtf_fl.secagg.quantization import Quantizer, Vector
from gradtf_fl.secagg.round_config import RoundConfig


class VectorEncoding(Protocol):
    """What client and server need to know of an encoding.

    Attributes:
        size: coordinates on the wire, without the weight's.
        q_max: the integer of the largest weight.
    """

    @property
    def size(self) -> int: ...

    @property
    def q_max(self) -> int: ...

    def words(self, vector: Vector, weight: float, secrets: RoundSecrets) -> Iterator[Words]:
        """Words [size + 1] in chunks, to be masked in place; `UpdateRejected` for a vector that has none."""

    def integers(self, words: Words) -> NDArray[np.int64]:
        """Signed integers [size + 1] of summed words modulo 2^b."""

    def totals(self, integers: Iterable[NDArray[np.int64]]) -> Iterator[NDArray[np.float64]]:
        """The weighted sum [dim] of the clipped vectors (and their noise) from integers [size], chunk by chunk.

        A chunk has `CHUNK` coordinates, the last one fewer; it may be changed in place and is valid until the next one
        is asked for.
        """

    def largest(self, clients: int) -> int:
        """Magnitude that no integer of a sum over this many honest clients exceeds (but with probability 2^-60)."""

    def noise_norm(self, clients: int) -> float:
        """L2 norm that the noise of this many clients adds to their sum, at most (but with probability 2^-60)."""


@dataclass(frozen=True)
class PlainEncoding:
    """Fixed point, weighted, without noise."""

    quantizer: Quantizer
    size: int

    @property
    def q_max(self) -> int:
        return self.quantizer.q_max

    def words(self, vector: Vector, weight: float, secrets: RoundSecrets) -> Iterator[Words]:
        return self.quantizer.encode(vector, weight, secrets.rounding_key)

    def integers(self, words: Words) -> NDArray[np.int64]:
        return self.quantizer.integers(words)

    def totals(self, integers: Iterable[NDArray[np.int64]]) -> Iterator[NDArray[np.float64]]:
        for chunk in integers:
            total = chunk.astype(np.float64)
            total *= self.quantizer.step
            yield total

    def largest(self, clients: int) -> int:
        return clients * self.q_max

    def noise_norm(self, clients: int) -> float:
        return 0.0


@dataclass(frozen=True)
class NoisyEncoding:
    """Rotated fixed point with a share of Skellam noise; weight 1 only."""

    noise: DistributedNoise
    rotation_seed: bytes

    @property
    def size(self) -> int:
        return self.noise.padded

    @property
    def q_max(self) -> int:
        return self.noise.q_max

    def words(self, vector: Vector, weight: float, secrets: RoundSecrets) -> Iterator[Words]:
        return self.noise.encode(
            vector,
            rotation_seed=self.rotation_seed,
            rounding_key=secrets.rounding_key,
            noise_key=secrets.noise_key,
        )

    def integers(self, words: Words) -> NDArray[np.int64]:
        return self.noise.integers(words)

    def totals(self, integers: Iterable[NDArray[np.int64]]) -> Iterator[NDArray[np.float64]]:
        return Rotation(self.noise.dim, self.rotation_seed).restore_chunks(integers, self.noise.step)

    def largest(self, clients: int) -> int:
        return (1 << (self.noise.bits - 1)) - 1 - (self.noise.parties - clients) * self.q_max

    def noise_norm(self, clients: int) -> float:
        deviation = self.noise.step * math.sqrt(clients * self.noise.variance)
        return deviation * (math.sqrt(self.size) + 10)


def encoding_of(config: RoundConfig, members: int) -> VectorEncoding:
    """The encoding of a round of ``members`` organizations.

    Raises:
        ValueError: the round's bits are too few for this many organizations or for its noise.
    """
    if config.noise_multiplier == 0:
        return PlainEncoding(Quantizer(config.bits, members, config.clip, config.max_weight, config.dim), config.dim)
    seed = digest(USAGE_ROTATION, config.commitment)
    return NoisyEncoding(distributed_noise(config, members), seed)


def distributed_noise(config: RoundConfig, members: int) -> DistributedNoise:
    """The noise layer of a round that has one; ValueError as for `encoding_of`."""
    return DistributedNoise(config.bits, members, config.clip, config.dim, config.noise_multiplier, config.noisers)
