"""Break the masks of Flower's own SecAgg+ (1.41 and 1.42): a server that only listens recovers one client's update.

    python -m experiments.demos.break_flower_masks                      # 20 bits of the seed unknown: a second or two
    python -m experiments.demos.break_flower_masks --seed-space full    # nothing known: about a minute of one core

Why it breaks (flwr/common/secure_aggregation). ``generate_shared_key`` gives the pair key as 44 characters of URL-safe
base64; ``pseudo_rand_gen`` XORs them, four at a time, into one 32-bit word and seeds MT19937 with it. Base64 is ASCII:
the top bit of each of the word's four bytes is 0. What is left is searched, seed by seed: a quantised update lies in
0..target_range, a wrong mask leaves numbers spread over 0..mod_range, so two coordinates settle nearly every seed.

Setting: two clients, every stage played by Flower's own client mod, the server honest but curious. It learns both
clients' private masks, as the protocol means it to; then one pair mask stands between it and each update. That is also
the place of a client whose other neighbours dropped out (the server rebuilds their keys) or collude with the server.
"""

from __future__ import annotations

import argparse
import itertools
import math
import string
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import flwr
import numpy as np
from numpy.typing import NDArray

from experiments.bench import (
    FlowerClient,
    Key,
    Residues,
    ServerView,
    dequantize,
    generate_key_pairs,
    generate_shared_key,
    pair_mask_sign,
    play_round,
    pseudo_rand_gen,
)

Seeds = NDArray[np.uint32]

BASE64 = (string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_").encode()
HEAD = 8  # coordinates that tell the right seed from all others
TESTED_FIRST = 2  # of them, computed for every seed
CHUNK = 1 << 15  # seeds at a time: one word each of their generators stays in the second-level cache
KEY_PAIRS = 64


# -- what a seed can be -----------------------------------------------------------------------------------


def fold(key: bytes) -> int:
    """The 32 bits that ``pseudo_rand_gen`` makes of a key: the XOR of its little-endian words."""
    return int(np.bitwise_xor.reduce(np.frombuffer(key, dtype="<u4")))


@lru_cache
def byte_laws() -> tuple[NDArray[np.float64], ...]:
    """Probability [256] of each value of each byte of the folded word, for base64 of a uniform 32-byte key.

    Byte p is the XOR of the characters p, p + 4, ..., p + 40. Every character comes from bits of the key of its own,
    so convolution under XOR gives the law exactly, and the four bytes are independent.
    """
    alphabets = [BASE64] * 42 + [BASE64[::4], b"="]  # 256 bits: 42 characters of 6, one of 4 (two bits are 0), padding
    laws = []
    for position in range(4):
        law = np.zeros(256)
        law[0] = 1.0
        for characters in alphabets[position::4]:
            law = np.mean([law[np.arange(256) ^ character] for character in characters], axis=0)
        laws.append(law)
    return tuple(laws)


@lru_cache
def byte_values() -> tuple[Seeds, ...]:
    """The values that each byte of the folded word can take."""
    return tuple(np.flatnonzero(law).astype(np.uint32) for law in byte_laws())


@dataclass(frozen=True)
class SeedSpace:
    """A block of the folded words that base64 keys can give, in an order of their own (byte 0 varies fastest)."""

    start: int
    size: int

    @classmethod
    def full(cls) -> SeedSpace:
        """All of them."""
        return cls(0, math.prod(values.size for values in byte_values()))

    @classmethod
    def around(cls, seed: int, bits: int) -> SeedSpace:
        """The 2^bits of them that are left when all but the last ``bits`` bits of the place of ``seed`` are known."""
        place, unit = 0, 1
        for values, byte in zip(byte_values(), seed.to_bytes(4, "little"), strict=True):
            place += unit * int(np.searchsorted(values, byte))
            unit *= values.size
        return cls(place >> bits << bits, 1 << bits)

    def chunks(self) -> Iterator[Seeds]:
        end = self.start + self.size
        for at in range(self.start, end, CHUNK):
            left = np.arange(at, min(at + CHUNK, end), dtype=np.uint32)
            seeds = np.zeros_like(left)
            for position, values in enumerate(byte_values()):
                left, place = np.divmod(left, np.uint32(values.size))
                seeds |= values[place] << np.uint32(8 * position)
            yield seeds


# -- the search -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """Where every coordinate of an unmasked vector must lie: low..high modulo ``modulus``."""

    modulus: int
    low: int
    high: int

    def holds(self, residues: Residues) -> NDArray[np.bool_]:
        return (residues - self.low) % self.modulus <= self.high - self.low


def first_outputs(seeds: Seeds, count: int) -> Seeds:
    """The first ``count`` 32-bit outputs [count, seeds] of MT19937 for each seed (Matsumoto and Nishimura 1998).

    Output j needs words j, j + 1 and j + 397 of the initial state: about two thirds of what seeding costs.
    """
    word, shifted = seeds.copy(), np.empty_like(seeds)
    kept = {0: seeds}
    for step in range(1, 397 + count):
        np.right_shift(word, 30, out=shifted)
        np.bitwise_xor(word, shifted, out=word)
        np.multiply(word, 1812433253, out=word)
        np.add(word, step, out=word)
        if step <= count or step >= 397:
            kept[step] = word.copy()
    outputs = np.empty((count, seeds.size), dtype=np.uint32)
    for j in range(count):
        joined = (kept[j] & 0x80000000) | (kept[j + 1] & 0x7FFFFFFF)
        out = kept[j + 397] ^ (joined >> 1) ^ (joined & 1) * np.uint32(0x9908B0DF)
        out ^= out >> 11
        out ^= (out << 7) & 0x9D2C5680
        out ^= (out << 15) & 0xEFC60000
        outputs[j] = out ^ (out >> 18)
    return outputs


def flower_mask(seed: int, modulus: int, size: int) -> Residues:
    """The first ``size`` numbers of the mask: Flower's own generator, for a key that folds to ``seed``."""
    return cast(Residues, pseudo_rand_gen(seed.to_bytes(4, "little"), modulus, [(size,)])[0])


def matching_seeds(masked: Residues, sign: int, window: Window, space: SeedSpace) -> list[int]:
    """Seeds whose mask, taken off, leaves all of ``masked`` in the window.

    Args:
        masked: leading coordinates, all other masks already taken off.
        sign: +1 where the client added this mask, -1 where it subtracted it.
        window: its modulus is a power of two up to 2^32.

    Flower's generator draws a number again where its low bits are all 1, one time in ``modulus``; a right seed that
    does so in the first `TESTED_FIRST` numbers is missed.
    """
    found = []
    first = masked[:TESTED_FIRST, np.newaxis]
    for seeds in space.chunks():
        masks = first_outputs(seeds, TESTED_FIRST).astype(np.int64) & (window.modulus - 1)
        for seed in seeds[window.holds(first - sign * masks).all(axis=0)].tolist():
            if window.holds(masked - sign * flower_mask(seed, window.modulus, masked.size)).all():
                found.append(seed)
    return found


@dataclass(frozen=True)
class Recovery:
    """What a search gave: every vector [1 + dim] that fits, the seeds tried, CPU seconds of one core."""

    vectors: tuple[Residues, ...]
    tried: int
    seconds: float


def recover(view: ServerView, node: int, peer: int, space: SeedSpace) -> Recovery:
    """The quantised weight and update of ``node``, whose only unknown mask is the one shared with ``peer``."""
    began = time.process_time()
    masked, sign = view.without_private_mask(node), pair_mask_sign(node, peer)
    window = Window(view.settings[Key.MOD_RANGE], 0, view.settings[Key.TARGET_RANGE])
    seeds = matching_seeds(masked[:HEAD], sign, window, space)
    vectors = [masked - sign * flower_mask(seed, window.modulus, masked.size) for seed in seeds]
    left = tuple(vector % window.modulus for vector in vectors)
    return Recovery(left, space.size, time.process_time() - began)


# -- what is printed --------------------------------------------------------------------------------------


def describe_seeds() -> None:
    """The reachable set, computed exactly and met by real keys."""
    reachable = SeedSpace.full().size
    entropy = -sum(float(law[law > 0] @ np.log2(law[law > 0])) for law in byte_laws())
    sizes = " x ".join(str(values.size) for values in byte_values())
    print(f"pair key folded to 32 bits: {sizes} = {reachable} values, {math.log2(reachable):.4f} bits")
    print(f"  entropy {entropy:.4f} bits; at best {math.prod(float(law.max()) for law in byte_laws()):.2e} a guess")
    pairs = [generate_key_pairs() for _ in range(KEY_PAIRS)]
    folds = [fold(generate_shared_key(a[0], b[1])) for a, b in itertools.combinations(pairs, 2)]
    seen = np.array(folds, dtype="<u4").view(np.uint8).reshape(-1, 4)
    outside = sum(not set(seen[:, p].tolist()) <= set(byte_values()[p].tolist()) for p in range(4))
    ever = " ".join(f"{np.bitwise_or.reduce(seen[:, p]):08b}" for p in range(4))
    print(f"  {len(folds)} keys of Flower's own agreement: bits ever set, byte by byte: {ever}")
    print(f"  bytes with a value outside the computed set: {outside}")


def describe_recovery(recovery: Recovery, view: ServerView, victim: FlowerClient, truth: Residues) -> bool:
    """Prints it; True where exactly one vector fits and it is the client's, bit by bit."""
    print(f"tried {recovery.tried} seeds in {recovery.seconds:.2f} s of one core; {len(recovery.vectors)} fit")
    exact = len(recovery.vectors) == 1 and bool((recovery.vectors[0] == truth).all())
    print(f"  equal to the client's quantised weight and update, all {truth.size} integers: {exact}")
    if exact:
        settings, (weight, update) = view.settings, np.split(recovery.vectors[0], [1])
        share = int(weight[0]) / settings[Key.TARGET_RANGE]
        values = dequantize([update], settings[Key.CLIPPING_RANGE], settings[Key.TARGET_RANGE])[0] / share
        error, largest = np.abs(values - victim.update).max(), np.abs(victim.update).max()
        print(f"  the update itself, to {error:.1e} a coordinate (its largest is {largest:.2f})")
        print(f"  and its number of examples: {round(share * settings[Key.MAX_WEIGHT])}")
    return exact


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=20, help="unknown bits of the reduced seed space")
    parser.add_argument("--dim", type=int, default=1000, help="coordinates of the update")
    parser.add_argument("--seed-space", choices=("reduced", "full"), default="reduced")
    parser.add_argument("--seed", type=int, default=0, help="of the clients' updates; their keys are the system's")
    options = parser.parse_args()
    full = SeedSpace.full()
    if not 1 <= 2**options.bits <= full.size:
        parser.error(f"--bits: 0 to {int(math.log2(full.size))}")
    print(f"flwr {flwr.__version__}, numpy {np.__version__}")
    describe_seeds()
    rng = np.random.default_rng(options.seed)
    victim, other = (
        FlowerClient(node, rng.normal(0, 0.05, options.dim).astype(np.float32), examples)
        for node, examples in ((101, 300), (202, 120))
    )
    view, truth = play_round([victim, other])
    space = full
    if options.seed_space == "reduced":
        space = SeedSpace.around(fold(victim.pair_key(other.node)), options.bits)
    print(f"round: 2 clients, {options.dim} coordinates; the victim is node {victim.node}")
    recovery = recover(view, victim.node, other.node, space)
    exact = describe_recovery(recovery, view, victim, truth[victim.node])
    rate = recovery.tried / recovery.seconds
    print(f"{rate:.2e} seeds a second, so all {full.size} take {full.size / rate:.0f} s of one core, half on average")
    if space == full:
        print("assumed known: nothing but what the server receives in an honest round")
    else:
        known = math.log2(full.size / space.size)
        print(f"assumed known: {known:.1f} bits of the pair mask's seed, taken from the victim; --seed-space full")
        print("  assumes nothing")
    print("not shown: a client with two or more unknown pair masks, where this search would try combinations")
    sys.exit(not exact)


if __name__ == "__main__":
    main()
