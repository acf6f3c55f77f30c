"""Which rows a step draws and the noise it adds: AES-256-CTR keystreams, one for each purpose and step.

PyTorch's CPU generator (mt19937) uses 32 bits of whatever seed it is given, few enough to try all of them, and
the noise of a step could then be found and taken off. A keystream has a key of 256 bits. The noise is still a
float64 number from a Box-Muller transform: CSPRNG-seeded, floating point, not hardened against attacks on its
rounding (Mironov 2012).

Each draw is a function of (key, purpose, step): there is no state to save or to restore to a wrong place.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Iterator

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from gradtf_fl.privacy import NOISE_CSPRNG, NOISE_SEEDED

_SAMPLING, _NOISE, _CHOICE = b"r", b"n", b"c"
_AHEAD, _MOST_STEPS = 2**16, 64
"""Draws made at once, for up to this many steps: in a small model's step a cipher of its own would show."""
BLOCK = 2**22
"""Most numbers of noise that are there at once, with their words about 150 MB; even."""


class Draws:
    """The randomness of one training run.

    Attributes:
        label: how the key came about, for the audit.
    """

    def __init__(self, key: bytes, label: str) -> None:
        """``key``: 32 bytes. Whoever has it can take the noise off."""
        self.label = label
        self._key = key
        self._sampled: tuple[tuple[float, ...], Tensor] | None = None  # (what is in it, draws [steps, count])
        self._noise: tuple[tuple[float, ...], Tensor] | None = None

    @classmethod
    def make(cls, seed: int | None) -> Draws:
        """Replayable from ``seed`` (simulation); with ``None`` a fresh key from the operating system, kept nowhere."""
        if seed is None:
            return cls(secrets.token_bytes(32), NOISE_CSPRNG)
        return cls(hashlib.sha256(f"gradtf/dp-sgd/{seed}".encode()).digest(), NOISE_SEEDED)

    def rows(self, step: int, count: int, q: float) -> Tensor:
        """Indices of rows out of ``count``, each drawn independently with probability ``q``; possibly none."""
        if q >= 1:
            return torch.arange(count)
        steps = steps_at_once(count)
        wanted = (step // steps, count, q)
        if self._sampled is None or self._sampled[0] != wanted:
            drawn = self._words(_SAMPLING, step // steps, steps * count) < int(q * 2**64) - 2**63
            self._sampled = wanted, drawn.view(steps, count)
        return self._sampled[1][step % steps].nonzero().view(-1)

    def order(self, step: int, count: int) -> Tensor:
        """A number [count] for each row, without meaning but its size: of a person's rows the lowest ones are taken."""
        return self._words(_CHOICE, step, count)

    def normals(self, step: int, count: int, device: torch.device) -> Tensor:
        """Standard normal draws [count], float64 on ``device``."""
        return torch.cat([noise for _, noise in self.normal_blocks(step, count, device)])

    def normal_blocks(self, step: int, count: int, device: torch.device) -> Iterator[tuple[int, Tensor]]:
        """(first, draws) of `normals`, `BLOCK` draws or fewer at a time."""
        if count <= _AHEAD:
            yield 0, self._ahead(step, count, device)
            return
        for first in range(0, count, BLOCK):
            some = min(BLOCK, count - first)
            words = self._words(_NOISE, step, 2 * (-(-some // 2)), first)
            yield first, box_muller(words.to(device))[:some]

    def _ahead(self, step: int, count: int, device: torch.device) -> Tensor:
        """`normals` of few numbers, made for some steps together."""
        steps = steps_at_once(count)
        wanted = (step // steps, count)
        if self._noise is None or self._noise[0] != wanted:
            words = self._words(_NOISE, step // steps, 2 * (-(-steps * count // 2)))
            self._noise = wanted, box_muller(words.to(device))[: steps * count].view(steps, count)
        return self._noise[1][step % steps]

    def _words(self, purpose: bytes, block: int, count: int, first: int = 0) -> Tensor:
        """Uniform int64 [count], from word number ``first`` (even) of the stream on."""
        return torch.frombuffer(self._keystream(purpose, block, 8 * count, first // 2), dtype=torch.int64)

    def _keystream(self, purpose: bytes, block: int, size: int, first: int = 0) -> bytearray:
        """AES-256-CTR (SP 800-38A) from the counter block purpose | block (7 bytes) | first (8 bytes)."""
        start = purpose + block.to_bytes(7, "big") + first.to_bytes(8, "big")
        return bytearray(Cipher(algorithms.AES(self._key), modes.CTR(start)).encryptor().update(bytes(size)))


def steps_at_once(count: int) -> int:
    """How many steps of ``count`` draws are made together."""
    return max(1, min(_MOST_STEPS, _AHEAD // count))


def box_muller(words: Tensor) -> Tensor:
    """Standard normal float64 [2 n] from uniform int64 [2 n], whose upper 53 bits are used."""
    half = len(words) // 2
    uniforms = (words >> 11).double()  # whole numbers, -2^52 .. 2^52 - 1
    radius = uniforms[:half].add_(2.0**52 + 1).mul_(2.0**-53).log_().mul_(-2).sqrt_()  # of (0, 1]
    angle = uniforms[half:].mul_(2 * math.pi * 2.0**-53)  # -pi .. pi
    return torch.cat([angle.cos().mul_(radius), angle.sin().mul_(radius)])
