"""Fixed-point encoding of a clipped vector and its weight, such that no sum of n encodings can wrap.

A client's vector is clipped to L2 norm <= clip, so each coordinate lies in +-clip, and is multiplied by its
weight in (0, max_weight]. With q_max = floor((2^(b-1) - 1) / n) a coordinate v becomes an integer in +-q_max
by unbiased stochastic rounding of v / step, where step = max_weight * clip / q_max, which is about
2 n max_weight clip / 2^b. The sum of n of them stays within +-(2^(b-1) - 1), where two's complement modulo
2^b is exact. The weight is one more coordinate, in steps of max_weight / q_max.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from gradtf_fl.secagg.crypto.masks import Words
from gradtf_fl.secagg.packing import BIT_WIDTHS, word_dtype
from gradtf_fl.secagg.violations import UpdateRejected

CHUNK = 1 << 15  # coordinates: 128 KiB of words, 256 KiB of float64
Floats = NDArray[np.float32] | NDArray[np.float64]
Vector = Floats | Iterable[Floats]
"""An update vector [dim]: one array, or arrays that follow each other and can be read more than once."""


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
        dim: coordinates that a vector must have; None for any number.
    """

    bits: int
    parties: int
    clip: float
    max_weight: float
    dim: int | None = None

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

    def encode(self, vector: Vector, weight: float, rounding_key: bytes) -> Iterator[Words]:
        """Words [dim + 1] (two's complement; the last is the weight) of ``vector`` [dim] times ``weight``.

        They come in chunks of `CHUNK` words, which may be changed in place, the last one shorter. The vector is
        scaled down to L2 norm ``clip`` where it is longer. ``rounding_key``: 32 bytes, one use.

        Raises:
            UpdateRejected: wrong type or shape, a coordinate that is not finite, a weight outside
                (0, max_weight]; while it is read again, if it has another size by then.
        """
        if not 0 < weight <= self.max_weight:
            raise UpdateRejected(f"weight {weight} is not in (0, {self.max_weight}]")
        found = extent(vector, self.clip)
        if self.dim is not None and found.size != self.dim:
            raise UpdateRejected(f"an update vector of shape [{self.dim}] is needed")
        return self._chunks(vector, found, weight, rounding_key)

    def _chunks(self, vector: Vector, found: Extent, weight: float, rounding_key: bytes) -> Iterator[Words]:
        factor, left = found.factor * weight / self.step, found.size + 1
        coins = Cipher(algorithms.AES256(rounding_key), modes.CTR(bytes(16))).encryptor()
        zeros, drawn = bytes(4 * CHUNK), bytearray(4 * CHUNK + 15)  # update_into asks for 15 bytes of slack
        scratch, uniform = np.empty(CHUNK), np.empty(CHUNK)  # reused: fresh ones cost more than the arithmetic
        for part in itertools.chain(chunks_of(vector), [np.empty(0)] if found.size % CHUNK == 0 else []):
            size = min(CHUNK, left)
            if part.size != min(CHUNK, left - 1):
                raise UpdateRejected("the update vector changed while it was read")
            left -= size
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
        if left:
            raise UpdateRejected("the update vector changed while it was read")

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


class Extent(NamedTuple):
    """What one reading of an update vector finds.

    Attributes:
        size: its coordinates.
        factor: min(1, clip / |vector|_2).
    """

    size: int
    factor: float


def extent(vector: Vector, clip: float) -> Extent:
    """Size and clip factor of a float vector, without overflow or underflow for any finite one.

    Raises:
        UpdateRejected: not one-dimensional float arrays, arrays that can be read only once, or a coordinate that is
            not finite.
    """
    size, squares = _squares(vector, 1.0)
    largest = 1.0
    if not 1e-200 < squares < 1e200:  # all zero, extreme, or not finite: look closer
        largest = _largest(vector)
        if not math.isfinite(largest):
            raise UpdateRejected("the update vector has coordinates that are not finite")
        if largest == 0:
            return Extent(size, 1.0)
        squares = _squares(vector, largest)[1]
    return Extent(size, min(1.0, clip / largest / math.sqrt(squares)))


def chunks_of(vector: Vector, size: int = CHUNK) -> Iterator[Floats]:
    """The coordinates in their order, ``size`` at a time, the last chunk shorter; copied only where arrays meet.

    Raises:
        UpdateRejected: not one-dimensional float arrays, or arrays that can be read only once.
    """
    if isinstance(vector, Iterator):
        raise UpdateRejected("an update vector is read more than once: give the arrays as a list, not as an iterator")
    if not isinstance(vector, Iterable):
        raise UpdateRejected("an update vector must be a float32 or float64 array, or several")
    rest: Floats | None = None
    for part in (vector,) if isinstance(vector, np.ndarray) else vector:
        if not isinstance(part, np.ndarray) or part.ndim != 1 or part.dtype not in (np.float32, np.float64):
            raise UpdateRejected("an update vector must be a one-dimensional float32 or float64 array")
        at = 0
        if rest is not None:
            at = min(size - rest.size, part.size)
            rest = np.concatenate([rest, part[:at]])
            if rest.size < size:
                continue
            yield rest
        for start in range(at, part.size - size + 1, size):
            yield part[start : start + size]
        end = at + (part.size - at) // size * size
        rest = part[end:] if end < part.size else None
    if rest is not None:
        yield rest


def _largest(vector: Vector) -> float:
    """Largest magnitude of a coordinate; not finite where one of them is not."""
    ends = [(float(part.max()), -float(part.min())) for part in chunks_of(vector)]
    return float(np.max(ends)) if ends else 0.0  # unlike max, it keeps a NaN


def _squares(vector: Vector, unit: float) -> tuple[int, float]:
    """(coordinates, sum of (coordinate / unit)^2 in float64)."""
    size, total = 0, 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for chunk in chunks_of(vector):
            part = chunk.astype(np.float64)
            if unit != 1.0:
                part /= unit
            size += part.size
            total += float(np.einsum("i,i", part, part))  # @ would wake the BLAS library's threads for 32,768 numbers
    return size, total
