"""Masks: AES-256-CTR keystreams read as little-endian words and added to a vector modulo 2^word.

Words are 16 bits wide for b = 16 and 32 bits for b = 20, 24, 32; sums modulo 2^word are right modulo 2^b.
The loop runs chunk by chunk and key by key inside a chunk: the sum stays in the processor's cache, and every
key's cipher carries its counter from chunk to chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

Words = NDArray[np.uint16] | NDArray[np.uint32]

CHUNK_BYTES = 1 << 17
_SLACK = 15  # update_into may ask for one block less a byte beyond the input
_ZEROS = bytes(CHUNK_BYTES)


def _streams(keys: Sequence[bytes]) -> list[CipherContext]:
    return [Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor() for key in keys]


def add_masks(words: Words, plus: Sequence[bytes] = (), minus: Sequence[bytes] = ()) -> None:
    """words <- words + sum PRG(plus) - sum PRG(minus), in place.

    Args:
        words: little-endian unsigned [size], C-contiguous.
        plus, minus: 32-byte AES keys, each used for this one stream only.
    """
    added, taken = _streams(plus), _streams(minus)
    buffer = bytearray(CHUNK_BYTES + _SLACK)
    stream_words = np.frombuffer(buffer, dtype=words.dtype, count=CHUNK_BYTES // words.itemsize)
    zeros = memoryview(_ZEROS)
    step = CHUNK_BYTES // words.itemsize
    for start in range(0, words.size, step):
        part = words[start : start + step]
        source, mask = zeros[: part.nbytes], stream_words[: part.size]
        for stream in added:
            stream.update_into(source, buffer)
            np.add(part, mask, out=part)
        for stream in taken:
            stream.update_into(source, buffer)
            np.subtract(part, mask, out=part)
