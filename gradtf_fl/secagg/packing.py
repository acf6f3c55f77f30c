"""Packing of b-bit residues, little endian and dense: b = 16, 20, 24, 32 cost 2, 2.5, 3, 4 bytes each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.secagg.crypto.masks import Words
from gradtf_fl.secagg.violations import MalformedMessage

BIT_WIDTHS = (16, 20, 24, 32)
_CHUNK = 1 << 16  # residues; a multiple of 4, so that chunks end on byte boundaries


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
    even = np.append(words, np.zeros(1, words.dtype)) if words.size % 2 else words
    return _pack_pairs(even, bits)[: packed_size(bits, words.size)].tobytes()


def _pack_pairs(words: Words, bits: int) -> NDArray[np.uint8]:
    """Two words of 20 or 24 bits are bits / 4 bytes: the lower four in one write, the rest in another."""
    pairs, low = words.view("<u8"), (1 << bits) - 1
    joined = pairs >> (32 - bits)
    joined &= low << bits
    joined |= pairs & low
    out = np.empty(pairs.size * bits // 4, dtype=np.uint8)
    _column(out, "<u4", 0, bits)[:] = joined
    _column(out, "<u2" if bits == 24 else "u1", 4, bits)[:] = joined >> 32
    return out


def _column(packed: Any, dtype: str, offset: int, bits: int) -> NDArray[Any]:
    """The bytes from ``offset`` on of every pair, as one number each."""
    pair = bits // 4
    return np.ndarray(len(packed) // pair, dtype, packed, offset, (pair,))


def unpack_chunks(packed: memoryview, bits: int, size: int) -> Iterator[tuple[slice, Words]]:
    """(slice, words) chunk by chunk; words are right modulo 2^bits, their higher bits are arbitrary.

    Words are valid until the next chunk is asked for: a fresh 256 KiB for each costs more than unpacking into it.

    Raises:
        MalformedMessage: wrong length, or padding bits that are not zero.
    """
    if len(packed) != packed_size(bits, size):
        raise MalformedMessage(f"{len(packed)} bytes for {size} residues of {bits} bits")
    if bits * size % 8 and packed[-1] >> (bits * size % 8):
        raise MalformedMessage("padding bits are not zero")
    chunk_bytes, buffer = _CHUNK * bits // 8, np.empty(min(_CHUNK, size), dtype="<u4")
    for start in range(0, size, _CHUNK):
        where = slice(start, min(start + _CHUNK, size))
        part = packed[start * bits // 8 : start * bits // 8 + chunk_bytes]
        yield where, _unpack(part, bits, buffer[: where.stop - start])


def _unpack(part: memoryview, bits: int, words: NDArray[np.uint32]) -> Words:
    size = words.size
    if bits in (16, 32):
        return np.frombuffer(part, dtype="<u2" if bits == 16 else "<u4")
    if bits == 24:  # the fourth byte read is the next word's first, which higher bits may hold
        words[:-1] = np.ndarray(size - 1, "<u4", part, 0, (3,))
        words[-1] = int.from_bytes(part[-3:], "little")
        return words
    if size % 2:
        part = memoryview(bytes(part).ljust((size + 1) * bits // 8, b"\0"))
    pairs = _column(part, "<u4", bits // 4 - 4, bits).astype("<u8")
    pairs >>= 32 - bits
    pairs <<= 32
    pairs |= _column(part, "<u4", 0, bits)
    return pairs.view("<u4")[:size]
