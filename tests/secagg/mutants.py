"""Mutated bytes, and an account of what became of them."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from gradtf_fl.secagg import ProtocolViolation

EXTREMES = (b"\xff" * 4, bytes(4), b"\0\0\0\1", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\xff\xff")
SLOWEST_S = 1.0


def mutants(pool: Sequence[bytes], rng: random.Random) -> Iterator[bytes]:
    """Endless variations of the messages in ``pool``, never one of them.

    Flipped bits, overwritten and changed numbers, cuts, holes, insertions, doubled regions, and splices of two.
    """
    honest = set(pool)
    while True:
        data = bytearray(rng.choice(pool))
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            at = rng.randrange(len(data) + 1)
            match rng.randrange(12):
                case 0 | 1 | 9 | 10 if at < len(data):
                    data[at] ^= 1 << rng.randrange(8)
                case 2:
                    data[at : at + 4] = rng.choice(EXTREMES)
                case 3:
                    data[at : at + 4] = rng.randrange(16).to_bytes(4, "big")
                case 4:
                    del data[at:]
                case 5:
                    del data[at : at + rng.randrange(1, 40)]
                case 6:
                    data[at:at] = rng.randbytes(rng.randrange(1, 9))
                case 7:
                    data[at:at] = data[at : at + rng.randrange(1, 80)]
                case 8 | 11:
                    other = rng.choice(pool)
                    start = min(at, len(other))
                    end = min(len(other), start + rng.randrange(1, 200))
                    data[start:end] = other[start:end]
        mutant = bytes(data)
        if mutant not in honest:
            yield mutant


def subset(values: Collection[int], rng: random.Random, leave_out: int = 3) -> list[int]:
    """``values`` in increasing order without up to ``leave_out`` of them."""
    gone = set(rng.sample(sorted(values), min(rng.randrange(leave_out + 1), len(values))))
    return [value for value in sorted(values) if value not in gone]


def rearranged(by_member: Mapping[int, bytes], rng: random.Random) -> dict[int, bytes]:
    """A map that decodes: entries left out, exchanged, damaged, or of a member that was not there."""
    out = {member: by_member[member] for member in subset(by_member, rng)}
    for _ in range(rng.randrange(3)):
        if out:
            one, two = rng.choice(sorted(out)), rng.choice(sorted(out))
            out[one], out[two] = out[two], out[one]
    if out and rng.random() < 0.3:
        member = rng.choice(sorted(out))
        value = bytearray(out[member])
        value[rng.randrange(len(value))] ^= 1 << rng.randrange(8)
        out[member] = bytes(value)
    if rng.random() < 0.2:
        out[rng.choice((len(by_member) + 1, rng.randrange(20), 2**32 - 1))] = rng.choice(sorted(by_member.values()))
    return dict(sorted(out.items()))


class Tally:
    """Counts what was tried and what was refused; any other exception than a `ProtocolViolation` passes through.

    Attributes:
        tried, accepted: by target.
        refusals: by class of exception.
        slowest_s: processor seconds of the slowest call.
    """

    def __init__(self) -> None:
        self.tried: Counter[str] = Counter()
        self.accepted: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.slowest_s = 0.0

    def take(self, name: str, call: Callable[[bytes], object], mutant: bytes) -> None:
        self.tried[name] += 1
        start = time.thread_time()
        try:
            call(mutant)
            self.accepted[name] += 1
        except ProtocolViolation as refusal:
            self.refusals[type(refusal).__name__] += 1
        self.slowest_s = max(self.slowest_s, time.thread_time() - start)
        assert self.slowest_s < SLOWEST_S, f"{name} took {self.slowest_s} s for {mutant.hex()}"
