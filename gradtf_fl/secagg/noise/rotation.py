"""Random rotation before rounding: public random signs, then a blocked orthonormal Walsh-Hadamard transform.

It spreads a vector's norm evenly over its coordinates, so that a small range of integers holds every one of
them (Kairouz, Liu, Steinke 2021, section 4). The rotation H D (D the signs, H the transform) is orthonormal: norms
and sums are kept. It hides nothing: the seed is public.

The transform of a block of 2^k coordinates is a Kronecker product of matrices of at most 16 x 16 entries,
applied one after the other as small matrix products (2 ns a coordinate on one core; butterflies in numpy
take 21). Everything runs in chunks of whole blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from gradtf_fl.secagg.crypto.primitives import KEY_BYTES
from gradtf_fl.secagg.quantization import CHUNK, Floats, Vector, chunks_of

MAX_BLOCK = 1 << 12  # coordinates that are mixed with each other; a protocol constant
_RADIX = 16

assert CHUNK % MAX_BLOCK == 0


def block_size(dim: int) -> int:
    """Coordinates of one block: `MAX_BLOCK`, or the next power of two >= ``dim`` where that is smaller."""
    return min(MAX_BLOCK, 1 << (dim - 1).bit_length())


def padded_size(dim: int) -> int:
    """``dim`` rounded up to a multiple of its `block_size`."""
    return -(-dim // block_size(dim)) * block_size(dim)


@dataclass(frozen=True)
class Rotation:
    """The rotation of vectors [dim], padded with zeros to [padded].

    Attributes:
        dim: coordinates before padding.
        seed: 32 bytes, public; bit i of its AES-256-CTR keystream (lowest bit of a byte first) being 1 flips the
            sign of coordinate i.

    Raises:
        ValueError: dim below 1, or a seed that is not 32 bytes.
    """

    dim: int
    seed: bytes

    def __post_init__(self) -> None:
        if self.dim < 1 or len(self.seed) != KEY_BYTES:
            raise ValueError(f"a rotation needs dim >= 1 and {KEY_BYTES} bytes of seed")

    @property
    def padded(self) -> int:
        """Coordinates of a rotated vector."""
        return padded_size(self.dim)

    def rotate_chunks(self, vector: Vector, factor: float = 1.0) -> Iterator[NDArray[np.float64]]:
        """H D (factor * vector), [padded] in all, in chunks of `CHUNK` coordinates, the last one shorter.

        A chunk may be changed in place and is valid until the next one is asked for.

        Raises:
            ValueError: the vector is not of shape [dim].
        """
        signs, buffers, read = self._signs(), _Buffers(self.padded), 0
        for part in chunks_of(vector):
            start, read = read, read + part.size
            if read != min(start + CHUNK, self.dim):
                break
            values = buffers.values[: min(CHUNK, self.padded - start)]
            np.multiply(part, factor, out=values[: part.size], dtype=np.float64)
            values[part.size :] = 0.0
            _flip(values, signs)
            yield _transformed(values, buffers.spare[: values.size], block_size(self.dim))
        if read != self.dim:
            raise ValueError(f"a vector of shape [{self.dim}] is needed, got another one")

    def rotate(self, vector: Floats) -> NDArray[np.float64]:
        """H D vector: float [dim] -> float64 [padded]; ValueError for another shape."""
        return np.concatenate([chunk.copy() for chunk in self.rotate_chunks(vector)])

    def restore(self, rotated: Floats | NDArray[np.int64], factor: float = 1.0) -> NDArray[np.float64]:
        """D H (factor * rotated) without the padding: the inverse of `rotate`, [padded] -> float64 [dim].

        Raises:
            ValueError: not of shape [padded].
        """
        if rotated.shape != (self.padded,):
            raise ValueError(f"a rotated vector of shape [{self.padded}] is needed, got {list(rotated.shape)}")
        chunks = (rotated[start : start + CHUNK] for start in range(0, self.padded, CHUNK))
        return np.concatenate([chunk.copy() for chunk in self.restore_chunks(chunks, factor)])

    def restore_chunks(
        self, chunks: Iterable[Floats | NDArray[np.int64]], factor: float = 1.0
    ) -> Iterator[NDArray[np.float64]]:
        """`restore` of [padded] coordinates that come in chunks of `CHUNK`, the last one shorter: [dim] in all.

        A chunk may be changed in place and is valid until the next one is asked for.
        """
        signs, buffers, left = self._signs(), _Buffers(self.padded), self.dim
        for part in chunks:
            values = buffers.values[: part.size]
            np.multiply(part, factor, out=values, dtype=np.float64)
            values = _transformed(values, buffers.spare[: part.size], block_size(self.dim))
            _flip(values, signs)
            yield values[:left]
            left -= part.size

    def _signs(self) -> CipherContext:
        return Cipher(algorithms.AES256(self.seed), modes.CTR(bytes(16))).encryptor()


class _Buffers:
    """Two chunks that the passes write alternately."""

    def __init__(self, size: int) -> None:
        self.values, self.spare = np.empty(min(size, CHUNK)), np.empty(min(size, CHUNK))


_SIGNS = 1.0 - 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")


def _flip(values: NDArray[np.float64], signs: CipherContext) -> None:
    """values <- D values for the next ``values.size`` bits of the keystream, in place."""
    random = np.frombuffer(signs.update(bytes(-(-values.size // 8))), dtype=np.uint8)
    values *= _SIGNS[random].reshape(-1)[: values.size]


@lru_cache(maxsize=8)
def _hadamard(size: int) -> NDArray[np.float64]:
    """Orthonormal Walsh-Hadamard matrix [size, size] in Sylvester's order: H[i, j] = (-1)^|i & j| / sqrt(size)."""
    matrix: NDArray[np.float64] = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix /= np.sqrt(size)
    return matrix


def _transformed(values: NDArray[np.float64], spare: NDArray[np.float64], block: int) -> NDArray[np.float64]:
    """H of every block of ``values`` [blocks * block], in one of the two buffers; both are overwritten.

    H_block = H_a (x) ... (x) H_16: each pass transforms one digit of a coordinate's index in base 16.
    """
    stride = 1
    while stride < block:
        size = min(_RADIX, block // stride)
        if stride == 1:
            np.matmul(values.reshape(-1, size), _hadamard(size), out=spare.reshape(-1, size))
        else:
            shape = (-1, size, stride)
            np.matmul(_hadamard(size), values.reshape(shape), out=spare.reshape(shape))
        values, spare = spare, values
        stride *= size
    return values
