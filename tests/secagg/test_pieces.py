"""A masked vector in pieces: the sum is the same, and nothing about a piece can be turned against the round."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gradtf_fl.errors import RoundAborted
from gradtf_fl.flower import Member, MemberStore, OpenRound, Refused, RoundKey
from gradtf_fl.round_messages import MalformedFields, PieceRequest, StagePayload
from gradtf_fl.secagg import (
    BadSignature,
    DuplicateMessage,
    LateMessage,
    MalformedMessage,
    SecureSum,
    StageOrder,
    UnknownIdentity,
    UpdateRejected,
    WrongRound,
    chunks_of,
    pieces,
)
from gradtf_fl.secagg.quantization import CHUNK
from gradtf_fl.secagg.wire.messages import MessageKind

from .federation import Federation
from .forging import BODY, lie

PIECE = 8
DIM = 4 * PIECE + 3  # and the weight: five pieces, the last one of four words


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", PIECE)


def masked(federation: Federation, i: int) -> list[bytes]:
    """All pieces of member i, which masks now."""
    return list(federation.clients[i].mask(federation.sent["mask"][i], federation.vectors[i]))


def opened(federation: Federation, members: list[int]) -> SecureSum:
    federation.close("mask")
    federation.play("consistency", members)
    return federation.finish(members)


# -- the sum ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    piece=st.integers(1, 40).map(lambda n: 4 * n) | st.sampled_from([CHUNK - 4, CHUNK, CHUNK + 4]),
    dim=st.integers(1, 200) | st.sampled_from([CHUNK - 1, CHUNK, CHUNK + 5]),
    bits=st.sampled_from([16, 20, 24, 32]),
    noise=st.booleans(),
    gone=st.booleans(),
)
def test_pieces_of_any_size_give_the_sum_of_one(piece: int, dim: int, bits: int, noise: bool, gone: bool) -> None:
    settings_ = {"noise_multiplier": 0.5, "noisers": 2} if noise and bits > 20 else {}
    drop, sums = {"mask": [2]} if gone else {}, []
    before = pieces.PIECE
    try:
        for size in (1 << 24, max(piece, dim // 64 * 4)):
            pieces.PIECE = size
            federation = Federation(n=4, dim=dim, bits=bits, **settings_)  # type: ignore[arg-type]
            sums.append(federation.run_reloaded(drop))
            assert federation.server.pieces == -(-(federation.server._encoding.size + 1) // size)
    finally:
        pieces.PIECE = before
    np.testing.assert_array_equal(sums[0].mean, sums[1].mean)
    assert sums[0].mean.dtype == np.float64
    np.testing.assert_array_equal(sums[0].mean, federation.expected([i for i in range(4) if not gone or i != 2]))


@pytest.mark.parametrize("settings_", [{}, {"bits": 16}, {"noise_multiplier": 0.5, "noisers": 2}], ids=str)
def test_float32_is_the_rounded_mean_in_the_memory_of_the_sum(settings_: dict[str, float]) -> None:
    means = []
    for precision in (np.float64, np.float32):
        federation = Federation(n=4, dim=DIM, **settings_).until("unmask")  # type: ignore[arg-type]
        for i in range(4):
            federation.receive("unmask", federation.answer("unmask", i))
        words = federation.server._sum
        means.append(federation.server.close_unmask(precision).mean)
        assert np.shares_memory(words, means[-1]) == (precision is np.float32 and federation.bits > 16)
    np.testing.assert_array_equal(means[0].astype(np.float32), means[1])


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 30))
def test_chunks_are_the_coordinates_in_their_order(sizes: list[int], size: int) -> None:
    whole = np.arange(sum(sizes), dtype=np.float32)
    parts = np.split(whole, np.cumsum(sizes)[:-1]) if sizes else []
    chunks = list(chunks_of(parts, size))
    assert all(chunk.size == size for chunk in chunks[:-1])
    np.testing.assert_array_equal(np.concatenate([*chunks, np.empty(0)]), whole)


def test_a_vector_in_parts_is_masked_like_the_whole_and_must_stay_what_it_is() -> None:
    federation = Federation(n=3, dim=DIM).until("mask")
    vector = federation.vectors[0]
    sent, parts = federation.sent["mask"][0], [vector[:5], vector[5:30], vector[30:]]
    assert list(federation.reload(0).mask(sent, parts)) == list(federation.reload(0).mask(sent, vector))
    with pytest.raises(UpdateRejected, match="more than once"):
        federation.reload(0).mask(sent, iter(parts))
    with pytest.raises(UpdateRejected, match=rf"shape \[{DIM}\]"):
        federation.reload(0).mask(sent, parts[:2])

    class Shrinking:
        readings = 0

        def __iter__(self) -> Iterator[NDArray[np.float32]]:
            self.readings += 1
            return iter([vector] if self.readings == 1 else [vector[:9]])

    client = federation.reload(0)
    messages = client.mask(sent, Shrinking())
    with pytest.raises(UpdateRejected, match="changed while it was read"):
        list(messages)
    assert client.next_stage == "refused"


def test_a_client_holds_a_piece_and_not_the_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", 1 << 18)
    dim, part = (1 << 21) - 1, np.full(1 << 16, 1e-5, np.float32)
    federation = Federation(n=3, dim=4).until("mask")
    federation = Federation(n=3, dim=dim)
    federation.until("mask")

    class Parts:
        def __iter__(self) -> Iterator[NDArray[np.float32]]:
            yield from (part for _ in range(31))
            yield part[:-1]

    tracemalloc.start()
    try:
        sizes = [len(message) for message in federation.clients[0].mask(federation.sent["mask"][0], Parts())]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(sizes) == 8
    assert peak < 3 * max(sizes) + 2_500_000 < 4 * dim * 0.7


# -- the server -------------------------------------------------------------------------------------------


def test_a_member_that_stops_after_its_first_piece_leaves_nothing_in_the_sum() -> None:
    federation = Federation(n=5, dim=DIM).until("mask")
    sent, server = [masked(federation, i) for i in range(5)], federation.server
    asked = []
    while (piece := server.piece) is not None:
        asked.append(piece)
        for i in range(5):
            if i != 3 or len(asked) < 3:
                try:
                    federation.receive("mask", sent[i][piece])
                except LateMessage:
                    assert i == 3
        server.close_piece()
    assert asked == [0, 1, 2, 0, 1, 3, 4]
    with pytest.raises(LateMessage, match="did not send an earlier piece"):
        federation.receive("mask", sent[3][2])
    left = [0, 1, 2, 4]
    result = opened(federation, left)
    assert result.clients == 4
    np.testing.assert_array_equal(result.mean, federation.expected(left))


def test_too_few_left_between_two_pieces_abort() -> None:
    federation = Federation(n=5, dim=DIM).until("mask")
    sent = [masked(federation, i) for i in range(5)]
    for i in range(5):
        federation.receive("mask", sent[i][0])
    federation.server.close_piece()
    for i in range(3):
        federation.receive("mask", sent[i][1])
    federation.server.close_piece()
    assert federation.server.piece is None
    with pytest.raises(RoundAborted) as aborted:
        federation.close("mask")
    assert aborted.value.counts["mask"] == 3


def test_what_the_server_takes_for_a_piece() -> None:
    federation = Federation(n=4, dim=DIM).until("mask")
    sent = [masked(federation, i) for i in range(4)]
    body = sent[0][0][BODY]
    with pytest.raises(StageOrder, match="piece 1 arrived while piece 0"):
        federation.receive("mask", sent[0][1])
    for number in (5, 2**32 - 1):
        with pytest.raises(MalformedMessage, match=f"piece {number} of 5"):
            federation.receive("mask", lie(federation, 0, MessageKind.MASKED, number.to_bytes(4, "big") + body[4:]))
    with pytest.raises(MalformedMessage, match="12 bytes for 8 residues"):  # the last piece's words in the first's name
        federation.receive("mask", lie(federation, 0, MessageKind.MASKED, bytes(4) + sent[0][4][BODY][4:]))
    altered = bytearray(sent[0][0])
    for at in (44, 50):  # of the number, and of the words
        altered[at] ^= 1
        with pytest.raises(BadSignature):
            federation.receive("mask", bytes(altered))
        altered[at] ^= 1
    other = Federation(n=4, dim=DIM, seed=b"another round").until("mask")
    with pytest.raises((WrongRound, UnknownIdentity)):
        federation.receive("mask", masked(other, 0)[0])
    for i in range(4):
        federation.receive("mask", sent[i][0])
    with pytest.raises(DuplicateMessage, match="piece 0 already"):
        federation.receive("mask", sent[0][0])
    with pytest.raises(StageOrder, match="still to be collected"):
        federation.close("mask")
    for _ in range(4):
        for i in range(4):
            federation.receive("mask", sent[i][federation.server.piece or 0])
        federation.server.close_piece()
    with pytest.raises(StageOrder, match="no piece"):
        federation.server.close_piece()
    np.testing.assert_array_equal(opened(federation, [0, 1, 2, 3]).mean, federation.expected(range(4)))


# -- the store --------------------------------------------------------------------------------------------


def member_of(federation: Federation, i: int, path: Path) -> Member:
    """Member i, which has accepted the others' shares, with its state on disk."""
    store, key = MemberStore(path, durable=False), RoundKey("test", 1, 0)
    store.claim(key, "plan", b"training")
    store.open(OpenRound(key, federation.clients[i].to_bytes(), federation.vectors[i], 1.0), b"training")
    return Member(federation.identities[i], federation.roster, federation.policy, store)


def asked(member: Member, federation: Federation, piece: int) -> bytes:
    return member.answer("mask", PieceRequest(1, 0, federation.sent["mask"][0], piece)).payload


def test_any_piece_is_answered_again_until_the_next_stage(tmp_path: Path) -> None:
    federation = Federation(n=4, dim=DIM).until("mask")
    expected = list(federation.reload(0).mask(federation.sent["mask"][0], federation.vectors[0]))
    member = member_of(federation, 0, tmp_path / "state.sqlite")
    plain = federation.vectors[0].tobytes()
    assert plain in (tmp_path / "state.sqlite").read_bytes()
    assert [asked(member, federation, number) for number in (3, 0, 0, 4, 1, 2)] == [
        expected[number] for number in (3, 0, 0, 4, 1, 2)
    ]
    assert plain not in (tmp_path / "state.sqlite").read_bytes()
    federation.play("mask")
    member.answer("consistency", StagePayload(1, 0, federation.sent["consistency"][0]))
    assert expected[3][45:-64] not in (tmp_path / "state.sqlite").read_bytes()
    with pytest.raises(Refused, match="masked before"):
        asked(member, federation, 0)
    with pytest.raises(Refused, match="not open"):  # that was final
        asked(member, federation, 0)


@pytest.mark.parametrize("piece", [-1, 5, 2**40])
def test_a_piece_out_of_range_is_refused_and_final(tmp_path: Path, piece: int) -> None:
    federation = Federation(n=4, dim=DIM).until("mask")
    member = member_of(federation, 0, tmp_path / "state.sqlite")
    with pytest.raises(MalformedFields, match="pieces 0 to 4"):
        asked(member, federation, piece)
    with pytest.raises(Refused, match="not open"):
        asked(member, federation, 0)
    assert federation.vectors[0].tobytes() not in (tmp_path / "state.sqlite").read_bytes()


KILLED = """
import os, signal, sys
from pathlib import Path
from gradtf_fl.flower import Member, MemberStore
from gradtf_fl.flower.member_store import StoredPieces
from gradtf_fl.round_messages import PieceRequest
from gradtf_fl.secagg import ClientPolicy, Identity, Roster, pieces
from tests.secagg.federation import Federation
pieces.PIECE = 8
kept = StoredPieces.__setitem__
def killed(self, number, message):
    kept(self, number, message)
    if number == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
StoredPieces.__setitem__ = killed
federation = Federation(n=4, dim=35).until("mask")
member = Member(federation.identities[0], federation.roster, federation.policy, MemberStore(Path(sys.argv[1])))
for number in (0, 1):
    member.answer("mask", PieceRequest(1, 0, federation.sent["mask"][0], number))
    if sys.argv[2] == "9":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("number", ["2", "9"], ids=["while it masks", "between two pieces"])
def test_a_store_killed_with_minus_9_answers_with_the_same_bytes(tmp_path: Path, number: str) -> None:
    federation = Federation(n=4, dim=DIM).until("mask")
    expected = list(federation.reload(0).mask(federation.sent["mask"][0], federation.vectors[0]))
    member = member_of(federation, 0, tmp_path / "state.sqlite")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "state.sqlite"), number]
    done = subprocess.run(command, capture_output=True, timeout=120, env=environment, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    with member.store.stage(1, 0) as left:
        assert (left.vector is None) == (number == "9")  # all of a stage, or nothing
        assert len(left.pieces) == (5 if number == "9" else 0)
    assert [asked(member, federation, n) for n in range(5)] == expected


def test_an_update_that_was_never_masked_stays_in_its_rows_for_the_next_attempt(tmp_path: Path) -> None:
    store, vector = MemberStore(tmp_path / "state.sqlite"), np.arange(3_000_000, dtype=np.float32)
    store.claim(RoundKey("run", 1, 0), "plan", b"training")
    store.open(OpenRound(RoundKey("run", 1, 0), b"first", vector, 1.0), b"training")
    for _ in range(2):  # a process that died before it could answer claims again
        assert store.claim(RoundKey("run", 1, 1), "plan", b"training")
    store.open(OpenRound(RoundKey("run", 1, 1), b"second", None, 1.0), b"training")
    with store.stage(1, 1) as opened:
        assert opened.vector is not None
        assert [part.size for part in opened.vector] == [1 << 20, 1 << 20, 3_000_000 - (1 << 21)]
        np.testing.assert_array_equal(np.concatenate(list(opened.vector)), vector)
    assert store.claim(RoundKey("run", 1, 2), "plan", b"training")
    assert not store.claim(RoundKey("run", 1, 2), "plan", b"another training")  # another process: the rows are gone
    with pytest.raises(Refused, match="not there any more"):
        store.open(OpenRound(RoundKey("run", 1, 2), b"third", None, 1.0), b"training")
