"""Thirty rounds of three organizations: nothing grows once they have settled."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.bench.soak import SETTLED, soak

ROUNDS = 30
KEPT_OPEN = 8  # connections that come and go between two looks
DATABASE_BYTES = 1_000_000  # a round leaves a few kB of run and message records, and its messages' pages are reused


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1800)
def test_nothing_grows(tmp_path: Path) -> None:
    lines: list[str] = []
    document = soak(tmp_path / "soak", ROUNDS, lines.append)
    processes = {one["process"]: one for one in document["processes"]}
    parts = ("org run", "worker", "SuperNode")
    assert set(processes) == {f"org-{n}: {part}" for n in range(3) for part in parts} | {
        f"server: {part}" for part in ("SuperLink", "SuperExec", "ServerApp")
    }
    for name, one in processes.items():
        assert one["restarts"] == 0, (name, lines)
        assert one["growth"] < 0.05, one
        assert abs(one["last_files"] - one["settled_files"]) <= KEPT_OPEN, one
    for name, sizes in document["databases"].items():
        assert len(sizes) == ROUNDS
        assert sizes[-1] - sizes[SETTLED] < DATABASE_BYTES, (name, sizes)
