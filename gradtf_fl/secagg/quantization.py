"""Fixed-point encoding of a clipped vector and its weight, such that no sum of n encodings can wrap.

A client's vector is clipped to L2 norm <= clip, so each coordinate lies in +-clip, and is multiplied by its
weight in (0, max_weight]. With q_max = floor((2^(b-1) - 1) / n) a coordinate v becomes an integer in +-q_max
by unbiased stochastic rounding of v / step, where step = max_weight * clip / q_max, which is about
2 n max_weight clip / 2^b. The sum of n of them stays within +-(2^(b-1) - 1), where two's complement modulo
2^b is exact. The weight is one more coordinate, in steps of max_weight / q_max.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from gradtf_fl.secagg.crypto.masks import Words
from gradtf_fl.secagg.packing import BIT_WIDTHS, word_dtype
from gradtf_fl.secagg.violations import UpdateRejected

CHUNK = 1 << 15  # coordinates: 128 KiB of words, 256 KiB of float64
Floats = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True)
class Quantizer:
    """Encoding of vectors [dim] and weights for a sum over at most ``parties`` clients.

    >>> import numpy as np
    >>> from gradtf_fl import Quantizer
    >>> quantizer = Quantizer(bits=24, parties=3, clip=1.0, max_weight=1.0)
    >>> words = np.concatenate(list(quantizer.encode(np.array([0.5, -0.25]), weight=1.0, rounding_key=bytes(32))))
    >>> (quantizer.integers(words)[:-1] * quantizer.step).round(4).tolist()
    [0.5, -0.25]

    Attributes:
        bits: width b of a residue.
        parties: n, the largest number of summands.
        clip: L2 norm bound of a vector before it is weighted.
        max_weight: largest weight of one client.
    """

    bits: int
    parties: int
    clip: float
    max_weight: float

    def __post_init__(self) -> None:
        if self.bits not in BIT_WIDTHS:
            raise ValueError(f"bits must be one of {BIT_WIDTHS}")
        if self.parties < 1 or self.q_max < 1:
            raise ValueError(f"{self.bits} bits are too few for {self.parties} parties")
        for name, value in (("clip", self.clip), ("max_weight", self.max_weight), ("step", self.step)):
            if not (math.isfinite(value) and value > 0 and math.isfinite(self.q_max / value)):
                raise ValueError(f"{name} must be a positive number, got {value}")
        assert self.parties * self.q_max < 2 ** (self.bits - 1), "a sum could wrap"

    @property
    def q_max(self) -> int:
        """Largest magnitude of one client's integers."""
        return ((1 << (self.bits - 1)) - 1) // self.parties

    @property
    def step(self) -> float:
        """Weighted coordinate of integer 1."""
        return self.max_weight * self.clip / self.q_max

    def encode(self, vector: Floats, weight: float, rounding_key: bytes) -> Iterator[Words]:
        """Words [dim + 1] (two's complement; the last is the weight) of ``vector`` [dim] times ``weight``.

        They come in chunks of `CHUNK` words, which may be changed in place, the last one shorter. The vector is
        scaled down to L2 norm ``clip`` where it is longer. ``rounding_key``: 32 bytes, one use.

        Raises:
            UpdateRejected: wrong type or shape, a coordinate that is not finite, a weight outside
                (0, max_weight].
        """
        if not 0 < weight <= self.max_weight:
            raise UpdateRejected(f"weight {weight} is not in (0, {self.max_weight}]")
        return self._chunks(vector, clip_factor(vector, self.clip), weight, rounding_key)

    def _chunks(self, vector: Floats, clipping: float, weight: float, rounding_key: bytes) -> Iterator[Words]:
        factor, end = clipping * weight / self.step, vector.size
        coins = Cipher(algorithms.AES256(rounding_key), modes.CTR(bytes(16))).encryptor()
        zeros, drawn = bytes(4 * CHUNK), bytearray(4 * CHUNK + 15)  # update_into asks for 15 bytes of slack
        scratch, uniform = np.empty(CHUNK), np.empty(CHUNK)  # reused: fresh ones cost more than the arithmetic
        for start in range(0, end + 1, CHUNK):
            part = vector[start : start + CHUNK]
            size = min(CHUNK, end + 1 - start)
            scaled = scratch[:size]
            np.multiply(part, factor, out=scaled[: part.size], dtype=np.float64)
            if part.size < size:
                scaled[-1] = weight / self.max_weight * self.q_max
            coins.update_into(memoryview(zeros)[: 4 * size], drawn)
            np.multiply(np.frombuffer(drawn, dtype="<u4", count=size), 2.0**-32, out=uniform[:size])
            self._round(scaled, uniform[:size])
            words = np.empty(size, dtype=word_dtype(self.bits))
            words.view("<i2" if self.bits == 16 else "<i4")[:] = scaled
            yield words

    def _round(self, values: NDArray[np.float64], uniform: NDArray[np.float64]) -> None:
        """values <- floor(values + u), u uniform in [0, 1), in place: the expectation stays."""
        values += uniform
        np.floor(values, out=values)
        np.clip(values, -self.q_max, self.q_max, out=values)  # only float64's own rounding ever reaches this

    def integers(self, words: Words) -> NDArray[np.int64]:
        """The signed integers [dim + 1] of summed words modulo 2^b."""
        unused = 8 * words.itemsize - self.bits
        signed = (words << unused).view(f"<i{words.itemsize}") >> unused  # an arithmetic shift extends the sign
        return signed.astype(np.int64)


def clip_factor(vector: Floats, clip: float) -> float:
    """min(1, clip / |vector|_2) for a float vector [dim], without overflow or underflow for any finite one.

    Raises:
        UpdateRejected: not a one-dimensional float array, or a coordinate that is not finite.
    """
    if not isinstance(vector, np.ndarray) or vector.ndim != 1 or vector.dtype not in (np.float32, np.float64):
        raise UpdateRejected("an update vector must be a one-dimensional float32 or float64 array")
    squares = _squares(vector, 1.0)
    largest = 1.0
    if not 1e-200 < squares < 1e200:  # all zero, extreme, or not finite: look closer
        largest = max(float(vector.max(initial=0)), -float(vector.min(initial=0)))
        if not math.isfinite(largest):
            raise UpdateRejected("the update vector has coordinates that are not finite")
        if largest == 0:
            return 1.0
        squares = _squares(vector, largest)
    return min(1.0, clip / largest / math.sqrt(squares))


def _squares(vector: Floats, unit: float) -> float:
    """Sum of (coordinate / unit)^2 in float64."""
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, vector.size, CHUNK):
            part = vector[start : start + CHUNK].astype(np.float64)
            if unit != 1.0:
                part /= unit
            total += float(np.einsum("i,i", part, part))  # @ would wake the BLAS library's threads for 32,768 numbers
    return total
