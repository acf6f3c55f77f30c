"""Masks: AES-256-CTR keystreams read as little-endian words and added to a vector modulo 2^word.

A stream starts at counter 2. That is also where AES-256-GCM's starts under the all-zero nonce (SP 800-38D), so either
mode makes the same bytes; GCM's code in OpenSSL uses wider vector instructions where the processor has them, and a
third more bytes a second come out of it although it computes a tag that nobody asks for. The faster one is taken.

Words are 16 bits wide for b = 16 and 32 bits for b = 20, 24, 32; sums modulo 2^word are right modulo 2^b.
The loop runs chunk by chunk and key by key inside a chunk: the sum stays in the processor's second-level cache,
and every key's cipher carries its counter from chunk to chunk. The cipher and numpy's addition release the
interpreter's lock, so the server sums parts of its keys in threads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

Words = NDArray[np.uint16] | NDArray[np.uint32]

CHUNK_BYTES = 1 << 17  # 64 KiB to 512 KiB are as fast; below, calls cost; above, the second-level cache is left
_BLOCK = 16
_FIRST_COUNTER = 2
_SLACK = _BLOCK - 1  # update_into may ask for one block less a byte beyond the input
_ZEROS = bytes(CHUNK_BYTES)
_WORTH_A_THREAD = 1 << 28  # bytes of keystream: about 40 ms
_WINDOW = 1 << 20  # words that threads sum at a time, each into a vector of its own
_MOST_THREADS = 16  # each holds one cipher (about 0.5 KB) for every key


class MaskStreams:
    """The keystreams of one sum, carried on from chunk to chunk.

    Args:
        plus, minus: 32-byte AES keys of the masks to add and to subtract, each used for this one stream only.
        dtype: little-endian words of 16 or 32 bits.
    """

    def __init__(self, plus: Sequence[bytes], minus: Sequence[bytes], dtype: np.dtype[Any]) -> None:
        stream = _gcm if _gcm_is_faster() else _ctr
        self._added, self._taken = [stream(key) for key in plus], [stream(key) for key in minus]
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


def _ctr(key: bytes) -> CipherContext:
    return Cipher(algorithms.AES256(key), modes.CTR(_FIRST_COUNTER.to_bytes(_BLOCK, "big"))).encryptor()


def _gcm(key: bytes) -> CipherContext:
    return Cipher(algorithms.AES256(key), modes.GCM(bytes(12))).encryptor()


@lru_cache(maxsize=1)
def _gcm_is_faster() -> bool:
    """Which mode is faster on this machine, timed once on 4 MiB each (about a millisecond)."""
    buffer, seconds = bytearray(CHUNK_BYTES + _SLACK), []
    for stream in (_ctr(bytes(32)), _gcm(bytes(32))):
        began = time.perf_counter()
        for _ in range(32):
            stream.update_into(_ZEROS, buffer)
        seconds.append(time.perf_counter() - began)
    return seconds[1] < seconds[0]


def add_masks(
    words: Words, plus: Sequence[bytes] = (), minus: Sequence[bytes] = (), threads: int | None = None
) -> None:
    """words <- words + sum PRG(plus) - sum PRG(minus), in place, each stream from its beginning.

    Args:
        words: little-endian unsigned [size], C-contiguous.
        plus, minus: see `MaskStreams`.
        threads: parts of the keys summed at a time, a window of the words after the other; None is one for every
            processor, as far as the work is worth it.
    """
    if threads is None:
        work = words.nbytes * (len(plus) + len(minus))
        threads = min(os.cpu_count() or 1, work // _WORTH_A_THREAD, _MOST_THREADS)
    if threads <= 1:
        MaskStreams(plus, minus, words.dtype).add_to(words)
        return

    streams = [MaskStreams(plus[number::threads], minus[number::threads], words.dtype) for number in range(threads)]
    totals = [np.empty(min(_WINDOW, words.size), words.dtype) for _ in streams[1:]]
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, words.size, _WINDOW):
            window = words[start : start + _WINDOW]
            others = [total[: window.size] for total in totals]
            for other in others:
                other[:] = 0
            list(pool.map(MaskStreams.add_to, streams, [window, *others]))
            for other in others:
                window += other
