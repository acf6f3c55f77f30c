"""Encoding with distributed Skellam noise: client-level DP of the decoded SUM, whatever the aggregator does.

A client clips its vector to L2 norm ``clip``, rotates it (`Rotation`), scales it, clamps and rounds it to integers
and adds its share of Skellam noise before masking (Agarwal, Kairouz, Liu 2021, algorithm 1; Kairouz, Liu, Steinke
2021, algorithms 1 and 2). Any sum that can be opened holds the shares of at least ``noisers`` honest clients, and
those alone make the promised standard deviation, noise_multiplier * clip. Clamping, or noise so large that a sum wraps,
is rare and costs accuracy, never privacy.

Every number here follows from public values by IEEE basic operations and square roots, which round the same
way everywhere: logarithms are replaced by a number of bits times ln 2, rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from gradtf_fl.secagg.crypto.masks import Words
from gradtf_fl.secagg.noise.rotation import Rotation, block_size, padded_size
from gradtf_fl.secagg.noise.skellam import MAX_VARIANCE, MIN_VARIANCE, SkellamNoise, tail_bound
from gradtf_fl.secagg.packing import BIT_WIDTHS, word_dtype
from gradtf_fl.secagg.quantization import CHUNK, Vector, extent
from gradtf_fl.secagg.violations import UpdateRejected

WRAP_BITS = 60  # P(the noise of all n clients makes any coordinate of a sum wrap) <= 2^-60
CLAMP_BITS = 20  # P(any coordinate of one client's rotated vector is clamped) <= 2^-20
RETRY_BITS = 20  # P(one stochastic rounding has a norm above the bound and is drawn again) <= 2^-20
_MAX_RETRIES = 50
_LN2 = 0.6931471805599454  # ln 2 rounded up
_SUM_ERROR = 2.0**-36  # above the relative error of a float64 sum of `CHUNK` squares, and of the chunks' sums


@dataclass(frozen=True)
class DistributedNoise:
    """Encoding of vectors [dim] for a noisy sum over at most ``parties`` clients.

    Attributes:
        bits: width b of a residue.
        parties: n, the largest number of summands.
        clip: L2 norm bound of a client's vector.
        dim: coordinates of the vector.
        noise_multiplier: z; the noise of ``noisers`` clients on the decoded sum has standard deviation z * clip.
        noisers: m, the least number of honest clients in any sum that can be opened: threshold - colluders.

    Raises:
        ValueError: values out of range, or b bits that are too few for the sum or for the noise.
    """

    bits: int
    parties: int
    clip: float
    dim: int
    noise_multiplier: float
    noisers: int

    def __post_init__(self) -> None:
        if self.bits not in BIT_WIDTHS:
            raise ValueError(f"bits must be one of {BIT_WIDTHS}")
        if not 1 <= self.dim < 2**31:
            raise ValueError("dim must be in 1..2^31-1")
        if not 1 <= self.noisers <= self.parties:
            raise ValueError(f"noisers must be in 1..{self.parties}")
        for name, value in (("clip", self.clip), ("noise_multiplier", self.noise_multiplier)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value}")
        if self.q_max < 1 or self.variance < MIN_VARIANCE:
            raise ValueError(
                f"{self.bits} bits are too few for {self.parties} parties with noise of {self.noise_multiplier} clips: "
                f"take more bits or fewer parties"
            )
        if not 2.0**-900 < self.step < 2.0**900:
            raise ValueError(f"clip must be an ordinary number, got {self.clip}")

    # -- the grid -----------------------------------------------------------------------------------------

    @property
    def padded(self) -> int:
        """Coordinates after padding and rotation."""
        return padded_size(self.dim)

    @property
    def peak(self) -> float:
        """Bound of a rotated coordinate, in units of ``clip``; clamping to it can only shrink a norm.

        A coordinate is sum_i s_i x_i / sqrt(B) over a block x of B coordinates with independent random signs s. By
        Hoeffding it exceeds t with probability at most 2 exp(-t^2 B / (2 |x|^2)) on either side together, and |x| <=
        clip. A union bound over the padded coordinates gives t = clip sqrt(2 ln(2 padded 2^20) / B).
        """
        exponent = _log_bound(2 * self.padded, CLAMP_BITS)
        return min(1.0, math.sqrt(2.0 * exponent / block_size(self.dim)))

    @cached_property
    def q_max(self) -> int:
        """Largest magnitude of one client's integers before noise: the largest that leaves no sum room to wrap."""
        low, high = 0, (1 << (self.bits - 1)) // self.parties + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits(middle) else (low, middle)
        return low

    def _fits(self, q: int) -> bool:
        """Whether n q + (tail of the noise of n clients) <= 2^(b-1) - 1, and the noise can be drawn."""
        variance = self._variance(q)
        if not MIN_VARIANCE <= variance <= MAX_VARIANCE:
            return variance < MIN_VARIANCE  # too coarse, so a larger q is required: __post_init__ refuses if none fits
        exponent = _log_bound(2 * self.padded, WRAP_BITS)
        return self.parties * q + tail_bound(self.parties * variance, exponent) <= (1 << (self.bits - 1)) - 1

    def _variance(self, q: int) -> float:
        deviation = self.noise_multiplier * (q / self.peak)
        return deviation * deviation / self.noisers

    @property
    def scaled_clip(self) -> float:
        """The clip in steps: clip / step."""
        return self.q_max / self.peak

    @property
    def step(self) -> float:
        """Value of integer 1 in a rotated coordinate."""
        return self.peak * self.clip / self.q_max

    # -- the mechanism ------------------------------------------------------------------------------------

    @property
    def variance(self) -> float:
        """v: variance of ONE client's noise in a coordinate, in steps^2: (z clip / step)^2 / noisers."""
        return self._variance(self.q_max)

    @property
    def honest_variance(self) -> float:
        """Variance in steps^2 that the ``noisers`` honest clients together put on a coordinate of a sum."""
        return self.noisers * self.variance

    @property
    def l2(self) -> float:
        """D2: L2 norm that no client's integers exceed, hence the sum's sensitivity to one client's being zeros.

        With c = clip / step, p = padded: stochastic rounding keeps the squared norm within
        c^2 + p/4 + sqrt(2 ln(1/beta)) (c + sqrt(p)/2) but with probability beta = 2^-20, and then it is drawn again
        (conditional rounding: Kairouz, Liu, Steinke 2021, section 4.1); (c + sqrt(p))^2 always holds.
        """
        c, root = self.scaled_clip, math.sqrt(self.padded)
        likely = c * c + root * root / 4 + math.sqrt(2 * RETRY_BITS * _LN2) * (c + root / 2)
        return min(math.sqrt(likely), c + root)

    @property
    def l1(self) -> float:
        """D1: the same for the L1 norm: |x|_1 <= sqrt(padded) |x|_2, and <= |x|_2^2 for integers."""
        return min(math.sqrt(self.padded) * self.l2, self.l2 * self.l2)

    def encode(self, vector: Vector, *, rotation_seed: bytes, rounding_key: bytes, noise_key: bytes) -> Iterator[Words]:
        """Words [padded + 1] (two's complement) of ``vector`` [dim] and this client's noise.

        They come in chunks of `CHUNK` words, which may be changed in place, the last one shorter. The last word is
        the weight: q_max, without noise, because the number of summands is public. The vector is scaled down to
        L2 norm ``clip`` where it is longer.

        Args:
            rotation_seed: 32 bytes, public, the same for all clients of the sum.
            rounding_key, noise_key: 32 bytes each, secret, one use. The noise protects this client only while
                nobody else can derive ``noise_key``: it must not come from a secret that others can rebuild.

        Raises:
            UpdateRejected: wrong type or shape, or a coordinate that is not finite.
        """
        size, factor = extent(vector, self.clip)
        factor /= self.step
        if size != self.dim:
            raise UpdateRejected(f"an update vector of shape [{self.dim}] is needed")
        rotation = Rotation(self.dim, rotation_seed)
        noise = SkellamNoise(noise_key, self.variance)
        for attempt in range(_MAX_RETRIES):
            if self._is_short(self._rounded(vector, factor, rotation, rounding_key, attempt)):
                return self._noisy(self._rounded(vector, factor, rotation, rounding_key, attempt), noise)
        raise UpdateRejected(f"{_MAX_RETRIES} stochastic roundings exceeded the norm bound")

    def _rounded(
        self, vector: Vector, factor: float, rotation: Rotation, key: bytes, attempt: int
    ) -> Iterator[NDArray[np.float64]]:
        """clip(floor(y + u), +-q_max) for the rotated y = factor * H D vector and u uniform in [0, 1).

        It equals clamping y first, and only a clamped y has a biased expectation. Each attempt has its own
        keystream (the counter's upper 8 bytes) and is the same whenever it is asked for: the first pass over
        it measures the norm, the second is sent, and no copy of the integers is kept.
        """
        coins = Cipher(algorithms.AES256(key), modes.CTR(attempt.to_bytes(8, "big") + bytes(8))).encryptor()
        for chunk in rotation.rotate_chunks(vector, factor):
            chunk += np.frombuffer(coins.update(bytes(4 * chunk.size)), dtype="<u4") * 2.0**-32
            np.floor(chunk, out=chunk)
            yield np.clip(chunk, -self.q_max, self.q_max, out=chunk)

    def _is_short(self, rounded: Iterator[NDArray[np.float64]]) -> bool:
        """Whether the L2 norm is at most `l2`, float64's own error counted against the client."""
        return sum(float(np.einsum("i,i->", chunk, chunk)) for chunk in rounded) * (1 + _SUM_ERROR) <= self.l2 * self.l2

    def _noisy(self, rounded: Iterator[NDArray[np.float64]], noise: SkellamNoise) -> Iterator[Words]:
        left = self.padded
        for chunk in rounded:
            left -= chunk.size
            integers = chunk.astype(np.int64)
            integers += noise.take(chunk.size)
            ends = left == 0 and chunk.size < CHUNK
            words = np.empty(chunk.size + ends, dtype=word_dtype(self.bits))
            words[: chunk.size] = integers  # modulo 2^word
            words[chunk.size :] = self.q_max
            yield words
        if self.padded % CHUNK == 0:
            yield np.full(1, self.q_max, dtype=word_dtype(self.bits))

    # -- the sum ------------------------------------------------------------------------------------------

    def integers(self, words: Words) -> NDArray[np.int64]:
        """The signed integers [padded + 1] of summed words modulo 2^b."""
        half = 1 << (self.bits - 1)
        residues = words.astype(np.int64) & ((1 << self.bits) - 1)
        return (residues ^ half) - half

    def decode(self, integers: NDArray[np.int64], rotation_seed: bytes) -> NDArray[np.float64]:
        """The noisy sum float64 [dim] of the clients' clipped vectors from summed integers [padded] (no weight)."""
        return Rotation(self.dim, rotation_seed).restore(integers, self.step)


def _log_bound(count: int, bits: int) -> float:
    """An upper bound of ln(count * 2^bits), from whole bits."""
    return ((count - 1).bit_length() + bits) * _LN2
