"""A pool's processes do one thread's work, and none outlives whoever started it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gradtf_fl.curation import workers
from gradtf_fl.curation.workers import finished_shards
from gradtf_fl.training.stacked import StepsDone

OWNER = "from pathlib import Path; from tests.curation.test_workers import endless; endless(Path({folder!r}))"


def sleep_forever(folder: Path, number: int, progress: StepsDone) -> dict[str, Tensor]:
    (folder / f"{number}.pid").write_text(str(os.getpid()))
    time.sleep(600)
    return {}


def quiet(name: str, done: int, steps: int) -> None:
    pass


def two_slow_steps(number: int, progress: StepsDone) -> dict[str, Tensor]:
    for done in (1, 2):
        time.sleep(1.5 * workers.TOLD_EVERY_S)
        progress(done, 2)
    time.sleep(1.5 * workers.TOLD_EVERY_S)
    return {}


def threads(number: int, progress: StepsDone) -> dict[str, Tensor]:
    return {"threads": torch.tensor([number, torch.get_num_threads()])}


def endless(folder: Path) -> None:
    """Two workers with work that never ends."""
    list(finished_shards(partial(sleep_forever, folder), [(0, "a"), (1, "b")], 2, quiet))


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def test_each_worker_has_one_thread() -> None:
    found = dict(finished_shards(threads, [(0, "a"), (1, "b")], 2, quiet))
    assert {name: one["threads"].tolist() for name, one in found.items()} == {"a": [0, 1], "b": [1, 1]}


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_shard_in_the_making_says_how_far_it_is(count: int) -> None:
    seen: list[tuple[str, int, int]] = []
    made = finished_shards(
        two_slow_steps, [(4, "a"), (7, "b")], count, lambda name, done, steps: seen.append((name, done, steps))
    )
    first = next(made)[0]
    assert [told for told in seen if told[0] == first] == [(first, 1, 2), (first, 2, 2)]  # before it is finished
    second = next(made)[0]
    assert {first, second} == {"a", "b"}
    assert [told for told in seen if told[0] == second] == [(second, 1, 2), (second, 2, 2)]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_workers_end_when_their_owner_is_killed(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER.format(folder=str(tmp_path))])
    pids: list[int] = []
    try:
        give_up = time.monotonic() + 60
        while len(pids) < 2 and time.monotonic() < give_up:
            time.sleep(0.1)
            pids = [int(text) for path in tmp_path.glob("*.pid") if (text := path.read_text())]
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        owner.kill()
        owner.wait()
        give_up = time.monotonic() + 20
        while any(alive(pid) for pid in pids) and time.monotonic() < give_up:
            time.sleep(0.1)
        assert not any(alive(pid) for pid in pids)
    finally:
        owner.kill()
        owner.wait()
        for pid in pids:
            if alive(pid):
                os.kill(pid, 9)
