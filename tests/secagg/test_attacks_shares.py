"""Stages 2 and 3: ciphertexts that are swapped, cut, left out or for others; an own vector that cannot be sent."""

from __future__ import annotations

import numpy as np
import pytest

from gradtf_fl.secagg import (
    ClientPolicy,
    IncompleteShares,
    MalformedMessage,
    OwnKeyMissing,
    SurvivorsNotSubset,
    TooFewMembers,
    TooFewNeighbours,
    UndecryptableShare,
    UpdateRejected,
)
from gradtf_fl.secagg.crypto.shamir import PRIME
from gradtf_fl.secagg.wire.messages import Complaints, Delivery

from .federation import AnyGraphPolicy, Federation
from .forging import BODY, delivery, sealed_by

ACCEPTING = Federation(n=3).until("accept")


def sealed_for(federation: Federation, i: int) -> dict[int, bytes]:
    return Delivery.decode(federation.sent["accept"][i], federation.commitment).sealed.by_peer


def accept_with(federation: Federation, members: tuple[int, ...], sealed: dict[int, bytes]) -> dict[int, bytes]:
    """Member 0's complaints."""
    message = federation.reload(0).accept(delivery(federation, members, sealed))
    return Complaints.decode(message[BODY]).by_source


def test_ciphertexts_must_be_the_neighbours_own_and_complete() -> None:
    federation = Federation(n=4).until("accept")
    sealed, other, all_of_them = sealed_for(federation, 0), sealed_for(federation, 1), (0, 1, 2, 3)
    assert accept_with(federation, all_of_them, sealed) == {}
    with pytest.raises(UndecryptableShare):  # of the right source, for another target
        accept_with(federation, all_of_them, sealed | {2: other[2]})
    with pytest.raises(UndecryptableShare):  # swapped
        accept_with(federation, all_of_them, sealed | {1: sealed[2], 2: sealed[1]})
    with pytest.raises(IncompleteShares):
        accept_with(federation, all_of_them, {k: v for k, v in sealed.items() if k != 2})
    with pytest.raises(IncompleteShares):
        accept_with(federation, (0, 1, 2), sealed)
    with pytest.raises(OwnKeyMissing):
        accept_with(federation, (1, 2, 3), sealed)
    with pytest.raises(TooFewMembers):
        accept_with(federation, (0, 1), {1: sealed[1]})


@pytest.mark.parametrize("place", range(80))
def test_every_byte_of_a_ciphertext_is_authenticated(place: int) -> None:
    sealed = sealed_for(ACCEPTING, 0)
    flipped = bytearray(sealed[1])
    flipped[place] ^= 1
    with pytest.raises(UndecryptableShare):
        accept_with(ACCEPTING, (0, 1, 2), sealed | {1: bytes(flipped)})


@pytest.mark.parametrize("cut", [1, 16, 79, 80])
def test_truncated_ciphertexts_are_no_delivery(cut: int) -> None:
    with pytest.raises(MalformedMessage):
        ACCEPTING.reload(0).accept(ACCEPTING.sent["accept"][0][:-cut])
    sealed = sealed_for(ACCEPTING, 0)
    with pytest.raises(MalformedMessage):
        accept_with(ACCEPTING, (0, 1, 2), {1: sealed[1][:-cut], 2: sealed[2]})


def test_ciphertexts_of_another_attempt_do_not_open() -> None:
    """Same identities, same seeds, next attempt: C salts every key."""
    old, retry = sealed_for(ACCEPTING, 0), Federation(n=3, attempt=1).until("accept")
    assert retry.roster == ACCEPTING.roster
    assert sealed_for(retry, 0).keys() == old.keys()
    with pytest.raises(UndecryptableShare):
        accept_with(retry, (0, 1, 2), old)


def test_a_sealed_number_outside_the_field() -> None:
    federation = Federation(n=3)
    federation.play("advertise")
    federation.play("share")
    for plain in (PRIME.to_bytes(32, "big") + bytes(32), bytes(32) + b"\xff" * 32):
        lying = sealed_by(federation, 2, 0, plain)
        assert accept_with(federation, (0, 1, 2), sealed_for(federation, 0) | {2: lying}).keys() == {2}


def test_u2_must_lie_within_u1() -> None:
    federation = Federation(n=4)
    federation.play("advertise", range(3))
    federation.play("share", range(3))
    sealed = sealed_for(federation, 0)
    with pytest.raises(SurvivorsNotSubset):
        accept_with(federation, (0, 1, 2, 3), sealed | {3: sealed[1]})


def test_too_few_in_u2() -> None:
    """Below the quorum, below the organization's own n_min, or too few of the own neighbourhood."""
    federation = Federation(n=5).until("accept")
    sealed = sealed_for(federation, 0)
    with pytest.raises(TooFewMembers, match="3 organizations left, 4 needed"):
        accept_with(federation, (0, 1, 2), {1: sealed[1], 2: sealed[2]})
    careful = Federation(n=5, policy=ClientPolicy(n_min=5)).until("accept")
    sealed = sealed_for(careful, 0)
    with pytest.raises(TooFewMembers, match="4 organizations left, 5 needed"):
        accept_with(careful, (0, 1, 2, 3), {i: sealed[i] for i in (1, 2, 3)})
    circle = Federation(n=12, degree=6, threshold=5, quorum=8, policy=AnyGraphPolicy()).until("accept")
    sealed = sealed_for(circle, 0)
    gone = sorted(sealed)[:3]
    members = tuple(i for i in range(12) if i not in gone)
    with pytest.raises(TooFewNeighbours, match="4 of the neighbourhood left, 5 needed"):
        accept_with(circle, members, {i: sealed[i] for i in sealed if i not in gone})


@pytest.mark.parametrize(
    ("vector", "weight"),
    [
        (np.array([np.nan, 0, 0, 0, 0]), 1.0),
        (np.array([np.inf, 0, 0, 0, 0]), 1.0),
        (np.zeros(4), 1.0),
        (np.zeros((5, 1)), 1.0),
        (np.zeros(5, dtype=np.int64), 1.0),
        (None, 1.0),
        (np.zeros(5), 0.5),
    ],
)
def test_a_bad_own_vector_leaves_the_round_locally(vector: np.ndarray, weight: float) -> None:  # type: ignore[type-arg]
    federation = Federation(n=4).until("mask")
    client = federation.clients[0]
    with pytest.raises(UpdateRejected):
        client.mask(federation.sent["mask"][0], vector, weight)
    assert client.next_stage == "refused"
    assert federation.seeds[0] not in client.to_bytes()
    # the others go on without it
    result = federation.run({"mask": [0]}, start="mask")
    np.testing.assert_array_equal(result.mean, federation.expected([1, 2, 3]))
