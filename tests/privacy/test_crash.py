"""kill -9 at any moment: what was released stays charged, the chain holds, and nobody waits for the dead."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradtf_fl.errors import ConfigError, VerificationFailed
from gradtf_fl.privacy import DpEvent, Ledger, epsilon_prv, epsilon_rdp, read_ledger

BUDGETS = {"train": 1e6, "other": 1e6}
DELTA = 1e-5
KILLS_PER_LEDGER = 25
LONGEST_LIFE_S = 0.04
EVENTS = [DpEvent(4.0, 1 / 16, 20), DpEvent(2.0, 1 / 32, 10)]


def spend_for_ever(path: Path, key: Ed25519PrivateKey, releases: int, seed: int) -> None:
    """Reserve, train, release, settle, in the orders that clients may take; also gives up, aborts and reopens.

    Args:
        releases: file descriptor of the truth: one line, in one write, for every release.
    """
    rng = random.Random(seed)
    while True:
        ledger = Ledger.open(path, identity_key=key, organization="clinic", delta=DELTA, budget=BUDGETS)
        for round in range(rng.randrange(1, 6)):
            planned, dataset = rng.choice(EVENTS), rng.choice(list(BUDGETS))
            reservation = ledger.reserve("run", round, 0, planned, dataset=dataset)
            if rng.random() < 0.1:
                ledger.abort(reservation, released=False)  # nothing was trained
                continue
            observed = DpEvent(planned.sigma, planned.q, rng.randrange(planned.steps + 1))
            line = f"{dataset} {observed.sigma!r} {observed.q!r} {observed.steps}\n".encode()
            settle_first = rng.random() < 0.5
            if settle_first:
                ledger.settle(reservation, observed)
            os.write(releases, line)
            if not settle_first and rng.random() < 0.8:
                ledger.settle(reservation, observed)
            elif not settle_first:
                ledger.abort(reservation)
        ledger.close()


def start(path: Path, key: Ed25519PrivateKey, releases: int, seed: int) -> int:
    """A forked process that spends until it is killed; its id."""
    process = os.fork()
    if process == 0:
        try:
            spend_for_ever(path, key, releases, seed)
        finally:
            os._exit(1)
    return process


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(process, 0)[1]), "it had failed before it was killed"


def steps(events: list[tuple[str, DpEvent]]) -> Counter[tuple[str, float, float]]:
    total: Counter[tuple[str, float, float]] = Counter()
    for dataset, event in events:
        total[dataset, event.sigma, event.q] += event.steps
    return total


def released(log: Path) -> list[tuple[str, DpEvent]]:
    words = [line.split() for line in log.read_text().splitlines()]
    return [(dataset, DpEvent(float(sigma), float(q), int(count))) for dataset, sigma, q, count in words]


def check(path: Path, truth: list[tuple[str, DpEvent]]) -> None:
    """The three promises, on the files as the dead left them."""
    try:
        reading = read_ledger(path)
    except (ConfigError, VerificationFailed):  # it died while it made the ledger
        assert truth == []
        return
    assert reading.problems == ()
    charged = [(charge.dataset, charge.event) for charge in reading.content.charges if charge.counted]
    assert steps(charged) >= steps(truth)
    for account in reading.content.datasets:
        own = [event for dataset, event in truth if dataset == account.name]
        assert epsilon_rdp(account.events, DELTA) >= epsilon_rdp(own, DELTA)
    connection = sqlite3.connect(path, timeout=0, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")  # raises at once where a lock is left
    connection.execute("ROLLBACK")
    connection.close()


def kill_often(folder: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    epsilon_rdp(EVENTS, DELTA)  # the curves, so that children need not compute them
    key = Ed25519PrivateKey.generate()
    done = trained = 0
    while done < kills:
        path = folder / str(done) / "ledger.sqlite"
        path.parent.mkdir()
        log = path.with_name("released")
        releases = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        for _ in range(min(KILLS_PER_LEDGER, kills - done)):
            processes = [start(path, key, releases, rng.randrange(2**32)) for _ in range(rng.choice([1, 1, 2]))]
            for process in processes:
                time.sleep(rng.uniform(0, LONGEST_LIFE_S))
                kill(process)
                done += 1
            check(path, released(log))
        os.close(releases)
        ledger = Ledger.open(path, identity_key=key, organization="clinic", delta=DELTA, budget=BUDGETS)
        truth = released(log)
        for dataset in BUDGETS:
            own = [event for name, event in truth if name == dataset]
            assert ledger.spent(dataset).prv >= epsilon_prv(own, DELTA)
        ledger.close()
        assert ledger.verify() == ()
        trained += len(truth)
    assert trained > kills / 10, "killed before they did anything: that shows nothing"


def test_50_kills(tmp_path: Path) -> None:
    kill_often(tmp_path, 50, seed=1)


@pytest.mark.slow
def test_1000_kills(tmp_path: Path) -> None:
    kill_often(tmp_path, 1000, seed=2)
