"""``gradtf bench secagg``: secure aggregation against Flower's own functions and this machine's limits.

All times are CPU seconds of all threads (`time.process_time`), on the same data in the same process. Ours are the
state machines of gradtf_fl/secagg from message to message, signatures and checks included; Flower's are the
functions in flower_secagg_steps.py.
"""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from experiments.bench.flower_private import PEER
from experiments.bench.flower_secagg_steps import MEASURED_OWNERS, FlowerRound
from experiments.bench.noise import noise_rows
from experiments.bench.secagg_round import BITS, MeasuredRound
from experiments.bench.server_floor import measure_against_floor
from experiments.measuring import Progress, Row, cpu_seconds, machine, median
from gradtf_fl.secagg import CHUNK_BYTES, MaskStreams, combine, element_bytes, lagrange_weights, point

PACKAGES = ("numpy", "cryptography", "flwr", "pycryptodome")
FLOOR_DIM = 10**6
"""Largest vector whose floor is measured: all clients' masked vectors lie in memory twice."""
KEY_DIM = 16
"""Coordinates of the rounds that measure what does not depend on d."""


@dataclass(frozen=True)
class Sizes:
    """What is measured: vectors of ``dims`` among ``members`` clients, k-regular rounds of ``regular`` clients."""

    dims: tuple[int, ...]
    members: tuple[int, ...]
    regular: tuple[int, ...]
    regular_dim: int
    stream_bytes: int
    runs: int = 3


FULL_SECAGG = Sizes((10**5, 10**6, 10**7), (10, 50), (250, 500, 1000), 10**5, stream_bytes=1 << 30)
QUICK_SECAGG = Sizes((10**4, 10**5), (5, 10), (100, 110), 10**3, stream_bytes=1 << 26, runs=1)


def bench_secagg(sizes: Sizes, progress: Progress) -> dict[str, Any]:
    """The document of ``gradtf bench secagg --json``."""
    found = machine(PACKAGES)
    limits = MachineLimits.measure(sizes)
    regular: list[MeasuredRound] = []
    steps: list[tuple[str, Callable[[], Iterator[Row]]]] = [
        ("limits", lambda: limits.rows()),
        *((f"n={n}", partial(_round_rows, n, sizes, limits)) for n in sizes.members),
        ("mask rate and memory", lambda: _mask_rows(sizes, limits)),
        *((f"k-regular n={n}", partial(_regular_rows, n, sizes.regular_dim, regular)) for n in sizes.regular),
        ("growth", lambda: _growth_rows(regular)),
        ("Skellam noise", lambda: noise_rows(sizes.dims, sizes.runs)),
    ]
    rows: list[Row] = []
    for done, (what, step) in enumerate(steps):
        progress(what, done, len(steps))
        rows += step()
    progress("done", len(steps), len(steps))
    return {"machine": found, "rows": [row.to_json() for row in rows]}


# -- the machine ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MachineLimits:
    """GB/s of one core at best, 10^9 bytes of mask a second: keystream, and addition of 32-bit words.

    Attributes:
        aes: AES-256-CTR into one buffer, the best of several chunk sizes.
        gcm: the same bytes by AES-256-GCM.
        add: sum += mask with both in the second-level cache, the best of the same sizes.
        add_memory: sum += mask with both in memory.
    """

    aes: float
    gcm: float
    add: float
    add_memory: float

    @property
    def composite(self) -> float:
        """Each byte of mask is made once and added once: 1 / (1/aes + 1/add), aes by the faster mode."""
        return 1 / (1 / max(self.aes, self.gcm) + 1 / self.add)

    @classmethod
    def measure(cls, sizes: Sizes) -> MachineLimits:
        chunks = [1 << bits for bits in range(15, 20)]
        total = sizes.stream_bytes
        memory = max(total // 4, 1 << 26)
        return cls(
            max(_gb_per_s(_aes(modes.CTR(bytes(16)), chunk), chunk, total) for chunk in chunks),
            max(_gb_per_s(_aes(modes.GCM(bytes(12)), chunk), chunk, total) for chunk in chunks),
            max(_gb_per_s(_add(chunk), chunk, total) for chunk in chunks),
            _gb_per_s(_add(memory), memory, 4 * memory),
        )

    def rows(self) -> Iterator[Row]:
        yield Row("machine: AES-256-CTR, one core", {}, "GB/s", self.aes, rate=True)
        yield Row("machine: AES-256-GCM, one core", {}, "GB/s", self.gcm, rate=True)
        yield Row("machine: 32-bit addition in the cache, one core", {}, "GB/s", self.add, rate=True)
        yield Row("machine: 32-bit addition in memory, one core", {}, "GB/s", self.add_memory, rate=True)

    def seconds(self, masks: float, dim: int) -> float:
        """CPU seconds of ``masks`` masks of ``dim`` 32-bit words at the composite limit."""
        return masks * 4 * dim / self.composite / 1e9


def _gb_per_s(work: Callable[[], object], chunk: int, total: int) -> float:
    def repeat() -> None:
        for _ in range(total // chunk):
            work()

    work()
    best = min(cpu_seconds(repeat) for _ in range(5))  # a limit is the best that was ever seen
    return total // chunk * chunk / best / 1e9


def _aes(mode: modes.CTR | modes.GCM, chunk: int) -> Callable[[], object]:
    stream = Cipher(algorithms.AES256(os.urandom(32)), mode).encryptor()
    zeros, out = bytes(chunk), bytearray(chunk + 15)
    return lambda: stream.update_into(zeros, out)


def _add(chunk: int) -> Callable[[], object]:
    total, mask = np.ones(chunk // 4, dtype="<u4"), np.ones(chunk // 4, dtype="<u4")
    return lambda: np.add(total, mask, out=total)


# -- rounds of n clients, all of them neighbours ----------------------------------------------------------


def _round_rows(n: int, sizes: Sizes, limits: MachineLimits) -> Iterator[Row]:
    dropped = range(0, n, 10)  # 10%, and as many among Flower's measured owners
    survivors = [i for i in range(n) if i not in dropped]
    key_round = MeasuredRound(n, _vector(KEY_DIM)).until("mask")
    flower = FlowerRound(n, key_round.shape.threshold)
    recovery_s = median(flower.recovery_s(dropped) for _ in range(sizes.runs))
    yield _share_row(key_round, flower, dropped, recovery_s)
    key_round.finish(survivors)
    clients = len(survivors)
    size = {"n": n, "degree": n - 1, "threshold": key_round.shape.threshold}
    note = f"{n - clients} dropped; all that does not depend on d; median over clients"
    yield Row("key phase of one client", size, "CPU ms", 1e3 * key_round.client_total_s(), runs=clients, note=note)
    yield from _byte_rows(key_round, "complete graph")
    for dim in sizes.dims:
        vector = _vector(dim)
        round_ = MeasuredRound(n, vector).until("mask")
        theirs, message = _flower_masking(flower, vector, survivors[0], sizes.runs)
        client = _client_row(round_, survivors[0], theirs + flower.sharing_s / n, sizes.runs, limits)
        theirs = recovery_s + cpu_seconds(
            lambda message=message: flower.unmasked(flower.received(message for _ in survivors), dropped)  # type: ignore[misc]
        )
        server = _server_row(round_, survivors, theirs, sizes.runs if dim < 10**7 else 1, limits)
        yield replace(client, beside={"server_ours": server.ours, "server_theirs": theirs})
        if n == max(sizes.members):
            yield server
            if dim <= FLOOR_DIM:
                yield _floor_row(n, dim, sizes.runs)


def _flower_masking(
    flower: FlowerRound, vector: NDArray[np.float32], client: int, runs: int
) -> tuple[float, list[bytes]]:
    messages: list[list[bytes]] = []
    seconds = median(cpu_seconds(lambda: messages.append(flower.mask(client, vector))) for _ in range(runs))
    return seconds, messages[0]


def _client_row(round_: MeasuredRound, i: int, theirs: float, runs: int, limits: MachineLimits) -> Row:
    n, dim = len(round_.roster), round_.config.dim
    clients = [round_.reload(i) for _ in range(runs)]
    secrets = round_.secrets(i)
    ours = median(cpu_seconds(lambda c=c: round_.step("mask").answer(c, i)) for c in clients)  # type: ignore[misc]
    ours += cpu_seconds(lambda: secrets.shares(range(n), round_.shape.threshold))
    size = {"d": dim, "n": n, "bits": BITS}
    limit = limits.seconds(n, dim)
    note = f"both with Shamir's part of stage 1; limit: {n} masks alone, {theirs / limit:.1f} times less than flwr"
    return Row("client masking", size, "CPU s", ours, PEER, theirs, limit, runs=runs, note=note)


def _server_row(
    round_: MeasuredRound,
    survivors: list[int],
    theirs: float,
    runs: int,
    limits: MachineLimits,
) -> Row:
    n, dim = len(round_.roster), round_.config.dim
    seconds = []
    for _ in range(runs):
        twin = round_.fork()
        result = twin.finish(survivors)
        seconds.append(twin.server_total_s())
    if not twin.is_exact(result, survivors):
        raise AssertionError(f"the sum of n={n}, d={dim} is not exact")
    dropped = n - len(survivors)
    masks = len(survivors) * (1 + dropped)
    note = f"limit: {masks} masks alone; flwr: one run, the same masked vector {len(survivors)} times"
    if n > MEASURED_OWNERS:
        note += f", Shamir measured for {MEASURED_OWNERS} of {n} clients' secrets and scaled"
    size = {"d": dim, "n": n, "bits": BITS, "dropped": dropped}
    limit = limits.seconds(masks, dim)
    return Row(
        "server: receive, recover, unmask", size, "CPU s", median(seconds), PEER, theirs, limit, runs=runs, note=note
    )


def _floor_row(n: int, dim: int, runs: int) -> Row:
    ours, floor = measure_against_floor(n, dim, runs)
    note = (
        f"{ours / floor.seconds:.2f} times the same bytes through SHA-256 ({floor.sha:.3g} s), unpacking and addition "
        f"({floor.fold:.3g} s), AES and addition ({floor.masks:.3g} s); each the least of {runs}"
    )
    size = {"d": dim, "n": n, "bits": BITS, "dropped": -(-n // 10)}
    return Row("server, against this machine's floor", size, "CPU s", ours, limit=floor.seconds, runs=runs, note=note)


def _share_row(round_: MeasuredRound, flower: FlowerRound, dropped: range, recovery_s: float) -> Row:
    """All clients share their two secrets, and the server rebuilds one secret of each."""
    n, threshold = len(round_.roster), round_.shape.threshold
    members = list(range(n))
    secrets = [round_.secrets(i) for i in members]
    holders = [i for i in members if i not in dropped][:threshold]
    points = [point(i) for i in holders]

    def share_and_recover() -> None:
        made = [one.shares(members, threshold) for one in secrets]
        for one in secrets:
            one.shares(members, threshold)  # a client derives them in stage 1 and again in stage 2
        lagrange_weights.cache_clear()
        for owner, shares in enumerate(made):
            own = owner in dropped
            held = [shares[i].mask_share if own else shares[i].self_share for i in holders]
            rebuilt = element_bytes(combine(points, [int.from_bytes(share, "big") for share in held]))
            assert rebuilt == (secrets[owner].mask_secret if own else secrets[owner].self_secret)

    ours = median(cpu_seconds(share_and_recover) for _ in range(3))
    note = "all clients' secrets"
    if n > MEASURED_OWNERS:
        note += f"; flwr: measured for {MEASURED_OWNERS} of {n} clients and scaled"
    theirs = flower.sharing_s + recovery_s
    size = {"n": n, "threshold": threshold}
    return Row("share creation + recovery", size, "CPU s", ours, PEER, theirs, runs=3, note=note)


def _byte_rows(round_: MeasuredRound, graph: str) -> Iterator[Row]:
    n, clients = len(round_.roster), len(round_.client_s["unmask"])
    size = {"n": n, "degree": round_.shape.degree, "threshold": round_.shape.threshold}
    note = f"{graph}, {n - clients} dropped; all messages of a round but the residues; median over clients"
    for direction, counted in (("up", round_.bytes_sent), ("down", round_.bytes_received)):
        volume = round_.bytes_beside_the_vector(counted)
        yield Row(f"key phase of one client, {direction}", size, "bytes", volume, runs=clients, note=note)


# -- masks ------------------------------------------------------------------------------------------------


def _mask_rows(sizes: Sizes, limits: MachineLimits) -> Iterator[Row]:
    n, dim = max(sizes.members), max(sizes.dims)
    size = {"d": dim, "n": n, "bits": BITS}
    keys = [os.urandom(32) for _ in range(n)]
    words = np.ones(CHUNK_BYTES // 4, dtype="<u4")

    def masks() -> None:
        streams = MaskStreams(keys[: n // 2], keys[n // 2 :], words.dtype)
        for _ in range(-(-dim // words.size)):
            streams.add_to(words)

    made = n * words.nbytes * -(-dim // words.size)
    rate = made / median(cpu_seconds(masks) for _ in range(sizes.runs)) / 1e9
    yield Row("mask rate, one core", size, "GB/s", rate, limit=limits.composite, rate=True, runs=sizes.runs)

    vector = _vector(dim)
    round_ = MeasuredRound(n, vector).until("mask")
    client = round_.reload(0)
    tracemalloc.start()
    message = round_.step("mask").answer(client, 0)
    extra = tracemalloc.get_traced_memory()[1] - len(message)
    tracemalloc.stop()
    note = "peak of traced allocations"
    yield Row("memory of client masking beyond input and output", size, "MB", extra / 1e6, note=note)
    yield Row("bytes on the wire per parameter", size, "bytes", len(message) / dim, limit=BITS / 8)


# -- k-regular rounds, all clients real -------------------------------------------------------------------


def _regular_rows(n: int, dim: int, played: list[MeasuredRound]) -> Iterator[Row]:
    vector = _vector(dim)
    round_ = MeasuredRound(n, vector).until("mask")
    survivors = [i for i in range(n) if i % 10]
    result = round_.finish(survivors)
    if not round_.is_exact(result, survivors):
        raise AssertionError(f"the sum of n={n}, d={dim} is not exact")
    played.append(round_)
    shape = round_.shape
    size = {"d": dim, "n": n, "degree": shape.degree, "threshold": shape.threshold}
    note = f"{n - len(survivors)} of {n} dropped at mask; all clients run; the sum is exact bit by bit"
    yield Row("k-regular round, one client", size, "CPU s", round_.client_total_s(), runs=len(survivors), note=note)
    yield Row("k-regular round, server", size, "CPU s", sum(round_.server_s.values()), note=note)
    yield from _byte_rows(round_, "k-regular graph")


def _growth_rows(played: list[MeasuredRound]) -> Iterator[Row]:
    """The cost of a client follows its degree k, not the number n of clients."""
    first, last = played[0], played[-1]
    few, many = len(first.roster), len(last.roster)
    note = f"k grows {last.shape.degree / first.shape.degree:.2f} times, n {many / few:.2f} times"
    growth = last.client_total_s() / first.client_total_s()
    size = {"d": last.config.dim}
    yield Row(f"k-regular round, one client: growth from n={few} to n={many}", size, "times", growth, note=note)


def _vector(dim: int) -> NDArray[np.float32]:
    """Normal coordinates of L2 norm about 0.5, half the clip."""
    vector = np.random.default_rng(dim).normal(0, 0.5 / dim**0.5, dim)
    return vector.astype(np.float32)
