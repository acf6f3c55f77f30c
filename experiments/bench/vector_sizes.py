"""``gradtf bench secagg --sizes``: one round of three members with vectors of up to 1.5 * 10^9 coordinates.

Each member and the server is a process of its own, one after the other; masked pieces go from one to the next as files.
A member makes its vector row by row from a seed, so what it holds is what it needs besides its vector. Counted are
seconds by the clock and CPU seconds of masking (norm, encoding, masks, packing, signatures, writing), of folding
(reading, verifying, adding) and of unmasking (shares, masks taken off, the mean decoded as the server does it), the
bytes of a member's messages up and down in the stage mask, and the most resident memory of each process, with
everything that Python and the libraries hold. The key stages, which do not depend on the size, are played again in each
process and not counted. The mean is compared with the plain one on its first and last 2^20 coordinates.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.measuring import Progress, Row, machine, revision
from gradtf_fl.files import write_whole
from gradtf_fl.secagg import (
    ClientPolicy,
    PlayedRound,
    ReplayRandomness,
    SecAggClient,
    new_identities,
    played_config,
    topology,
)

MEMBERS, BITS, ROW = 3, 24, 1 << 20
ALL_SIZES = (10**6, 10**7, 10**8, 3 * 10**9 // 2)
QUICK_SIZES = (10**5, 10**6)


@dataclass(frozen=True)
class SeededVector:
    """A vector [dim] of L2 norm about a half, the same whenever it is read; a row of `ROW` coordinates at a time."""

    dim: int
    member: int

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        yield from (self.row(number) for number in range(-(-self.dim // ROW)))

    def row(self, number: int) -> NDArray[np.float32]:
        """Rows differ by a factor only: making them must not be most of what is measured."""
        size = min(ROW, self.dim - number * ROW)
        return _normal(self.member)[:size] * np.float32((0.2 + number % 5 / 10) / self.dim**0.5)


@cache
def _normal(member: int) -> NDArray[np.float32]:
    return np.random.default_rng(member).standard_normal(ROW, np.float32)


def round_of(dim: int) -> PlayedRound:
    """The round at its stage mask, the same in every process."""
    randomness, shape = ReplayRandomness(b"vector sizes"), topology(MEMBERS)
    identities = new_identities(MEMBERS, randomness)
    config = played_config("vector-sizes", identities, shape, dim, randomness(32), bits=BITS)
    seeds = [randomness(32) for _ in range(MEMBERS)]
    return PlayedRound(config, ClientPolicy(), identities, seeds, [], [1.0] * MEMBERS).until("mask")


class _Watch:
    """Seconds by the clock and of the processor since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def seconds(self) -> dict[str, float]:
        return {"wall_s": time.perf_counter() - self._wall, "cpu_s": time.process_time() - self._cpu}


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run_member(dim: int, member: int, folder: Path) -> dict[str, Any]:
    """Mask, and leave the pieces and the client's state in ``folder``."""
    played = round_of(dim)
    client, accepted = played.clients[member], played.sent["mask"][member]
    watch, up, number = _Watch(), 0, 0
    for number, message in enumerate(client.mask(accepted, SeededVector(dim, member))):
        (folder / f"{member}-{number}").write_bytes(message)
        up += len(message)
    (folder / f"state-{member}").write_bytes(client.to_bytes())
    down = (number + 1) * len(accepted)
    return {"mask": watch.seconds(), "pieces": number + 1, "bytes_up": up, "bytes_down": down, "peak": _peak_bytes()}


def run_server(dim: int, folder: Path) -> dict[str, Any]:
    """Fold the pieces in ``folder``, and open the sum."""
    played = round_of(dim)
    server, watch = played.server, _Watch()
    while (piece := server.piece) is not None:
        for member in range(MEMBERS):
            path = folder / f"{member}-{piece}"
            server.receive_masked(path.read_bytes())
            path.unlink()
        server.close_piece()
    fold = watch.seconds()
    for member in range(MEMBERS):
        stored = (folder / f"state-{member}").read_bytes()
        identity = played.identities[member]
        played.clients[member] = SecAggClient.from_bytes(stored, played.policy, played.roster, identity)
    played.close("mask")
    played.play("consistency")
    watch = _Watch()
    for member in range(MEMBERS):
        played.receive("unmask", played.answer("unmask", member))
    result = server.close_unmask(np.float32 if server.pieces > 1 else np.float64)
    unmask, peak = watch.seconds(), _peak_bytes()
    error = 0.0
    for number in {0, (dim - 1) // ROW}:
        plain = np.mean([SeededVector(dim, member).row(number).astype(np.float64) for member in range(MEMBERS)], axis=0)
        error = max(error, float(np.abs(result.mean[number * ROW : (number + 1) * ROW] - plain).max()))
    step = MEMBERS / 2 ** (BITS - 1)
    assert error < 2 * step, f"the mean is off by {error / step:.2f} steps of the encoding"
    return {"fold": fold, "unmask": unmask, "peak": peak, "error": error, "precision": str(result.mean.dtype)}


def measure_size(dim: int) -> dict[str, Any]:
    """One round: every member, then the server."""
    with tempfile.TemporaryDirectory(prefix="gradtf-sizes-") as scratch:
        members = [_in_a_process(dim, scratch, str(member)) for member in range(MEMBERS)]
        server = _in_a_process(dim, scratch, "server")
    vector, worst = 4 * dim, max(member["peak"] for member in members)
    return {
        "dim": dim,
        "members": MEMBERS,
        "bits": BITS,
        "vector_bytes": vector,
        "client": members,
        "server": server,
        "client_peak_over_vector": round(worst / vector, 4),
        "server_peak_over_vector": round(server["peak"] / vector, 4),
    }


def _in_a_process(dim: int, folder: str, who: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "experiments.bench.vector_sizes", "--one", str(dim), folder, who]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{who} at {dim} coordinates: {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def bench_sizes(sizes: tuple[int, ...], progress: Progress) -> dict[str, Any]:
    """The document of ``gradtf bench secagg --sizes --json``."""
    measured = []
    for done, dim in enumerate(sizes):
        progress(f"{dim:,} coordinates", done, len(sizes))
        measured.append(measure_size(dim))
    progress("done", len(sizes), len(sizes))
    rows = [row.to_json() for one in measured for row in _rows(one)]
    return {"revision": revision(), "machine": machine(("numpy", "cryptography")), "sizes": measured, "rows": rows}


def _rows(one: dict[str, Any]) -> Iterator[Row]:
    size, client, server = {"d": one["dim"], "n": one["members"], "bits": one["bits"]}, one["client"][0], one["server"]
    for what, seconds in (
        ("one client: encode and mask", client["mask"]),
        ("server: fold", server["fold"]),
        ("server: unmask", server["unmask"]),
    ):
        note = f"{seconds['wall_s']:.3g} s by the clock"
        yield Row(what, size, "CPU s", seconds["cpu_s"], note=note)
    for way in ("up", "down"):
        note = f"{client['pieces']} pieces, stage mask"
        yield Row(f"one client: {way}", size, "bytes", client[f"bytes_{way}"], note=note)
    for who, peak in (("client", max(member["peak"] for member in one["client"])), ("server", server["peak"])):
        note = f"{peak / one['vector_bytes']:.3g} times the vector" + (", which is made row by row" * (who == "client"))
        yield Row(f"{who}: peak resident memory", size, "MB", peak / 1e6, limit=2e-6 * one["vector_bytes"], note=note)


def main() -> None:
    """Print the document, and write it to ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=ALL_SIZES)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=3, metavar=("DIM", "FOLDER", "WHO"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        dim, folder, who = int(given.one[0]), Path(given.one[1]), given.one[2]
        print(json.dumps(run_server(dim, folder) if who == "server" else run_member(dim, int(who), folder)))
        return
    text = json.dumps(bench_sizes(tuple(given.dims), lambda what, done, total: None), indent=1) + "\n"
    print(text, end="")
    if given.out:
        write_whole(given.out, text)


if __name__ == "__main__":
    main()
