"""What the privacy ledger costs, compared with what the disk can do: measured in turn in one run.

    python -m experiments.bench.ledger --out experiments/results/ledger.json      # about four minutes

A reservation waits for the disk before it returns. A settlement does not need to: were it lost in a power cut, the
reservation would count in full. So a pair waits once, and the disk's limit is its own rate of small synchronous
writes, which is measured in the same folder between the blocks of pairs. A round that also announces the ledger's
head waits twice.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from experiments.measuring import Progress, Row, machine, median
from gradtf_fl.file_names import LEDGER
from gradtf_fl.privacy import (
    GENESIS_HASH,
    ROW_UNIT,
    DpEvent,
    Entry,
    Genesis,
    Ledger,
    budget_document,
    canonical,
    epsilon_prv,
    event_document,
    import_ledger,
    seal,
)

PACKAGES = ("cryptography", "opacus", "dp-accounting")
EVENT = DpEvent(9.0, 1 / 16, 50)
REQUIRED_PAIRS = 2000
REQUIRED_REPORT_S = 10
WHEN = "2025-01-01T00:00:00+00:00"
MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class LedgerBench:
    """``blocks`` of ``pairs`` in turn with as many raw writes; ``ledgers`` of ``rounds`` for the reports."""

    blocks: int = 7
    pairs: int = 150
    ledgers: int = 100
    rounds: int = 1000


FULL = LedgerBench()
QUICK = LedgerBench(blocks=3, pairs=40, ledgers=5, rounds=100)


def bench_ledger(plan: LedgerBench, folder: Path, progress: Progress) -> dict[str, Any]:
    """The document; ``folder`` lies on the disk that is measured."""
    found = machine(PACKAGES)
    work: list[Callable[[], Iterator[Row]]] = [
        lambda: _pairs(plan, folder, "on disk"),
        lambda: _pairs(plan, MEMORY, "in memory, no disk") if MEMORY.is_dir() else iter(()),
        lambda: _near_the_budget(folder),
        lambda: _reports(plan, folder),
    ]
    rows: list[Row] = []
    for done, measure in enumerate(work):
        progress("ledger", done, len(work))
        rows += measure()
    progress("ledger", len(work), len(work))
    return {"machine": found, "rows": [row.to_json() for row in rows]}


def _pairs(plan: LedgerBench, parent: Path, where: str) -> Iterator[Row]:
    """Reserve and settle at full durability, and the raw writes of the same folder in between."""
    appended, overwritten, pairs, rounds = [], [], [], []
    with tempfile.TemporaryDirectory(dir=parent) as name, _ledger(Path(name), 1e6) as ledger:
        _charge(ledger, 200)  # SQLite's log reaches its size
        for _ in range(plan.blocks):
            appended.append(_raw_rate(Path(name), plan.pairs, grow=True))
            overwritten.append(_raw_rate(Path(name), plan.pairs, grow=False))
            pairs.append(_rate(plan.pairs, lambda: _charge(ledger, plan.pairs)))
            rounds.append(_rate(plan.pairs, lambda: _charge(ledger, plan.pairs, with_head=True)))
    size = {"pairs": plan.pairs}
    for what, rates in (("append 4 KiB, fdatasync", appended), ("overwrite 4 KiB, fdatasync", overwritten)):
        yield Row(f"raw writes {where}: {what}", size, "writes/s", median(rates), rate=True, runs=plan.blocks)
    raw = median(max(pair) for pair in zip(appended, overwritten, strict=True))
    required = f"required: {REQUIRED_PAIRS} pairs/s or the disk's own limit, its better raw rate"
    for what, rates, waits, note in (
        (f"reserve and settle {where}", pairs, 1, required),
        (f"reserve, settle, head {where}", rounds, 2, "as a round does: the advert's head is on disk too"),
    ):
        yield Row(
            what,
            size,
            "pairs/s",
            median(rates),
            limit=raw / waits,
            rate=True,
            runs=plan.blocks,
            note=f"{waits} wait(s) for the disk a pair; {note}",
            beside={"share_of_limit": median(rates) * waits / raw},
        )


def _near_the_budget(folder: Path) -> Iterator[Row]:
    """A charge that PRV grants and RDP does not: one composition."""
    times = []
    spent, more = DpEvent(9.0, 1 / 16, 800), DpEvent(9.0, 1 / 16, 1)
    budget = epsilon_prv([spent, replace(more, steps=20)], 1e-5)
    with tempfile.TemporaryDirectory(dir=folder) as name, _ledger(Path(name), budget) as ledger:
        ledger.reserve("run", 0, 0, spent)
        for round in range(1, 10):
            began = time.perf_counter()
            ledger.reserve("run", round, 0, more)
            times.append((time.perf_counter() - began) * 1e3)
    yield Row("reserve close to the budget", {"steps": 800}, "ms", median(times), runs=len(times), note="one PRV")


def _reports(plan: LedgerBench, folder: Path) -> Iterator[Row]:
    """The command line from start to end, Python's start and the libraries' imports included."""
    imports = _seconds([sys.executable, "-c", "import opacus, dp_accounting.pld.pld_privacy_accountant"])
    size = {"ledgers": plan.ledgers, "rounds": plan.rounds}
    for what, rows_of in (("one plan", lambda number: 1024), ("every history another", lambda number: 1024 + number)):
        with tempfile.TemporaryDirectory(dir=folder) as name:
            paths = [_filled(Path(name) / str(n), rows_of(n), plan.rounds) for n in range(plan.ledgers)]
            for verb in ("report", "verify") if what == "one plan" else ("report",):
                command = [sys.executable, "-m", "gradtf_fl.cli.main", "audit", verb, *map(str, paths)]
                yield Row(
                    f"audit {verb}, {what}",
                    size,
                    "s",
                    _seconds(command),
                    note=f"required of a report: {REQUIRED_REPORT_S} s" if verb == "report" else "every signature",
                    beside={"imports_s": imports} if verb == "report" else {},
                )


def _ledger(folder: Path, budget: float) -> Ledger:
    key = Ed25519PrivateKey.generate()
    return Ledger.open(folder / LEDGER, identity_key=key, organization="bench", delta=1e-5, budget=budget)


def _charge(ledger: Ledger, pairs: int, with_head: bool = False) -> None:
    for round in range(pairs):
        ledger.settle(ledger.reserve("run", round, 0, EVENT, "train.begin"), EVENT)
        if with_head:
            assert ledger.head


def _rate(count: int, work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def _raw_rate(folder: Path, count: int, grow: bool) -> float:
    """Synchronous writes of one page a second, to the end of a file or over its first page."""
    block, handle = os.urandom(4096), os.open(folder / "raw", os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        os.pwrite(handle, block, 0)
        os.fsync(handle)

        def write() -> None:
            for number in range(count):
                os.pwrite(handle, block, 4096 * number if grow else 0)
                os.fdatasync(handle)

        return _rate(count, write)
    finally:
        os.close(handle)
        (folder / "raw").unlink()


def _filled(folder: Path, rows: int, rounds: int) -> Path:
    """A ledger as ``rounds`` rounds of batch 64 on ``rows`` rows leave it, written in one go."""
    key = Ed25519PrivateKey.generate()
    genesis = Genesis(folder.name, 1e-5, key.public_key().public_bytes_raw(), WHEN)
    entries: list[Entry] = [seal(1, "genesis", genesis.body(), GENESIS_HASH, key)]

    def add(kind: str, body: str) -> None:
        entries.append(seal(len(entries) + 1, kind, body, entries[-1].hash, key))

    add("budget", canonical(budget_document("train", 8.0, ROW_UNIT, WHEN)))
    event = event_document(DpEvent(9.0, 64 / rows, 50))
    for round in range(1, rounds + 1):
        head = {"run_id": "16405987313402935190", "round": round, "attempt": 0, "note": "train.begin"}
        add("reserve", canonical({**head, **event, "dataset": "train", "noise": "not recorded", "when": WHEN}))
        noise = "CSPRNG-seeded, floating point, not hardened"
        add("settle", canonical({**event, "noise": noise, "reservation": len(entries), "when": WHEN}))
    import_ledger(entries, folder / LEDGER)
    return folder / LEDGER


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:5])} ended with {done.returncode}: {done.stderr[-500:]}")
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the document here")
    parser.add_argument("--quick", action="store_true", help="small sizes: a first look")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on the disk to measure (default: here)")
    arguments = parser.parse_args()

    def progress(what: str, done: int, total: int) -> None:
        print(f"{what}: {done} of {total}", file=sys.stderr)

    work = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        document = bench_ledger(QUICK if arguments.quick else FULL, work, progress)
    finally:
        shutil.rmtree(work)
    for row in document["rows"]:
        limit = f" (limit {row['limit']:.4g})" if row["limit"] else ""
        print(f"{row['what']}: {row['ours']:.4g} {row['unit']}{limit}")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
