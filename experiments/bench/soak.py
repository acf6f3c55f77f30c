"""``python -m experiments.bench.soak``: many rounds of a whole deployment, and what grows meanwhile.

A server and three organizations on loopback as deployed; after every round the resident memory and the open files of
each of their processes are read from /proc (Linux), and the sizes of the databases. Printed as one line for each
process: resident memory after round 5 and at the end, its growth, open files; then the databases.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.bench.federation import OURS, FederationBench, deployment, nodes
from experiments.measuring import machine
from gradtf_fl.deployment import load_server
from gradtf_fl.flower import RoundEvent
from strategies import ServerRun

SETTLED = 5  # rounds after which nothing should grow any more
PROGRAMS = {  # what a command line shows -> what the program is called here
    "strategies.server.superlink_gate": "SuperLink",
    "flower-superexec": "SuperExec",
    "flwr-serverapp": "ServerApp",
    "clients.node.supernode": "SuperNode",
    "clients.node.worker": "worker",
    "org run": "org run",
}


@dataclass(frozen=True)
class Sample:
    """One process after one round: resident memory (bytes) and open files."""

    round: int
    process: str
    pid: int
    resident: int
    files: int


@dataclass(frozen=True)
class Growth:
    """One process over the run. ``growth`` is relative, from the settled round to the last."""

    process: str
    settled_mb: float
    last_mb: float
    growth: float
    settled_files: int
    last_files: int
    restarts: int


def soak(folder: Path, rounds: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Run ``rounds`` and return the document that `main` prints."""
    folder.mkdir(parents=True, exist_ok=True)
    server, organizations = deployment(folder, FederationBench(rounds=rounds - 1))
    samples: list[Sample] = []
    databases: list[dict[str, int]] = []
    started = time.monotonic()

    def after_round(event: RoundEvent) -> None:
        if event.record is None:
            return
        samples.extend(look(event.round, folder))
        databases.append({str(path.relative_to(folder)): size(path) for path in sorted(folder.rglob("*.sqlite"))})
        tell(f"round {event.round} of {rounds}, {time.monotonic() - started:.0f} s")

    with nodes(organizations, OURS, server):
        ServerRun(load_server(server), after_round, tell).run()
    grown = [growth(name, [s for s in samples if s.process == name]) for name in sorted({s.process for s in samples})]
    return {
        "machine": machine(("flwr", "torch")),
        "rounds": rounds,
        "wall_s": round(time.monotonic() - started, 1),
        "processes": [asdict(one) for one in grown],
        "databases": {name: [part.get(name, 0) for part in databases] for name in databases[-1]},
    }


def look(round_number: int, folder: Path) -> list[Sample]:
    """All processes of the deployment in ``folder`` now."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environ = (entry / "environ").read_bytes().decode(errors="replace")
            name = next((name for sign, name in PROGRAMS.items() if sign in command), None)
            if name is None or str(folder) not in command + environ:
                continue
            owner = re.search(re.escape(str(folder)) + r"/(org-[0-9]+)", command + environ)
            pages = int((entry / "statm").read_text().split()[1])
            files = len(list((entry / "fd").iterdir()))
        except (OSError, ValueError, IndexError):
            continue  # it ended meanwhile
        where = owner[1] if owner else "server"
        found.append(Sample(round_number, f"{where}: {name}", int(entry.name), pages * 4096, files))
    return found


def growth(process: str, samples: list[Sample]) -> Growth:
    """From the first sample at or after `SETTLED` to the last."""
    settled = next((s for s in samples if s.round >= SETTLED), samples[0])
    last = samples[-1]
    return Growth(
        process=process,
        settled_mb=round(settled.resident / 1e6, 1),
        last_mb=round(last.resident / 1e6, 1),
        growth=round(last.resident / settled.resident - 1, 4),
        settled_files=settled.files,
        last_files=last.files,
        restarts=len({s.pid for s in samples}) - 1,
    )


def size(path: Path) -> int:
    """Bytes of a SQLite database and its write-ahead log."""
    return sum(part.stat().st_size for part in path.parent.glob(path.name + "*") if part.is_file())


def main() -> None:
    """Print the table; ``--json`` the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true", dest="as_json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gradtf-soak-") as scratch:
        document = soak(Path(scratch), given.rounds, lambda line: print(line, file=sys.stderr, flush=True))
    if given.as_json:
        print(json.dumps(document, indent=1))
        return
    for one in document["processes"]:
        print(
            f"{one['process']:<22} {one['settled_mb']:>7.1f} MB -> {one['last_mb']:>7.1f} MB ({one['growth']:+.1%}), "
            f"{one['settled_files']} -> {one['last_files']} open files, {one['restarts']} restarts"
        )
    for name, sizes in document["databases"].items():
        print(f"{name:<40} {sizes[SETTLED - 1 if len(sizes) >= SETTLED else 0]:>10,} -> {sizes[-1]:>10,} bytes")


if __name__ == "__main__":
    main()
