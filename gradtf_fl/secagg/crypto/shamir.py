"""Shamir's secret sharing over GF(p), p = 2^256 - 189 (Shamir, CACM 1979).

A secret is the constant term of a polynomial of degree threshold - 1; a share is its value at a holder's
non-zero point. Any `threshold` shares give the secret, fewer say nothing about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from math import prod

PRIME = 2**256 - 189
ELEMENT_BYTES = 32


def to_element(data: bytes) -> int:
    """The field element of 32 big-endian bytes, reduced (bias 2^-248 for uniform bytes)."""
    return int.from_bytes(data, "big") % PRIME


def element_bytes(element: int) -> bytes:
    """Canonical 32 bytes of an element."""
    return element.to_bytes(ELEMENT_BYTES, "big")


def is_element(data: bytes) -> bool:
    """Whether 32 bytes are the canonical form of an element."""
    return len(data) == ELEMENT_BYTES and int.from_bytes(data, "big") < PRIME


def split(secret: int, points: Sequence[int], threshold: int, coefficients: bytes) -> list[int]:
    """Shares of ``secret`` at ``points``.

    Args:
        secret: element in 0..p-1.
        points: distinct holders' points, each in 1..p-1.
        threshold: shares needed to rebuild it, 1..len(points).
        coefficients: 32 * (threshold - 1) uniform bytes, never used for another secret.
    """
    if not 1 <= threshold <= len(points):
        raise ValueError(f"threshold {threshold} for {len(points)} holders")
    if len(set(points)) != len(points) or not all(0 < x < PRIME for x in points):
        raise ValueError("points must be distinct and in 1..p-1")
    if len(coefficients) != ELEMENT_BYTES * (threshold - 1):
        raise ValueError(f"{ELEMENT_BYTES * (threshold - 1)} coefficient bytes needed, got {len(coefficients)}")
    terms = [to_element(coefficients[i : i + ELEMENT_BYTES]) for i in range(0, len(coefficients), ELEMENT_BYTES)]
    shares = []
    for x in points:
        value = 0
        for term in terms:  # Horner, highest degree first
            value = (value + term) * x % PRIME
        shares.append((value + secret) % PRIME)
    return shares


@lru_cache(maxsize=256)
def lagrange_weights(points: tuple[int, ...]) -> tuple[int, ...]:
    """w_i = prod_{j != i} x_j / (x_j - x_i): the secret is sum w_i * share_i.

    Cached: on a complete graph every secret is rebuilt from the same holders, so a round pays O(t^2) once.
    """
    product = prod(points)
    denominators = [x * prod(other - x for other in points if other != x) % PRIME for x in points]
    weights, inverse = [0] * len(points), pow(prod(denominators) % PRIME, -1, PRIME)
    before = [1, *accumulate(denominators, lambda a, b: a * b % PRIME)]
    for i in range(len(points) - 1, -1, -1):  # one inversion for all (Montgomery's trick)
        weights[i] = product * before[i] * inverse % PRIME
        inverse = inverse * denominators[i] % PRIME
    return tuple(weights)


def combine(points: Sequence[int], shares: Sequence[int]) -> int:
    """The secret from exactly `threshold` shares at distinct points."""
    if len(points) != len(shares) or len(set(points)) != len(points):
        raise ValueError("one share for each distinct point is needed")
    weights = lagrange_weights(tuple(points))
    return sum(w * share for w, share in zip(weights, shares, strict=True)) % PRIME
