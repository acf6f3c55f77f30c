"""The noisy encoding: what a sum carries, what no client exceeds, what cannot happen."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gradtf_fl.secagg import UpdateRejected
from gradtf_fl.secagg.noise.distributed_noise import DistributedNoise
from gradtf_fl.secagg.noise.rotation import Rotation
from gradtf_fl.secagg.noise.skellam import MIN_VARIANCE, SkellamNoise
from gradtf_fl.secagg.packing import BIT_WIDTHS, word_dtype
from gradtf_fl.secagg.quantization import CHUNK

SEED = bytes(range(32))
Vector = NDArray[np.float64]


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def words(noise: DistributedNoise, vector: Vector, client: int = 1, rounding: int = 0) -> NDArray[np.uint32]:
    chunks = noise.encode(vector, rotation_seed=SEED, rounding_key=key(1000 + client + rounding), noise_key=key(client))
    return np.concatenate(list(chunks))


def rounded(noise: DistributedNoise, vector: Vector, rounding: int = 0) -> NDArray[np.int64]:
    """A client's integers [padded] before the noise: the noise is drawn again and taken off, modulo 2^b."""
    sent = words(noise, vector, 1, rounding)[:-1]
    added = SkellamNoise(key(1), noise.variance).take(noise.padded)
    return noise.integers((sent - added.astype(sent.dtype)).astype(sent.dtype))


def opened(noise: DistributedNoise, vectors: list[Vector]) -> Vector:
    """The decoded sum of ``vectors``, one per client, added as words as the server does."""
    total = np.zeros(noise.padded + 1, dtype=word_dtype(noise.bits))
    for client, vector in enumerate(vectors):
        total += words(noise, vector, client)
    integers = noise.integers(total)
    assert integers[-1] == len(vectors) * noise.q_max
    return noise.decode(integers[:-1], SEED)


def unit(dim: int, draw: int = 0) -> Vector:
    vector = np.random.default_rng(draw).standard_normal(dim)
    return vector / np.linalg.norm(vector)


# -- the noise of the sum ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "z"), [(24, 0.8), (20, 2.0)])
def test_the_smallest_sum_that_opens_carries_the_promised_noise(bits: int, z: float) -> None:
    """n = 5, t - c = 3 survivors: the decoded sum's noise has variance (z clip)^2 within 2 %, over 10^6 coordinates."""
    dim, clip = 1_000_000, 0.5
    noise = DistributedNoise(bits, 5, clip, dim, z, 3)
    vectors = [clip * unit(dim, client) for client in range(5)]
    errors = opened(noise, vectors[:3]) - sum(vectors[:3])
    assert errors.var() == pytest.approx((z * clip) ** 2, rel=0.02)
    assert noise.honest_variance * noise.step**2 == pytest.approx((z * clip) ** 2)
    assert abs(errors.mean()) < 4 * z * clip / math.sqrt(dim)
    errors = opened(noise, vectors) - sum(vectors)
    assert errors.var() == pytest.approx(5 / 3 * (z * clip) ** 2, rel=0.02)


def test_the_noise_of_a_coordinate_is_gaussian_in_shape_and_white() -> None:
    dim = 200_000
    noise = DistributedNoise(24, 4, 1.0, dim, 1.0, 2)
    errors = opened(noise, [np.zeros(dim)] * 2)
    assert (errors**4).mean() == pytest.approx(3.0, rel=0.05)
    assert abs(errors[1:] @ errors[:-1]) / dim < 4 / math.sqrt(dim)


# -- nothing wraps ----------------------------------------------------------------------------------------


def chernoff(variance: float, t: float) -> float:
    """ln of the bound of P(|X| >= t): the exact minimum over h, not the closed form that the library uses."""
    h = math.asinh(t / variance)
    return math.log(2) + 2 * variance * math.sinh(h / 2) ** 2 - h * t


@settings(max_examples=150, deadline=None)
@given(
    bits=st.sampled_from(BIT_WIDTHS),
    parties=st.integers(2, 1000),
    dim=st.sampled_from([1, 7, 1000, 10**5, 10**7]),
    z=st.floats(0.05, 30),
    part=st.floats(0, 1),
)
def test_no_sum_can_wrap_and_no_bit_is_wasted(bits: int, parties: int, dim: int, z: float, part: float) -> None:
    try:
        noise = DistributedNoise(bits, parties, 1.0, dim, z, max(1, int(part * parties)))
    except ValueError as refusal:
        assert "bits are too few" in str(refusal)  # noqa: PT017
        assume(False)
    assert noise.variance >= MIN_VARIANCE
    room = 2 ** (bits - 1) - parties * noise.q_max
    assert room > 0
    assert chernoff(parties * noise.variance, room) + math.log(noise.padded) <= -60 * math.log(2)
    more = noise.q_max + max(2, noise.q_max // 8)
    left = 2 ** (bits - 1) - parties * more
    variance = parties * noise.variance * (more / noise.q_max) ** 2
    assert left <= 0 or chernoff(variance, left) + math.log(noise.padded) > -65 * math.log(2)


@pytest.mark.parametrize("bits", BIT_WIDTHS)
def test_the_most_extreme_clients_decode_exactly(bits: int) -> None:
    """Seven clients whose rotated vectors are all one and the same spike, clamped to -q_max, and all their noise."""
    dim, parties = 4096, 7
    noise = DistributedNoise(bits, parties, 3.0, dim, 0.3, 5)
    rotated = np.zeros(dim)
    rotated[11] = -3.0
    spike = Rotation(dim, SEED).restore(rotated)
    total = sum(words(noise, spike, client) for client in range(parties))
    added = sum(SkellamNoise(key(client), noise.variance).take(dim) for client in range(parties))
    integers = noise.integers(np.asarray(total))[:-1] - added
    assert integers[11] == -parties * noise.q_max
    assert np.abs(np.delete(integers, 11)).max() <= parties


# -- what one client can contribute -----------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    bits=st.sampled_from([16, 20, 24]),
    dim=st.sampled_from([1, 2, 3, 50, 4096, 5000]),
    scale=st.sampled_from([1e-3, 1.0, 1e6, 1e200]),
    spikes=st.integers(0, 3),
)
def test_no_client_exceeds_the_norms(data: st.DataObject, bits: int, dim: int, scale: float, spikes: int) -> None:
    noise = DistributedNoise(bits, 10, 1.0, dim, 1.0, 5)
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    vector = draw.standard_normal(dim)
    vector[draw.integers(0, dim, size=spikes)] = 1e4
    rotated = np.concatenate([chunk.copy() for chunk in Rotation(dim, SEED).rotate_chunks(vector)])
    for candidate in (vector * scale, Rotation(dim, SEED).restore(np.sign(rotated)), np.sign(vector)):
        integers = rounded(noise, candidate, data.draw(st.integers(0, 2**20))).tolist()
        assert max(map(abs, integers)) <= noise.q_max
        assert sum(k * k for k in integers) <= noise.l2**2
        assert sum(map(abs, integers)) <= noise.l1


def test_clamping_never_raises_the_norm_and_touches_only_what_is_above_the_peak() -> None:
    noise = DistributedNoise(24, 10, 1.0, 3 * 4096, 1.0, 5)
    rotated = np.zeros(noise.padded)
    rotated[[3, 5000]] = 0.8, -0.6  # norm 1, far above the peak
    assert noise.peak == pytest.approx(math.sqrt(2 * math.log(2**15 * 2**20) / 4096))  # 2 * padded < 2^15
    integers = rounded(noise, Rotation(noise.dim, SEED).restore(rotated))
    assert (integers[3], integers[5000]) == (noise.q_max, -noise.q_max)
    assert np.abs(np.delete(integers, [3, 5000])).max() <= 1
    assert np.linalg.norm(integers) < 0.25 * noise.scaled_clip
    flat = rounded(noise, np.full(noise.dim, 1.0))
    assert np.abs(flat).max() < noise.q_max
    assert np.linalg.norm(flat) == pytest.approx(noise.scaled_clip, rel=1e-4)


def test_random_rotations_stay_below_the_peak() -> None:
    """A spike is the flattest after rotation; a block of equal values is among the worst. None is clamped."""
    dim = 4096
    noise = DistributedNoise(24, 3, 1.0, dim, 1.0, 2)
    vector = np.full(dim, 1 / 64.0)
    largest = [np.abs(Rotation(dim, key(seed)).rotate(vector)).max() for seed in range(200)]
    assert max(largest) < noise.peak
    assert np.mean(largest) > 0.4 * noise.peak


def test_the_sensitivities_by_hand() -> None:
    noise = DistributedNoise(24, 5, 2.0, 4000, 1.0, 3)
    c = 2.0 / noise.step
    assert noise.scaled_clip == pytest.approx(c, rel=1e-12)
    squared = c**2 + 4096 / 4 + math.sqrt(2 * math.log(2**20)) * (c + 64 / 2)
    assert noise.l2**2 == pytest.approx(squared, rel=1e-12)
    assert noise.l1 == pytest.approx(64 * noise.l2)
    tiny = DistributedNoise(16, 5, 1.0, 1, 1.0, 3)
    assert tiny.l2 == tiny.q_max + 1  # (c + sqrt(1)), and peak = clip
    assert tiny.l1 == tiny.l2


def test_rounding_inflates_the_norm_as_much_as_the_bound_says() -> None:
    """Why l2 is not clip / step: on a coarse grid most of the norm is rounding."""
    noise = DistributedNoise(16, 1000, 1.0, 1 << 20, 1.0, 600)
    integers = rounded(noise, unit(1 << 20))
    assert 1.3 * noise.scaled_clip < np.linalg.norm(integers) <= noise.l2


def test_a_rounding_above_the_bound_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bound that most roundings exceed: those, and only those, are replaced by one within it."""
    noise, vector = DistributedNoise(16, 100, 1.0, 1 << 16, 1.0, 60), unit(1 << 16)
    free = [rounded(noise, vector, rounding) for rounding in range(12)]
    norms = [float(np.linalg.norm(integers)) for integers in free]
    limit = sum(sorted(norms)[3:5]) / 2
    monkeypatch.setattr(DistributedNoise, "l2", property(lambda _: limit))
    again = [rounded(noise, vector, rounding) for rounding in range(12)]
    changed = [not np.array_equal(one, other) for one, other in zip(free, again, strict=True)]
    assert changed == [norm > limit for norm in norms]
    assert all(np.linalg.norm(integers) <= limit for integers in again)
    limit = min(norms) / 2
    with pytest.raises(UpdateRejected, match="roundings"):
        rounded(noise, vector)


# -- encoding and decoding --------------------------------------------------------------------------------


def test_rounding_is_unbiased() -> None:
    """200 roundings of one vector on the coarsest grid: their mean is the vector within statistical error."""
    noise = DistributedNoise(16, 1000, 1.0, 4096, 1.0, 600)
    vector = 0.9 * unit(4096)
    decoded = np.stack([noise.decode(rounded(noise, vector, rounding), SEED) for rounding in range(200)])
    deviation = decoded.std(axis=0)
    assert 0.38 * noise.step < deviation.mean() < 0.43 * noise.step  # sqrt(1/6) steps for uniform fractions
    scores = (decoded.mean(axis=0) - vector) / deviation * math.sqrt(200)
    assert np.abs(scores).max() < 5
    assert abs(scores.mean()) < 4 / math.sqrt(4096)
    assert decoded.mean(axis=0) @ vector == pytest.approx(0.81, rel=0.01)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_long_vectors_are_scaled_down_to_the_clip(dtype: type) -> None:
    noise = DistributedNoise(32, 2, 0.25, 5000, 1.0, 2)
    vector = (7 * unit(5000)).astype(dtype)
    decoded = noise.decode(rounded(noise, vector), SEED)
    np.testing.assert_allclose(decoded, vector / 28, atol=2 * noise.step)


@pytest.mark.parametrize("dim", [1, 5000, CHUNK - 4096, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
def test_chunks_are_as_those_of_the_quantizer(dim: int) -> None:
    noise = DistributedNoise(24, 3, 1.0, dim, 1.0, 2)
    chunks = list(noise.encode(np.ones(dim), rotation_seed=SEED, rounding_key=key(2), noise_key=key(3)))
    sizes = [chunk.size for chunk in chunks]
    assert sum(sizes) == noise.padded + 1
    assert all(size == CHUNK for size in sizes[:-1])
    assert 1 <= sizes[-1] <= CHUNK
    assert all(chunk.dtype == np.dtype("<u4") and chunk.flags.writeable for chunk in chunks)
    assert chunks[-1][-1] == noise.q_max


def test_keys_decide_everything() -> None:
    noise = DistributedNoise(20, 5, 1.0, 300, 1.0, 3)
    vector = 0.1 * unit(300)
    first = words(noise, vector)
    np.testing.assert_array_equal(first, words(noise, vector))
    moved = noise.integers(first - words(noise, vector, rounding=1))
    assert np.abs(moved).max() == 1, "another rounding key changes the rounding alone"
    noisy = noise.integers(first - words(noise, vector, client=2))
    assert np.abs(noisy).max() > math.sqrt(noise.variance)


def unusable() -> Iterator[object]:
    for bad in (math.nan, math.inf, -math.inf):
        vector = unit(50)
        vector[7] = bad
        yield vector
        yield vector.astype(np.float32)
    yield unit(49)
    yield unit(50).reshape(5, 10)
    yield unit(50).tolist()
    yield unit(50).astype(np.float16)


@pytest.mark.parametrize("vector", list(unusable()))
def test_unusable_vectors_are_rejected_before_anything_is_sent(vector: Vector) -> None:
    noise = DistributedNoise(24, 5, 1.0, 50, 1.0, 3)
    with pytest.raises(UpdateRejected):
        noise.encode(vector, rotation_seed=SEED, rounding_key=key(1), noise_key=key(2))


@pytest.mark.parametrize(
    "vector", [np.zeros(50), np.full(50, 1e-300), np.full(50, 1e300), np.full(50, 3e38, np.float32)]
)
def test_extreme_vectors_are_encoded(vector: Vector) -> None:
    noise = DistributedNoise(24, 5, 1.0, 50, 1.0, 3)
    expected = np.sign(vector) / math.sqrt(50) if vector[0] > 1 else np.zeros(50)
    np.testing.assert_allclose(noise.decode(rounded(noise, vector), SEED), expected, atol=8 * noise.step)


# -- the grid ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((8, 5, 1.0, 10, 1.0, 3), "bits must be one of"),
        ((24, 5, 1.0, 0, 1.0, 3), "dim"),
        ((24, 5, 1.0, 10, 1.0, 0), "noisers"),
        ((24, 5, 1.0, 10, 1.0, 6), "noisers"),
        ((24, 5, 0.0, 10, 1.0, 3), "clip"),
        ((24, 5, math.inf, 10, 1.0, 3), "clip"),
        ((24, 5, 1e300, 10, 1.0, 3), "clip"),
        ((24, 5, 1.0, 10, 0.0, 3), "noise_multiplier"),
        ((24, 5, 1.0, 10, math.nan, 3), "noise_multiplier"),
        ((16, 1000, 1.0, 10**6, 0.1, 600), "more bits"),
        ((16, 20000, 1.0, 10**6, 1.0, 600), "more bits"),
        ((16, 5, 1.0, 10**6, 1e6, 5), "more bits"),
    ],
)
def test_impossible_parameters_are_refused(arguments: tuple[int, int, float, int, float, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        DistributedNoise(*arguments)


def test_the_clip_only_sets_the_unit() -> None:
    one, other = (DistributedNoise(24, 50, clip, 10**6, 0.7, 30) for clip in (1.0, 8.0))
    assert (one.q_max, one.variance, one.l2, one.l1) == (other.q_max, other.variance, other.l2, other.l1)
    assert other.step == 8 * one.step
