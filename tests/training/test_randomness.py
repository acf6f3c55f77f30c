"""Draws: a published vector, Box-Muller by hand, and independence of seeds, purposes and steps."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from gradtf_fl.privacy import NOISE_CSPRNG, NOISE_SEEDED
from gradtf_fl.training import randomness
from gradtf_fl.training.randomness import Draws, box_muller

CPU = torch.device("cpu")


def test_the_keystream_is_aes_256_ctr() -> None:
    """With key 0 and counter block 0: the first block of SP 800-38A's cipher, AES-256 of sixteen zero bytes."""
    draws = Draws(bytes(32), "")
    assert draws._keystream(b"\0", 0, 16).hex() == "dc95c078a2408989ad48a21492842087"
    assert draws._keystream(b"\0", 0, 40)[:16] == draws._keystream(b"\0", 0, 16)


def test_normals_follow_from_the_words() -> None:
    """Whole numbers w of 53 bits, signed: u = (w + 2^52 + 1) / 2^53 in (0, 1] and an angle of 2 pi w / 2^53."""
    words = torch.tensor([-(2**52), -1, 2**50, -(2**51)]) << 11
    radii, angles = [math.sqrt(106 * math.log(2)), math.sqrt(2 * math.log(2))], [math.pi / 4, -math.pi / 2]
    expected = [r * math.cos(t) for r, t in zip(radii, angles, strict=True)]
    expected += [r * math.sin(t) for r, t in zip(radii, angles, strict=True)]
    assert box_muller(words).tolist() == pytest.approx(expected, abs=1e-6)
    assert radii[0] > 8.5  # the tail of a float32 uniform with 24 bits ends at 5.8


def test_rows_follow_from_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    words = torch.tensor([-(2**63), 0, 2**62, 2**63 - 1])
    monkeypatch.setattr(Draws, "_words", lambda self, purpose, block, count: words.repeat(count // 4))
    draws = Draws(bytes(32), "")
    drawn = {
        q: draws.rows(0, 4, q).tolist() for q in (0.0, 2.0**-60, 0.5, 0.5 + 2.0**-53, 0.75, 0.76, 1 - 2.0**-53, 1.0)
    }
    assert list(drawn.values()) == [[], [0], [0], [0, 1], [0, 1], [0, 1, 2], [0, 1, 2], [0, 1, 2, 3]]


@pytest.mark.parametrize("count", [3, 1000, 1025, 70_000])
def test_draws_made_ahead_are_those_of_their_step(count: int) -> None:
    """In any order of steps, and none of them twice."""
    steps = [0, 1, 63, 64, 65, 66, 130]
    forth, back = Draws.make(1), Draws.make(1)
    normals = [forth.normals(step, count, CPU) for step in steps]
    rows = [forth.rows(step, count, 0.5) for step in steps]
    for place in reversed(range(len(steps))):
        assert torch.equal(back.rows(steps[place], count, 0.5), rows[place])
        assert torch.equal(back.normals(steps[place], count, CPU), normals[place])
    assert not any(torch.equal(a, b) for a, b in combinations(normals, 2))
    assert all(part.shape == (count,) for part in normals)
    if count > 3:
        assert len({tuple(part.tolist()) for part in rows}) == len(steps)
    few = forth.rows(0, count, 0.1)
    assert 0 <= len(few) < len(rows[0]) or count == 3


def test_normals_have_the_moments_of_a_normal() -> None:
    sample = Draws.make(5).normals(0, 400_001, CPU).double()
    assert sample.shape == (400_001,)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((sample**power).mean()) - moment) < 4 * math.sqrt(variance / 400_001)
    beyond = float((sample.abs() > 3).double().mean())
    assert abs(beyond - 0.0027) < 4 * math.sqrt(0.0027 / 400_001)


def test_every_seed_purpose_and_step_is_a_stream_of_its_own() -> None:
    streams = [
        draws._keystream(purpose, step, 32)
        for draws in (Draws.make(1), Draws.make(2), Draws.make(1 + 2**32), Draws.make(None), Draws.make(None))
        for purpose in (b"r", b"n", b"d")
        for step in (0, 1, 2**40)
    ]
    assert len({bytes(stream) for stream in streams}) == len(streams)


def test_seeds_that_differ_beyond_32_bits_differ() -> None:
    """PyTorch's CPU generator takes only 32: the reason for a keystream."""
    same = [torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1 + 2**32)]
    assert torch.equal(*same)
    ours = [Draws.make(seed).normals(0, 4, CPU) for seed in (1, 1 + 2**32)]
    assert not torch.equal(*ours)
    assert torch.equal(Draws.make(1).normals(7, 4, CPU), Draws.make(1).normals(7, 4, CPU))


def test_the_words_are_uniform() -> None:
    words = Draws.make(0)._words(b"r", 0, 16_000).numpy()
    for shift in (0, 11, 30, 60):
        nibbles = np.bincount((words >> shift) & 15, minlength=16)
        assert abs(nibbles - 1000).max() < 5 * math.sqrt(1000)


def test_the_label_is_honest() -> None:
    assert (Draws.make(3).label, Draws.make(None).label) == (NOISE_SEEDED, NOISE_CSPRNG)
    assert Draws.make(None)._key != Draws.make(None)._key


def test_blocks_of_noise_are_one_stream_of_their_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their words are those of the whole stream, none of them twice; each block has pairs of its own."""
    monkeypatch.setattr(randomness, "BLOCK", 2**17)
    draws, count = Draws.make(1), 2 * 2**17 + 70_001
    blocks = dict(draws.normal_blocks(5, count, CPU))
    assert {first: len(noise) for first, noise in blocks.items()} == {0: 2**17, 2**17: 2**17, 2**18: 70_001}
    words = draws._words(b"n", 5, count + 1)
    for first, noise in blocks.items():
        own = words[first : first + len(noise) + len(noise) % 2]
        assert torch.equal(noise, box_muller(own)[: len(noise)])
    assert torch.equal(draws.normals(5, count, CPU), torch.cat(list(blocks.values())))
