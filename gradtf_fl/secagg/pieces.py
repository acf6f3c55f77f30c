"""A masked vector travels in pieces, so that no message is larger than a piece, whatever the vector's size.

Each piece is a message of its own: its number, then the packed words, signed. Nearly every LoRA vector is one piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gradtf_fl.secagg.crypto.masks import Words

PIECE = 1 << 24
"""Words of a piece, 48 MiB at 24 bits; a constant of the protocol. A multiple of 4: packed, it ends with a byte."""


def piece_count(size: int) -> int:
    """Pieces of ``size`` words."""
    return -(-size // PIECE)


def piece_words(number: int, size: int) -> slice:
    """Which of ``size`` words piece ``number`` holds."""
    return slice(number * PIECE, min((number + 1) * PIECE, size))


def cut(chunks: Iterable[Words]) -> Iterator[tuple[int, Words]]:
    """(number of a piece, next words of it) for all words in ``chunks``, in their order, without a copy."""
    at = 0
    for words in chunks:
        start = 0
        while start < words.size:
            taken = min(words.size - start, PIECE - at % PIECE)
            yield at // PIECE, words[start : start + taken]
            start, at = start + taken, at + taken
