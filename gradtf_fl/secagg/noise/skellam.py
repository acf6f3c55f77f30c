"""Skellam noise from an AES-256-CTR keystream: Poisson(v/2) - Poisson(v/2), an integer of mean 0, variance v.

Sums of independent Skellam variables are Skellam variables whose variances add up, which is why each client
can contribute a share of the noise (Agarwal, Kairouz, Liu 2021).

The difference is drawn directly, not as two Poisson variables: P(k) = exp(-v) I_k(v) has a uniform asymptotic
expansion (Debye; Olver 1974, chapter 10, section 7; DLMF 10.41.3) whose terms fall as v^-m and involve no
cancellation. Candidates are integers from the start (Ahrens 1993, rejection on a partition of the domain):
blocks of w = 2^j integers, one block drawn by its integer weight (alias method, Walker 1977, Vose 1991), j bits for
the place within the block, then acceptance with probability P(k) / max P(block). Transformed rejection
(Hoermann 1993) would round a float to the candidate, and its relative error would grow with sqrt(v) up to
1e-8 at v = 1e15; here no step loses precision as v grows.

How exact it is: a computed ln P(k) is within 4e-14 of the true one, and the acceptance test has 42 bits or more, so
each probability is within 5e-13 of P(k), relative. Block weights are rounded to multiples of 2^-64, which moves or
cuts off (beyond 9 standard deviations) a mass below 2^-52 in all. The total variation distance is below 1e-12
a coordinate. For 10^7 coordinates epsilon moves by at most 2 * 10^7 * 5e-13 = 1e-5 and delta by 10^7 * 2^-52 =
2e-9. It is floating point, and it is not hardened against timing: how long a draw takes depends on the noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from gradtf_fl.secagg.crypto.primitives import KEY_BYTES
from gradtf_fl.secagg.quantization import CHUNK

MIN_VARIANCE = 20.0  # Poisson means of 10
MAX_VARIANCE = 2.0**55  # leaves 42 bits of a word to the acceptance test
_MAX_TERMS = 18
_COLUMN_BITS = 11  # 2^11 blocks, 32 to 64 of them a standard deviation
_HALF = 1 << (_COLUMN_BITS - 1)
_THRESHOLD_BITS = 64 - _COLUMN_BITS
_TAIL_LOG = 66 * math.log(2)  # a tail beyond the blocks weighs less than a rounding of theirs


class SkellamNoise:
    """A stream of independent Skellam variables.

    Every 2^15 of them have their own keystream (the counter's upper 8 bytes are their number), so the stream does
    not depend on the sizes it is taken in.

    Args:
        key: 32 secret bytes, used for this stream only.
        variance: v, in `MIN_VARIANCE`..`MAX_VARIANCE`.

    Raises:
        ValueError: a variance outside its range, or a key of another size.
    """

    def __init__(self, key: bytes, variance: float) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a noise key has {KEY_BYTES} bytes")
        self._key, self._partition = key, partition(variance)
        self._number, self._left = 0, np.empty(0, dtype=np.int64)

    def take(self, size: int) -> NDArray[np.int64]:
        """The next ``size`` variables, int64 [size]."""
        taken, self._left = self._left[:size], self._left[size:]
        if taken.size == 0 and size == CHUNK:
            return self._next()  # the usual case, without a copy
        while taken.size < size:
            fresh, missing = self._next(), size - taken.size
            taken, self._left = np.concatenate([taken, fresh[:missing]]), fresh[missing:]
        return taken

    def _next(self) -> NDArray[np.int64]:
        """The next 2^15 variables: candidates for all, then again for those rejected until none is left."""
        nonce = self._number.to_bytes(8, "big") + bytes(8)
        self._number += 1
        stream = Cipher(algorithms.AES256(self._key), modes.CTR(nonce)).encryptor()
        values, rejected = self._partition.candidates(stream, CHUNK)
        while rejected.size:
            again, refused = self._partition.candidates(stream, rejected.size)
            values[rejected] = again
            rejected = rejected[refused]
        return values


@dataclass(frozen=True, eq=False)
class Partition:
    """The integers about 0 in blocks of 2^shift, with an alias table over the blocks.

    Block c holds the integers ((c - 2^10) << shift) + [0, 2^shift).

    Attributes:
        variance: v.
        shift: j, at most 22.
        threshold: uint64 [2^11]; column c stays c where a 53-bit uniform is below, and becomes ``alias`` otherwise.
        alias: int64 [2^11].
        log_top: float64 [2^11]; ln of the largest P in the block.
        sure: uint64 [2^11]; a level below it accepts, whatever the place in the block is.
    """

    variance: float
    shift: int
    threshold: NDArray[np.uint64]
    alias: NDArray[np.int64]
    log_top: NDArray[np.float64]
    sure: NDArray[np.uint64]

    @property
    def level_bits(self) -> int:
        """Bits of the uniform of the acceptance test: what a word has left besides the place, 53 at most."""
        return min(53, 64 - self.shift)

    def candidates(self, stream: CipherContext, size: int) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
        """``size`` candidates from the next 16 * size bytes of ``stream``, and the positions that are rejected."""
        first, second = np.frombuffer(stream.update(bytes(16 * size)), dtype="<u8").reshape(2, size)
        block = (first >> np.uint64(_THRESHOLD_BITS)).view(np.int64)
        moved = (first & np.uint64((1 << _THRESHOLD_BITS) - 1)) >= self.threshold[block]
        np.copyto(block, self.alias[block], where=moved)
        values = ((block - _HALF) << self.shift) + (second & np.uint64((1 << self.shift) - 1)).view(np.int64)
        level = second >> np.uint64(64 - self.level_bits)
        doubtful = np.flatnonzero(level >= self.sure[block])
        ratio = np.exp(log_probability(values[doubtful], self.variance) - self.log_top[block[doubtful]])
        return values, doubtful[level[doubtful] * 2.0**-self.level_bits >= ratio]


@lru_cache(maxsize=8)
def partition(variance: float) -> Partition:
    """The `Partition` for one variance; ValueError for one outside `MIN_VARIANCE`..`MAX_VARIANCE`."""
    if not variance >= MIN_VARIANCE:
        raise ValueError(f"noise of variance {variance:.4g} is too coarse on the grid of integers: it takes more bits")
    if variance > MAX_VARIANCE:
        raise ValueError(f"noise of variance {variance:.4g} is above {MAX_VARIANCE:.4g}")
    shift = max(0, math.frexp(math.sqrt(variance))[1] - 6)  # 2^5 <= standard deviation / 2^shift < 2^6, or shift 0
    assert tail_bound(variance, _TAIL_LOG) < _HALF << shift, "the blocks end inside the distribution"
    lowest = np.arange(-_HALF, _HALF, dtype=np.int64) << shift
    highest = lowest + ((1 << shift) - 1)
    log_top = log_probability(np.where(lowest < 0, highest, lowest), variance)
    log_bottom = log_probability(np.where(lowest < 0, lowest, highest), variance)
    threshold, alias = _alias_table(np.exp(log_top - log_top.max()).tolist())
    table = Partition(variance, shift, threshold, alias, log_top, np.empty(0, dtype=np.uint64))
    sure = np.where(log_bottom < log_top, np.exp(log_bottom - log_top) * (1 - 1e-12), 1.0)  # the full test agrees
    return replace(table, sure=(sure * 2.0**table.level_bits).astype(np.uint64))


def _alias_table(weights: Sequence[float]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """(threshold, alias) for probabilities in proportion to ``weights`` [2^11], rounded to multiples of 2^-64.

    Vose's construction in integers: every column holds 2^53, and columns and aliases add up exactly.
    """
    total = math.fsum(weights)
    left = [round(weight / total * 2.0**64) for weight in weights]
    left[_HALF] += 2**64 - sum(left)  # a relative change below 2^-44 in the central block
    capacity = 1 << _THRESHOLD_BITS
    threshold, alias = np.full(2 * _HALF, capacity, dtype=np.uint64), np.arange(2 * _HALF)
    small = [column for column, weight in enumerate(left) if weight < capacity]
    large = [column for column, weight in enumerate(left) if weight > capacity]
    while small:
        column, donor = small.pop(), large[-1]
        threshold[column], alias[column] = left[column], donor
        left[donor] -= capacity - left[column]
        if left[donor] <= capacity:
            large.pop()
            if left[donor] < capacity:
                small.append(donor)
    assert not large, "integer weights of the wrong sum"
    return threshold, alias


def log_probability(integers: NDArray[np.int64], variance: float) -> NDArray[np.float64]:
    """ln P(k) of the Skellam distribution with variance v: ln exp(-v) I_k(v), for v >= `MIN_VARIANCE`.

    With s = sqrt(k^2 + v^2) and q = (k / s)^2 (DLMF 10.41.3):
    P(k) = exp(s - v - k asinh(k / v)) / sqrt(2 pi s) * (1 + sum_m Q_m(q) / s^m). The exponent is the difference of
    two positive terms, one about twice the other, so nothing cancels.
    """
    k = np.abs(integers).astype(np.float64)
    s = np.hypot(k, variance)
    q, inverse = (k / s) ** 2, 1.0 / s
    correction = np.zeros_like(k)
    for polynomial in reversed(_expansion(variance)):
        value = np.zeros_like(k)
        for coefficient in reversed(polynomial):
            value = value * q + coefficient
        correction = (correction + value) * inverse
    exponent = k * k / (s + variance) - k * np.arcsinh(k / variance)
    return exponent - 0.5 * np.log(2 * math.pi * s) + np.log1p(correction)


def _expansion(variance: float) -> tuple[tuple[float, ...], ...]:
    """The polynomials Q_m, as many as matter at ``variance``: Q_m(0) / v^m bounds the term m."""
    polynomials = _debye_polynomials()
    sizes = (polynomial[0] / variance**m for m, polynomial in enumerate(polynomials, 1))
    return polynomials[: sum(size > 2.0**-56 for size in sizes)]


@lru_cache(maxsize=1)
def _debye_polynomials() -> tuple[tuple[float, ...], ...]:
    """Coefficients of Q_1.. in ascending powers of q = p^2, where U_m(p) = p^m Q_m(p^2) (DLMF 10.41.9):

    U_(m+1)(p) = p^2 (1 - p^2) U_m'(p) / 2 + (1/8) integral_0^p (1 - 5 t^2) U_m(t) dt, with U_0 = 1.
    """
    current, polynomials = [Fraction(1)], []
    for m in range(_MAX_TERMS):
        following = [Fraction(0)] * (m + 2)
        for i, coefficient in enumerate(current):
            power = m + 2 * i
            following[i] += coefficient * (Fraction(power, 2) + Fraction(1, 8 * (power + 1)))
            following[i + 1] -= coefficient * (Fraction(power, 2) + Fraction(5, 8 * (power + 3)))
        current = following
        polynomials.append(tuple(float(coefficient) for coefficient in current))
    return tuple(polynomials)


def tail_bound(variance: float, log_probability_left: float) -> float:
    """A t with P(X >= t) <= exp(-L), X a Skellam variable of variance v and L = ``log_probability_left``.

    Chernoff: P(X >= t) <= exp(v (cosh h - 1) - h t), and cosh h - 1 <= (h^2 / 2) / (1 - h^2 / 12) for h^2 < 12.
    With h = sqrt(2 L / v): t = sqrt(v L / 2) (1 + 1 / (1 - L / (6 v))), which tends to the Gaussian's
    sqrt(2 v L). Only IEEE basic operations, so that all parties compute the same number.

    Raises:
        ValueError: v <= L / 6, where the bound says nothing.
    """
    slack = 1.0 - log_probability_left / (6.0 * variance)
    if not slack > 0:
        raise ValueError(f"noise of variance {variance:.4g} is too coarse on the grid of integers: it takes more bits")
    return math.sqrt(variance * log_probability_left / 2.0) * (1.0 + 1.0 / slack)
