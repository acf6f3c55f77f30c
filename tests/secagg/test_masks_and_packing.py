"""Masks cancel in every sum, packing is dense and exact, the encoding cannot wrap and is unbiased."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradtf_fl.secagg import MalformedMessage, Quantizer, ReplayRandomness, UpdateRejected
from gradtf_fl.secagg.crypto import primitives as crypto
from gradtf_fl.secagg.crypto.masks import CHUNK_BYTES, add_masks
from gradtf_fl.secagg.crypto.round_secrets import RoundSecrets
from gradtf_fl.secagg.packing import BIT_WIDTHS, pack, packed_size, unpack_chunks, word_dtype
from gradtf_fl.secagg.quantization import CHUNK, extent


def unpacked(packed: bytes, bits: int, size: int) -> list[int]:
    out = np.empty(size, dtype=np.uint64)
    for where, words in unpack_chunks(memoryview(packed), bits, size):
        out[where] = words
    return [int(word) & ((1 << bits) - 1) for word in out]


def encoded(quantizer: Quantizer, vector: np.ndarray, weight: float, key: bytes) -> np.ndarray:  # type: ignore[type-arg]
    return np.concatenate(list(quantizer.encode(vector, weight, key)))


# -- masks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_streams_run_on_across_chunks(dtype: str) -> None:
    size = CHUNK_BYTES // np.dtype(dtype).itemsize * 2 + 3
    words = np.ones(size, dtype=dtype)
    keys = [bytes([i]) * 32 for i in range(3)]
    add_masks(words, plus=keys[:2], minus=keys[2:])
    streams = [np.frombuffer(crypto.keystream(key, 32 + words.nbytes)[32:], dtype=dtype) for key in keys]
    np.testing.assert_array_equal(words, 1 + streams[0] + streams[1] - streams[2])


@pytest.mark.parametrize("threads", [1, 2, 3, 9])
def test_threads_change_nothing(threads: int) -> None:
    size = CHUNK_BYTES // 4 * 5 + 3
    words = np.arange(size, dtype="<u4")
    keys = [bytes([i]) * 32 for i in range(4)]
    add_masks(words, plus=keys[:3], minus=keys[3:], threads=threads)
    streams = [np.frombuffer(crypto.keystream(key, 32 + words.nbytes)[32:], dtype="<u4") for key in keys]
    expected = np.arange(size, dtype="<u4") + streams[0] + streams[1] + streams[2] - streams[3]
    np.testing.assert_array_equal(words, expected)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 7), seed=st.binary(min_size=1, max_size=8), bits=st.sampled_from(BIT_WIDTHS))
def test_pair_masks_cancel_and_self_masks_remain(n: int, seed: bytes, bits: int) -> None:
    randomness = ReplayRandomness(seed)
    commitment = randomness(32)
    clients = [RoundSecrets(randomness(32), commitment, i) for i in range(n)]
    public = [crypto.x25519_public(client.mask_private) for client in clients]
    total = np.zeros(9, dtype=word_dtype(bits))
    left = np.zeros_like(total)
    for i, client in enumerate(clients):
        plus, minus = client.mask_keys({j: public[j] for j in range(n) if j != i})
        assert len(plus) + len(minus) == n
        one = np.zeros_like(total)
        add_masks(one, plus, minus)
        assert one.any()
        total += one
        add_masks(left, plus=[crypto.self_mask_key(client.self_secret, commitment, i)])
    np.testing.assert_array_equal(total, left)


def test_all_mask_keys_of_a_round_differ() -> None:
    randomness = ReplayRandomness(b"keys")
    commitment = randomness(32)
    clients = [RoundSecrets(randomness(32), commitment, i) for i in range(6)]
    public = [crypto.x25519_public(client.mask_private) for client in clients]
    pairs = {
        crypto.pair_mask_key(clients[i].mask_private, public[j], commitment, i, j) for i, j in combinations(range(6), 2)
    }
    selves = {crypto.self_mask_key(client.self_secret, commitment, client.me) for client in clients}
    assert len(pairs | selves) == 15 + 6


# -- packing ----------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(data=st.data(), bits=st.sampled_from(BIT_WIDTHS))
def test_packing_is_dense_little_endian_and_exact(data: st.DataObject, bits: int) -> None:
    values = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=23))
    high = data.draw(st.integers(0, 2**32 - 1)) << bits  # bits above b must not leak into neighbours
    words = np.array([(value | high) & (0xFFFF if bits == 16 else 0xFFFFFFFF) for value in values])
    packed = pack(words.astype(word_dtype(bits)), bits)
    by_hand = sum(value << (bits * i) for i, value in enumerate(values))
    assert packed == by_hand.to_bytes(packed_size(bits, len(values)), "little")
    assert unpacked(packed, bits, len(values)) == values


@pytest.mark.parametrize("bits", BIT_WIDTHS)
def test_packing_across_chunks(bits: int) -> None:
    size = 2 * CHUNK + 5
    values = np.random.default_rng(0).integers(0, 2**bits, size=size, dtype=np.uint64)
    words = values.astype(word_dtype(bits))
    packed = pack(words, bits)
    assert len(packed) == -(-size * bits // 8)
    assert packed == b"".join(pack(words[i : i + CHUNK], bits) for i in range(0, size, CHUNK))
    assert unpacked(packed, bits, size) == values.tolist()


@pytest.mark.parametrize("bits", BIT_WIDTHS)
def test_wrong_length_and_padding_are_refused(bits: int) -> None:
    packed = pack(np.arange(5, dtype=word_dtype(bits)), bits)
    for bad in (packed[:-1], packed + b"\0", b""):
        with pytest.raises(MalformedMessage):
            unpacked(bad, bits, 5)
    if bits == 20:  # 5 residues are 12.5 bytes
        with pytest.raises(MalformedMessage, match="padding"):
            unpacked(packed[:-1] + b"\x10", bits, 5)


# -- encoding ---------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    bits=st.sampled_from(BIT_WIDTHS),
    parties=st.integers(1, 1000),
    clip=st.floats(1e-6, 1e6),
    weight=st.floats(1e-3, 1e4),
)
def test_no_sum_can_wrap_and_no_bit_is_wasted(bits: int, parties: int, clip: float, weight: float) -> None:
    quantizer = Quantizer(bits, parties, clip, weight)
    assert parties * quantizer.q_max <= 2 ** (bits - 1) - 1 < parties * (quantizer.q_max + 1)
    for vector in (np.array([clip, 0.0]), np.array([0.0, -clip]), np.array([-1e300, 1e300])):
        integers = quantizer.integers(encoded(quantizer, vector, weight, bytes(32)))
        assert np.abs(integers).max() <= quantizer.q_max
        assert integers[-1] == quantizer.q_max
    assert quantizer.step == pytest.approx(weight * clip / quantizer.q_max)
    if parties * 64 < 2**bits:
        assert quantizer.step == pytest.approx(2 * parties * weight * clip / 2**bits, rel=0.05)


def test_a_sum_of_extremes_decodes_exactly() -> None:
    for bits in BIT_WIDTHS:
        quantizer = Quantizer(bits, 7, 2.0, 1.0)
        total = np.zeros(2, dtype=word_dtype(bits))
        for _ in range(7):
            total += encoded(quantizer, np.array([-2.0]), 1.0, bytes(32))
        assert quantizer.integers(total).tolist() == [-7 * quantizer.q_max, 7 * quantizer.q_max]


@pytest.mark.parametrize(
    "arguments",
    [
        (8, 3, 1.0, 1.0),
        (16, 2**15, 1.0, 1.0),
        (16, 0, 1.0, 1.0),
        (24, 3, 0.0, 1.0),
        (24, 3, float("nan"), 1.0),
        (24, 3, float("inf"), 1.0),
        (24, 3, 1.0, -1.0),
        (24, 3, 1e-320, 1.0),
        (24, 3, 1e300, 1e300),
    ],
)
def test_impossible_encodings_are_refused(arguments: tuple[int, int, float, float]) -> None:
    with pytest.raises(ValueError, match=r"bits|positive"):
        Quantizer(*arguments)


def test_clipping_is_by_l2_norm() -> None:
    assert extent(np.array([3.0, 4.0]), 10.0).factor == 1.0
    assert extent(np.array([3.0, 4.0]), 2.5).factor == pytest.approx(0.5)
    assert extent(np.array([0.0, 0.0]), 1.0).factor == 1.0
    assert extent(np.array([1e200, 1e200]), 1.0).factor == pytest.approx(1e-200 / 2**0.5)
    assert extent(np.array([3e-200, 4e-200]), 1e-200).factor == pytest.approx(0.2)
    long = np.ones(50_000, dtype=np.float32)
    assert extent(long, 1.0).factor == pytest.approx(50_000**-0.5, rel=1e-12)
    quantizer = Quantizer(32, 3, 2.5, 1.0)
    decoded = quantizer.integers(encoded(quantizer, np.array([3.0, 4.0]), 1.0, bytes(32)))[:2] * quantizer.step
    np.testing.assert_allclose(decoded, [1.5, 2.0], atol=2 * quantizer.step)


@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7])
def test_chunks_hold_every_coordinate_and_the_weight(size: int) -> None:
    quantizer = Quantizer(32, 2, 1.0, 4.0)
    vector = np.random.default_rng(0).normal(size=size) / 2 / size**0.5
    chunks = list(quantizer.encode(vector, 3.0, bytes(32)))
    assert sum(chunk.size for chunk in chunks) == size + 1
    assert all(chunk.size == CHUNK for chunk in chunks[:-1])
    integers = quantizer.integers(np.concatenate(chunks))
    scale = extent(vector, 1.0).factor * 3.0
    np.testing.assert_allclose(integers[:-1] * quantizer.step, scale * vector, atol=quantizer.step)
    assert integers[-1] == pytest.approx(0.75 * quantizer.q_max, abs=1)


def test_rounding_is_unbiased_and_to_a_neighbour() -> None:
    quantizer = Quantizer(16, 2, 1.0, 1.0)
    exact = 0.3 * quantizer.step * np.ones(20_000) + 5 * quantizer.step
    exact[1::2] *= -1
    clip = float(np.linalg.norm(exact)) * 1.001
    wide = Quantizer(16, 2, clip, 1.0)
    exact *= wide.step / quantizer.step  # 5.3 steps of the encoding used
    exact /= max(1.0, np.linalg.norm(exact) / clip)
    target = exact / wide.step
    integers = wide.integers(encoded(wide, exact, 1.0, b"k" * 32))[:-1]
    assert np.abs(integers - target).max() < 1
    spread = np.sqrt(np.mean((target - np.floor(target)) * (np.ceil(target) - target)) / target.size)
    assert abs(np.mean(integers - target)) < 4 * spread
    assert abs(np.mean(np.abs(integers) - np.abs(target))) < 4 * spread
    assert not np.array_equal(integers, wide.integers(encoded(wide, exact, 1.0, b"l" * 32))[:-1])


@pytest.mark.parametrize(
    "vector",
    [
        np.array([1.0, np.nan]),
        np.array([np.inf, 0.0]),
        np.array([0.0, -np.inf], dtype=np.float32),
        np.array([1, 2]),
        np.zeros((2, 2)),
        [1.0, 2.0],
    ],
)
def test_own_bad_vectors_are_rejected(vector: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(UpdateRejected):
        encoded(Quantizer(24, 3, 1.0, 1.0), vector, 1.0, bytes(32))


@pytest.mark.parametrize("weight", [0.0, -1.0, 1.5, float("nan"), float("inf")])
def test_own_bad_weights_are_rejected(weight: float) -> None:
    with pytest.raises(UpdateRejected):
        encoded(Quantizer(24, 3, 1.0, 1.0), np.zeros(2), weight, bytes(32))
