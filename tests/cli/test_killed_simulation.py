"""A simulation that is ended from outside leaves no process behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HOLD = """
import time
from gradtf_fl.config import SimulationConfig
from gradtf_fl.simulation.ceiling import CeilingWorker

if __name__ == "__main__":
    with CeilingWorker(SimulationConfig(organizations=20, rounds=20, steps=200)) as worker:
        print(worker._process.pid, flush=True)
        time.sleep(600)
"""


def resident_mb(process: int) -> float:
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return 0.0


@pytest.mark.long
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="with one core there is no second process")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["term", "kill"])
def test_a_signal_leaves_no_ceiling_behind(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "hold.py"
    script.write_text(HOLD)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        until = time.monotonic() + 60
        while resident_mb(child) < 250 and time.monotonic() < until:  # torch is imported: it is at work
            time.sleep(0.1)
        assert resident_mb(child) >= 250
        time.sleep(0.5)
        parent.send_signal(how)
    until = time.monotonic() + 10
    while resident_mb(child) and time.monotonic() < until:
        time.sleep(0.05)
    left = resident_mb(child)
    if left:
        os.kill(child, signal.SIGKILL)
    assert not left
