"""Lying, late and doubled clients: what the server refuses, and what it finds out when it rebuilds secrets."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from gradtf_fl.errors import RoundAborted
from gradtf_fl.secagg import (
    BadSignature,
    DuplicateMessage,
    IncompleteShares,
    InconsistentViews,
    LateMessage,
    MalformedMessage,
    ReconstructionMismatch,
    RosterMismatch,
    SecAggServer,
    StageOrder,
    UnknownIdentity,
    WrongRound,
)
from gradtf_fl.secagg.packing import packed_size
from gradtf_fl.secagg.wire.encoding import Writer
from gradtf_fl.secagg.wire.messages import MessageKind, SealedShares, Unmasking, header, open_signed

from .federation import Federation
from .forging import BODY, lie, survivors


def test_the_server_refuses_late_early_and_double_messages() -> None:
    federation = Federation(n=4)
    first = federation.answer("advertise", 0)
    federation.receive("advertise", first)
    with pytest.raises(DuplicateMessage):
        federation.receive("advertise", first)
    for i in (1, 2):
        federation.receive("advertise", federation.answer("advertise", i))
    late = federation.answer("advertise", 3)
    federation.close("advertise")
    with pytest.raises(LateMessage):
        federation.receive("advertise", late)
    with pytest.raises(StageOrder):
        federation.close("mask")
    with pytest.raises(StageOrder):
        federation.receive("mask", late)
    federation.play("share", [0, 1, 2])
    federation.play("accept", [0, 1, 2])
    masked = [federation.answer("mask", i) for i in range(3)]
    federation.receive("mask", masked[0])
    with pytest.raises(DuplicateMessage):  # must not be folded twice
        federation.receive("mask", masked[0])
    for message in masked[1:]:
        federation.receive("mask", message)
    federation.close("mask")
    with pytest.raises(LateMessage):
        federation.receive("mask", masked[0])
    federation.play("consistency", [0, 1, 2])
    np.testing.assert_array_equal(federation.finish([0, 1, 2]).mean, federation.expected([0, 1, 2]))


def test_a_late_vector_is_never_part_of_the_sum() -> None:
    federation = Federation(n=4).until("mask")
    late = federation.answer("mask", 3)
    federation.play("mask", [0, 1, 2])
    with pytest.raises(LateMessage):
        federation.receive("mask", late)
    federation.play("consistency", [0, 1, 2])
    np.testing.assert_array_equal(federation.finish([0, 1, 2]).mean, federation.expected([0, 1, 2]))
    with pytest.raises(LateMessage):
        federation.receive("mask", late)


@pytest.mark.parametrize("bits", [16, 20, 24, 32])
def test_a_masked_vector_of_another_length_or_width(bits: int) -> None:
    federation = Federation(n=3, bits=bits, dim=6).until("mask")
    body = federation.answer("mask", 0)[BODY]
    number, packed = body[:4], body[4:]
    assert number == bytes(4)
    assert len(packed) == packed_size(bits, 7)
    widths = {packed_size(other, 7) for other in (16, 20, 24, 32)} - {len(packed)}
    for size in (0, len(packed) - 1, len(packed) + 1, 2 * len(packed), *widths):
        lying = number + packed.ljust(size, b"\0")[:size]
        with pytest.raises(MalformedMessage, match=f"{size} bytes for 7 residues of {bits} bits"):
            federation.receive("mask", lie(federation, 0, MessageKind.MASKED, lying))
    with pytest.raises(MalformedMessage, match="expected 4 bytes, 3 left"):
        federation.receive("mask", lie(federation, 0, MessageKind.MASKED, bytes(3)))
    other = Federation(n=3, bits=16 if bits > 16 else 32, dim=6).until("mask")
    with pytest.raises(WrongRound):  # an honest client of a round with another width
        federation.receive("mask", other.answer("mask", 0))
    federation.receive("mask", lie(federation, 0, MessageKind.MASKED, body))
    for i in (1, 2):
        federation.receive("mask", federation.answer("mask", i))
    federation.close("mask")
    federation.play("consistency")
    np.testing.assert_array_equal(federation.finish().mean, federation.expected(range(3)))


def test_padding_bits_must_be_zero() -> None:
    federation = Federation(n=3, bits=20, dim=4).until("mask")  # 5 residues of 20 bits: 4 bits are left over
    body = bytearray(federation.answer("mask", 0)[BODY])
    body[-1] |= 0x10
    with pytest.raises(MalformedMessage, match="padding"):
        federation.receive("mask", lie(federation, 0, MessageKind.MASKED, bytes(body)))


def test_shares_must_be_for_exactly_the_neighbours() -> None:
    federation = Federation(n=4).until("share")
    sealed = SealedShares.decode(federation.answer("share", 0)[BODY]).by_peer
    for wrong in ({1: sealed[1]}, sealed | {0: sealed[1]}, sealed | {9: sealed[1]}, {}):
        with pytest.raises(IncompleteShares):
            federation.receive("share", lie(federation, 0, MessageKind.SHARES, SealedShares(wrong).encode()))
    short = SealedShares(sealed).encode()[:-1]
    with pytest.raises(MalformedMessage):
        federation.receive("share", lie(federation, 0, MessageKind.SHARES, short))


def test_another_view_is_not_counted() -> None:
    federation = Federation(n=4).until("consistency")
    lying = federation.clients[3].consistency(survivors(federation, 0, 1, 3))
    with pytest.raises(InconsistentViews):
        federation.receive("consistency", lying)
    federation.play("consistency", [0, 1, 2])
    assert federation.finish([0, 1, 2]).clients == 4


def test_members_who_left_stay_out() -> None:
    federation = Federation(n=4).until("consistency")
    vote = federation.answer("consistency", 3)
    federation.play("consistency", [0, 1, 2])
    body = federation.answer("unmask", 0)[BODY]
    with pytest.raises(UnknownIdentity):
        federation.receive("unmask", lie(federation, 3, MessageKind.UNMASKING, body))
    with pytest.raises(LateMessage):
        federation.receive("consistency", vote)


@pytest.mark.parametrize(("dropped", "what"), [(3, "mask key"), (None, "self-mask secret")])
def test_a_share_that_does_not_match_its_commitment(dropped: int | None, what: str) -> None:
    federation = Federation(n=4).until("mask")
    alive = [i for i in range(4) if i != dropped]
    federation.play("mask", alive)
    federation.play("consistency", alive)
    owner = 3
    for i in alive:
        message = federation.answer("unmask", i)
        if i == 1:
            shares = Unmasking.decode(message[BODY]).by_owner | {owner: bytes(31) + b"\x05"}
            message = lie(federation, i, MessageKind.UNMASKING, Unmasking(shares).encode())
        federation.receive("unmask", message)
    with pytest.raises(ReconstructionMismatch, match=what) as mismatch:
        federation.close("unmask")
    assert (mismatch.value.owner, mismatch.value.holders) == (owner, (0, 1, 2))
    assert isinstance(mismatch.value, RoundAborted)
    with pytest.raises(StageOrder):
        federation.close("unmask")


def test_shares_of_exactly_the_neighbourhood() -> None:
    federation = Federation(n=4).until("unmask")
    shares = Unmasking.decode(federation.answer("unmask", 0)[BODY]).by_owner
    for wrong in ({k: v for k, v in shares.items() if k}, shares | {7: shares[1]}):
        with pytest.raises(IncompleteShares):
            federation.receive("unmask", lie(federation, 0, MessageKind.UNMASKING, Unmasking(wrong).encode()))
    beyond = Unmasking(shares | {1: b"\xff" * 32}).encode()
    with pytest.raises(MalformedMessage, match="not a field element"):
        federation.receive("unmask", lie(federation, 0, MessageKind.UNMASKING, beyond))


def test_an_impossible_total_weight_aborts() -> None:
    federation = Federation(n=3).until("mask")
    for i in range(3):
        message = federation.answer("mask", i)
        if i == 0:  # adds 1 to its masked weight: not what the rule "uniform" allows
            body = bytearray(message[BODY])
            body[-3] ^= 1
            message = lie(federation, 0, MessageKind.MASKED, bytes(body))
        federation.receive("mask", message)
    federation.close("mask")
    federation.play("consistency")
    with pytest.raises(RoundAborted, match="total weight"):
        federation.finish()


def test_signatures_cover_kind_and_sender() -> None:
    federation = Federation(n=3)
    message = federation.answer("advertise", 0)
    head = header(MessageKind.ADVERT, federation.commitment)
    assert message == head + bytes(4) + message[BODY] + message[-64:]
    as_shares = header(MessageKind.SHARES, federation.commitment) + message[37:]
    as_other = head + Writer().u32(1).done() + message[41:]
    for kind, forged in ((MessageKind.SHARES, as_shares), (MessageKind.ADVERT, as_other)):
        with pytest.raises(BadSignature):
            open_signed(forged, kind, federation.commitment, federation.roster)


def test_a_configuration_that_does_not_fit_the_roster() -> None:
    federation = Federation(n=4)
    for changes in ({"degree": 4}, {"degree": 3, "threshold": 3, "quorum": 5}):
        with pytest.raises(RosterMismatch, match="do not fit"):
            SecAggServer(replace(federation.config, **changes), federation.roster)


def test_everything_in_the_configuration_is_bound() -> None:
    base = Federation(n=3).config
    changes: dict[str, dict[str, object]] = {
        "run_id": {"run_id": "other"},
        "round": {"round": 2},
        "attempt": {"attempt": 1},
        "nonce": {"nonce": b"n" * 32},
        "model_hash": {"model_hash": b"m" * 32},
        "dim": {"dim": 6},
        "bits": {"bits": 32},
        "clip": {"clip": 2.0},
        "weight_rule": {"weight_rule": "examples"},
        "max_weight": {"weight_rule": "examples", "max_weight": 2.0},
        "dp": {"dp": '{"sigma":1}'},
        "roster_hash": {"roster_hash": b"r" * 32},
        "groups": {"groups": 2},
        "group": {"groups": 2, "group": 1},
        "sample": {"sample": 3, "beacon": b"b" * 32},
        "beacon": {"sample": 3, "beacon": b"c" * 32},
        "degree": {"degree": 4},
        "threshold": {"threshold": 2},
        "quorum": {"quorum": 4},
        "noise_multiplier": {"noise_multiplier": 0.5, "noisers": 3},
        "noisers": {"noise_multiplier": 0.5, "noisers": 2},
        "deadline_s": {"deadline_s": 1.0},
    }
    assert changes.keys() | {"version"} == type(base).__dataclass_fields__.keys()
    commitments = {base.commitment}
    for change in changes.values():
        changed = replace(base, **change)  # type: ignore[arg-type]
        assert type(base).decode(changed.encode()) == changed
        commitments.add(changed.commitment)
    assert len(commitments) == len(changes) + 1
    label = b"gradtf/sa/v1/config"
    assert base.commitment == hashlib.sha256(bytes([len(label)]) + label + base.encode()).digest()
