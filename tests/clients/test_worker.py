"""The resident worker as a real process: warm, private, started again, bounded."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clients.node.worker_link import WorkerGone, WorkerLink
from gradtf_fl.file_names import WORKER_SOCKET
from gradtf_fl.round_messages import DELIVER_TYPE, MESSAGE_TYPES, REFUSAL
from tests.clients.test_client_border import Bench, delivery
from tests.strategies.federation_kit import Kit


@pytest.fixture
def kit(make_kit: Callable[..., Kit]) -> Kit:
    kit = make_kit("a/" + "deep/" * 25 + "folder")  # longer than a socket's name
    kit.change(0, simulation=None)
    return kit


@pytest.fixture
def link(kit: Kit) -> Iterator[WorkerLink]:
    link = WorkerLink(kit.folders[0])
    yield link
    link.stop()


def test_a_round_of_the_worker_is_a_round_of_the_handlers(kit: Kit, link: WorkerLink) -> None:
    bench = Bench(kit)
    link.start()
    pid = link.pid
    assert stat.S_IMODE((kit.folders[0] / WORKER_SOCKET).stat().st_mode) == 0o600
    message = bench.begin()
    answer = link.ask(MESSAGE_TYPES["advertise"], message.to_fields())
    assert answer["round"] == 1
    assert REFUSAL not in answer
    assert link.ask(MESSAGE_TYPES["advertise"], message.to_fields()) == {REFUSAL: "stale"}
    assert link.ask(DELIVER_TYPE, delivery(bench).to_fields()) == {"status": "stored"}
    assert link.ask("train.nothing", {}) == {REFUSAL: "protocol"}
    assert link.pid == pid

    assert pid is not None
    os.kill(pid, signal.SIGKILL)  # died between two messages: the next one starts it again
    assert link.ask(MESSAGE_TYPES["advertise"], message.to_fields()) == {REFUSAL: "stale"}
    assert link.pid not in (None, pid)

    kit.change(0, worker=kit.config(0).worker.model_copy(update={"memory_mb": 256}))  # less than torch takes
    assert link.ask("train.nothing", {}) == {REFUSAL: "protocol"}
    end = time.monotonic() + 20
    while link.pid is not None and time.monotonic() < end:
        time.sleep(0.05)
    assert link.pid is None  # it went after its answer, to be started afresh


def test_no_message_takes_more_memory_than_the_organization_gives(kit: Kit) -> None:
    kit.change(0, worker=kit.config(0).worker.model_copy(update={"most_mb": 2000}))
    code = f"""
from pathlib import Path
from clients.node import worker
folder = Path({str(kit.folders[0])!r})
worker.bound_memory(folder)
worker.handle = lambda organization, message_type, fields: bytearray(3 * 10**9)
print(worker.answer(folder, "train.begin", {{}}), len(bytearray(10**8)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split("\n")[0] == "{'fields': {'refusal': 'internal'}} 100000000", done.stderr[-2000:]
    assert "MemoryError" in (kit.folders[0] / "client.log").read_text()


def test_a_worker_that_cannot_start_is_told(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    (kit.folders[0] / WORKER_SOCKET).mkdir()
    with pytest.raises(WorkerGone, match=r"worker\.log"):
        WorkerLink(kit.folders[0]).start()


def test_the_worker_dies_with_whoever_started_it(kit: Kit) -> None:
    code = f"""
import os, signal
from pathlib import Path
from clients.node.worker_link import WorkerLink
link = WorkerLink(Path({str(kit.folders[0])!r}))
link.start()
print(link.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    pid = int(done.stdout)
    end = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
