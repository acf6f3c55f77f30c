"""Packing of b-bit residues, little endian and dense: b = 16, 20, 24, 32 cost 2, 2.5, 3, 4 bytes each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.secagg.masks import Words
from gradtf_fl.secagg.violations import MalformedMessage

BIT_WIDTHS = (16, 20, 24, 32)
_CHUNK = 1 << 15  # residues; a multiple of 4, so that chunks end on byte boundaries


def word_dtype(bits: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    """Type of the words that residues of ``bits`` bits are computed in."""
    return np.dtype("<u2") if bits == 16 else np.dtype("<u4")


def packed_size(bits: int, size: int) -> int:
    """Bytes of ``size`` residues."""
    return (bits * size + 7) // 8


def pack(words: Words, bits: int) -> bytes:
    """The low ``bits`` bits of every word [size], densely packed; unused bits of the last byte are zero.

    A vector may be packed in chunks that are multiples of four words; the last one may have any size.
    """
    if bits in (16, 32):
        return words.tobytes()
    residues = words & np.uint32((1 << bits) - 1)
    if words.size % 4:
        residues = np.concatenate([residues, np.zeros(-words.size % 4, dtype=words.dtype)])
    packed = _pack24(residues) if bits == 24 else _pack20(residues)
    return packed[: packed_size(bits, words.size)].tobytes()


def _pack24(residues: NDArray[Any]) -> NDArray[np.uint8]:
    a, b, c, d = (residues[i::4] for i in range(4))
    out = np.empty((a.size, 3), dtype="<u4")
    np.bitwise_or(a, b << 24, out=out[:, 0])
    np.bitwise_or(b >> 8, c << 16, out=out[:, 1])
    np.bitwise_or(c >> 16, d << 8, out=out[:, 2])
    return out.reshape(-1).view(np.uint8)


def _pack20(residues: NDArray[Any]) -> NDArray[np.uint8]:
    pair = residues[0::2].astype("<u8") | (residues[1::2].astype("<u8") << np.uint64(20))
    return np.ascontiguousarray(pair.view(np.uint8).reshape(-1, 8)[:, :5]).reshape(-1)


def unpack_chunks(packed: memoryview, bits: int, size: int) -> Iterator[tuple[slice, Words]]:
    """(slice, words) chunk by chunk; words are right modulo 2^bits, their higher bits are arbitrary.

    Raises:
        MalformedMessage: wrong length, or padding bits that are not zero.
    """
    if len(packed) != packed_size(bits, size):
        raise MalformedMessage(f"{len(packed)} bytes for {size} residues of {bits} bits")
    if bits * size % 8 and packed[-1] >> (bits * size % 8):
        raise MalformedMessage("padding bits are not zero")
    chunk_bytes = _CHUNK * bits // 8
    for start in range(0, size, _CHUNK):
        where = slice(start, min(start + _CHUNK, size))
        part = packed[start * bits // 8 : start * bits // 8 + chunk_bytes]
        yield where, _unpack(part, bits, where.stop - where.start)


def _unpack(part: memoryview, bits: int, size: int) -> Words:
    if bits in (16, 32):
        return np.frombuffer(part, dtype="<u2" if bits == 16 else "<u4")
    groups = -(-size // 4)
    if len(part) < groups * bits // 2:
        part = memoryview(bytes(part).ljust(groups * bits // 2, b"\0"))
    out = np.empty((groups, 4), dtype="<u4")
    if bits == 24:
        a, b, c = (np.frombuffer(part, dtype="<u4")[i::3] for i in range(3))
        out[:, 0] = a
        np.bitwise_or(a >> 24, b << 8, out=out[:, 1])
        np.bitwise_or(b >> 16, c << 16, out=out[:, 2])
        np.right_shift(c, 8, out=out[:, 3])
    else:
        pair = np.zeros((2 * groups, 8), dtype=np.uint8)
        pair[:, :5] = np.frombuffer(part, dtype=np.uint8).reshape(-1, 5)
        both = pair.reshape(-1).view("<u8")
        out[:, 0::2] = _halves(both, 0)
        out[:, 1::2] = _halves(both, 20)
    return out.reshape(-1)[:size]


def _halves(both: NDArray[np.uint64], shift: int) -> NDArray[np.uint32]:
    return ((both >> np.uint64(shift)) & np.uint64(0xFFFFF)).astype("<u4").reshape(-1, 2)
