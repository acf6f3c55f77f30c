"""Rows of ``gradtf bench secagg`` about the Skellam layer: is the promised noise there, and what does it cost."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from experiments.measuring import Row, cpu_seconds, median
from gradtf_fl.privacy import SkellamEvent, epsilon_gaussian, epsilon_skellam
from gradtf_fl.secagg import DistributedNoise

BITS, DELTA, RELEASES = 24, 1e-5, 10
FEDERATIONS = ((5, 3), (50, 30), (1000, 800))  # members, honest members that are certain to add noise
MULTIPLIER = 1.0


def noise_rows(dims: tuple[int, ...], runs: int) -> Iterator[Row]:
    """Variance of decoded sums against theory, epsilon against the Gaussian's, and CPU seconds of one encoding."""
    dim = dims[-2] if len(dims) > 1 else dims[-1]
    noise = DistributedNoise(BITS, 5, 1.0, dim, MULTIPLIER, 3)
    for clients, who in ((3, "the t - c honest ones alone"), (5, "all five")):
        measured = float(np.var(_noisy_sum(noise, clients))) / (MULTIPLIER**2 * clients / noise.noisers)
        size = {"d": dim, "n": 5, "noisers": 3, "clients": clients, "bits": BITS}
        note = f"{who} in the sum; 1 is theory"
        yield Row("Skellam noise of a decoded sum, variance over theory", size, "times", measured, note=note)
    for members, noisers in FEDERATIONS:
        for size_ in dims:
            layer = DistributedNoise(BITS, members, 1.0, size_, MULTIPLIER, noisers)
            event = SkellamEvent(layer.honest_variance, layer.l2, layer.l1, RELEASES, noisers)
            ours, gaussian = epsilon_skellam([event], DELTA), epsilon_gaussian(MULTIPLIER, RELEASES, DELTA)
            size = {"d": size_, "n": members, "noisers": noisers, "bits": BITS}
            note = f"{RELEASES} releases, delta {DELTA:g}: {ours:.4f} against {gaussian:.4f}"
            yield Row("Skellam epsilon over the Gaussian's", size, "times", ours / gaussian, note=note)
    for size_ in dims:
        layer = DistributedNoise(BITS, 50, 1.0, size_, MULTIPLIER, 30)
        vector = np.full(size_, 1e-6, np.float32)
        seconds = median(cpu_seconds(lambda v=vector, n=layer: _encoded(n, v, 0)) for _ in range(runs))  # type: ignore[misc]
        size = {"d": size_, "n": 50, "bits": BITS}
        yield Row("rotate, round and add Skellam noise, one vector", size, "CPU s", seconds, runs=runs)


def _encoded(noise: DistributedNoise, vector: NDArray[np.float32], client: int) -> NDArray[np.uint32]:
    rounding, drawn = (hashlib.sha256(f"{name}/{client}".encode()).digest() for name in ("rounding", "noise"))
    words = noise.encode(vector, rotation_seed=bytes(32), rounding_key=rounding, noise_key=drawn)
    return np.concatenate([np.array(chunk) for chunk in words]).astype(np.uint32)


def _noisy_sum(noise: DistributedNoise, clients: int) -> NDArray[np.float64]:
    zeros = np.zeros(noise.dim, np.float32)
    words = _encoded(noise, zeros, 0)
    for client in range(1, clients):
        words += _encoded(noise, zeros, client)
    return noise.decode(noise.integers(words)[:-1], bytes(32))
