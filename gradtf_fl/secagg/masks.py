"""Masks: AES-256-CTR keystreams read as little-endian words and added to a vector modulo 2^word.

Words are 16 bits wide for b = 16 and 32 bits for b = 20, 24, 32; sums modulo 2^word are right modulo 2^b.
The loop runs chunk by chunk and key by key inside a chunk: the sum stays in the processor's cache, and every
key's cipher carries its counter from chunk to chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

Words = NDArray[np.uint16] | NDArray[np.uint32]

CHUNK_BYTES = 1 << 17
_SLACK = 15  # update_into may ask for one block less a byte beyond the input
_ZEROS = bytes(CHUNK_BYTES)


class MaskStreams:
    """The keystreams of one sum, carried on from chunk to chunk.

    Args:
        plus, minus: 32-byte AES keys of the masks to add and to subtract, each used for this one stream only.
        dtype: little-endian words of 16 or 32 bits.
    """

    def __init__(self, plus: Sequence[bytes], minus: Sequence[bytes], dtype: np.dtype[Any]) -> None:
        self._added, self._taken = _streams(plus), _streams(minus)
        self._buffer = bytearray(CHUNK_BYTES + _SLACK)
        self._mask = np.frombuffer(self._buffer, dtype=dtype, count=CHUNK_BYTES // dtype.itemsize)

    def add_to(self, words: Words) -> None:
        """words <- words + sum PRG(plus) - sum PRG(minus) for the NEXT ``words.size`` words of every stream."""
        zeros = memoryview(_ZEROS)
        for start in range(0, words.size, self._mask.size):
            part = words[start : start + self._mask.size]
            source, mask = zeros[: part.nbytes], self._mask[: part.size]
            for stream in self._added:
                stream.update_into(source, self._buffer)
                np.add(part, mask, out=part)
            for stream in self._taken:
                stream.update_into(source, self._buffer)
                np.subtract(part, mask, out=part)


def _streams(keys: Sequence[bytes]) -> list[CipherContext]:
    return [Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor() for key in keys]


def add_masks(words: Words, plus: Sequence[bytes] = (), minus: Sequence[bytes] = ()) -> None:
    """words <- words + sum PRG(plus) - sum PRG(minus), in place, each stream from its beginning.

    Args:
        words: little-endian unsigned [size], C-contiguous.
        plus, minus: see `MaskStreams`.
    """
    MaskStreams(plus, minus, words.dtype).add_to(words)
