"""Shamir's sharing: hand-computed case, any threshold shares rebuild, fewer fit every secret."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradtf_fl.secagg.crypto.shamir import (
    ELEMENT_BYTES,
    PRIME,
    combine,
    element_bytes,
    is_element,
    lagrange_weights,
    split,
    to_element,
)

elements = st.integers(0, PRIME - 1)


def test_prime_is_the_named_one() -> None:
    assert PRIME == 2**256 - 189
    assert all(pow(base, PRIME - 1, PRIME) == 1 for base in (2, 3, 5, 7))


def test_line_through_two_points_by_hand() -> None:
    # f(x) = 7 + 5x
    assert split(7, [1, 2, 3], 2, element_bytes(5)) == [12, 17, 22]
    assert combine([1, 3], [12, 22]) == 7
    assert lagrange_weights((1, 2)) == (2, PRIME - 1)


def test_coefficients_are_highest_degree_first() -> None:
    # f(x) = 1 + 3x + 2x^2
    assert split(1, [1, 2, 3], 3, element_bytes(2) + element_bytes(3)) == [6, 15, 28]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), secret=elements, n=st.integers(2, 12))
def test_any_threshold_shares_rebuild(data: st.DataObject, secret: int, n: int) -> None:
    threshold = data.draw(st.integers(1, n))
    coefficients = data.draw(
        st.binary(min_size=ELEMENT_BYTES * (threshold - 1), max_size=ELEMENT_BYTES * (threshold - 1))
    )
    points = data.draw(st.lists(st.integers(1, 5000), min_size=n, max_size=n, unique=True))
    shares = dict(zip(points, split(secret, points, threshold, coefficients), strict=True))
    chosen = data.draw(st.permutations(points))[:threshold]
    assert combine(chosen, [shares[x] for x in chosen]) == secret


@settings(max_examples=40, deadline=None)
@given(secret=elements, other=elements, coefficients=st.binary(min_size=64, max_size=64))
def test_fewer_shares_fit_every_other_secret(secret: int, other: int, coefficients: bytes) -> None:
    seen = split(secret, [1, 2, 3, 4], 3, coefficients)[:2]
    # one more share, chosen freely, opens to any secret: f(3) = (other - w1 f(1) - w2 f(2)) / w3
    w1, w2, w3 = lagrange_weights((1, 2, 3))
    third = (other - w1 * seen[0] - w2 * seen[1]) * pow(w3, -1, PRIME) % PRIME
    assert combine([1, 2, 3], [*seen, third]) == other


def test_elements_have_one_encoding() -> None:
    assert is_element(element_bytes(PRIME - 1))
    assert not is_element(PRIME.to_bytes(32, "big"))
    assert not is_element(bytes(31))
    assert to_element(PRIME.to_bytes(32, "big")) == 0


@pytest.mark.parametrize(
    ("points", "threshold", "coefficients"),
    [([1, 1], 2, 32), ([0, 1], 2, 32), ([1, 2], 3, 64), ([1, 2], 0, 0), ([1, 2], 2, 31), ([1, PRIME], 2, 32)],
)
def test_bad_sharings_are_refused(points: list[int], threshold: int, coefficients: int) -> None:
    with pytest.raises(ValueError, match=r"threshold|points|coefficient"):
        split(1, points, threshold, bytes(coefficients))


def test_combine_wants_distinct_points() -> None:
    with pytest.raises(ValueError, match="distinct"):
        combine([1, 1], [2, 2])
