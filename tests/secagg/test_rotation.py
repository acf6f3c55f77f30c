"""The rotation is orthonormal, its own inverse but for the order, and spreads whatever it gets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradtf_fl.secagg.crypto.primitives import keystream
from gradtf_fl.secagg.noise.rotation import MAX_BLOCK, Rotation, block_size, padded_size
from gradtf_fl.secagg.quantization import CHUNK

SEED = bytes(range(32))


def signs(seed: bytes, size: int) -> list[int]:
    stream = keystream(seed, -(-size // 8))
    return [-1 if stream[i // 8] >> (i % 8) & 1 else 1 for i in range(size)]


def test_four_points_by_hand() -> None:
    s = signs(SEED, 4)
    assert len(set(s)) == 2, "a seed whose first signs are all equal shows nothing"
    a, b, c, d = (sign * value for sign, value in zip(s, (1.0, 2.0, 3.0, 5.0), strict=True))
    by_hand = [(a + b + c + d) / 2, (a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2]
    np.testing.assert_allclose(Rotation(4, SEED).rotate(np.array([1.0, 2.0, 3.0, 5.0])), by_hand, rtol=1e-15)


@pytest.mark.parametrize("size", [1, 2, 8, 32, 512, 4096])
def test_each_block_size_is_the_sylvester_matrix_times_the_signs(size: int) -> None:
    row = np.arange(size)
    columns = row[:: max(1, size // 37)]
    parity = np.array([[bin(i & j).count("1") % 2 for j in columns] for i in row])
    expected = (1 - 2 * parity) / np.sqrt(size) * np.array(signs(SEED, size))[columns]
    units = np.eye(size)[columns]
    found = np.stack([Rotation(size, SEED).rotate(unit) for unit in units], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-15)


@pytest.mark.parametrize(
    ("dim", "block", "padded"),
    [
        (1, 1, 1),
        (2, 2, 2),
        (3, 4, 4),
        (4095, 4096, 4096),
        (4096, 4096, 4096),
        (4097, 4096, 8192),
        (10**7, 4096, 10002432),
    ],
)
def test_blocks_and_padding(dim: int, block: int, padded: int) -> None:
    assert (block_size(dim), padded_size(dim)) == (block, padded)


@settings(max_examples=40, deadline=None)
@given(
    dim=st.one_of(st.integers(1, 300), st.sampled_from([4095, 4096, 4097, CHUNK, CHUNK + 1, 2 * CHUNK + 4099])),
    seed=st.binary(min_size=32, max_size=32),
    single=st.booleans(),
)
def test_norms_and_products_stay_and_restoring_inverts(dim: int, seed: bytes, single: bool) -> None:
    draw = np.random.default_rng(dim)
    one, other = draw.standard_normal(dim), draw.standard_normal(dim)
    if single:
        one = one.astype(np.float32)
    rotation = Rotation(dim, seed)
    rotated = rotation.rotate(one)
    assert rotated.shape == (rotation.padded,)
    assert rotated @ rotated == pytest.approx(float(one.astype(np.float64) @ one), rel=1e-12)
    assert rotated @ rotation.rotate(other) == pytest.approx(float(one @ other), abs=1e-12 * dim)
    np.testing.assert_allclose(rotation.restore(rotated), one, atol=1e-12)


def test_a_spike_spreads_over_its_block_alone() -> None:
    dim = CHUNK + 3 * MAX_BLOCK
    spike = np.zeros(dim)
    spike[CHUNK + MAX_BLOCK + 77] = 64.0
    rotated = Rotation(dim, SEED).rotate(spike)
    inside = slice(CHUNK + MAX_BLOCK, CHUNK + 2 * MAX_BLOCK)
    np.testing.assert_allclose(np.abs(rotated[inside]), 1.0)
    rotated[inside] = 0
    assert not rotated.any()


def test_chunks_are_the_whole_scaled_and_signs_run_on() -> None:
    vector = np.random.default_rng(1).standard_normal(2 * CHUNK + 5)
    rotation = Rotation(vector.size, SEED)
    chunks = [chunk.copy() for chunk in rotation.rotate_chunks(vector, 3.0)]
    assert [chunk.size for chunk in chunks] == [CHUNK, CHUNK, MAX_BLOCK]
    np.testing.assert_allclose(np.concatenate(chunks), 3 * rotation.rotate(vector), atol=1e-12)
    alone = Rotation(MAX_BLOCK, SEED).rotate(vector[:MAX_BLOCK])
    np.testing.assert_array_equal(alone, rotation.rotate(vector)[:MAX_BLOCK])
    flipped = vector * np.array(signs(SEED, vector.size))
    np.testing.assert_allclose(rotation.rotate(vector)[2 * CHUNK], flipped[2 * CHUNK :].sum() / 64, atol=1e-12)


def test_integers_are_restored_with_their_step() -> None:
    integers = np.arange(-8, 8, dtype=np.int64)
    rotation = Rotation(13, SEED)
    np.testing.assert_allclose(rotation.restore(integers, 0.25), rotation.restore(integers * 0.25), atol=1e-15)


def test_seeds_differ() -> None:
    vector = np.ones(MAX_BLOCK)
    assert not np.allclose(Rotation(MAX_BLOCK, SEED).rotate(vector), Rotation(MAX_BLOCK, bytes(32)).rotate(vector))


def test_wrong_shapes_and_seeds_are_refused() -> None:
    for arguments in ((0, SEED), (5, b"short")):
        with pytest.raises(ValueError, match="rotation"):
            Rotation(*arguments)
    with pytest.raises(ValueError, match=r"\[5\]"):
        Rotation(5, SEED).rotate(np.zeros(6))
    with pytest.raises(ValueError, match=r"\[8\]"):
        Rotation(5, SEED).restore(np.zeros(5))
