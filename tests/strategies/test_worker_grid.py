"""Several processes behind one grid: the same answers as in one, and a clear error when one of them dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from gradtf_fl.errors import ConfigError
from gradtf_fl.flower import Answer, exchange, messages_for
from gradtf_fl.round_messages import SECTION
from strategies import WorkerDied, WorkerGrid, WorkerPool


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(2, 1) as made:
        yield made


def _alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has asked about yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def load_app() -> ClientApp:
    app = ClientApp()

    @app.train("echo")
    def echo(message: Message, context: Context) -> Message:
        fields = dict(message.content[SECTION])
        count = int(context.state["seen"]["count"]) + 1 if "seen" in context.state else 1  # type: ignore[call-overload]
        context.state["seen"] = ConfigRecord({"count": count})
        if fields["value"] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if fields["value"] == "fail":
            raise ValueError("not for the server")
        told = {**fields, "node": int(str(context.node_config["number"])), "pid": os.getpid(), "count": count}
        return Message(RecordDict({SECTION: ConfigRecord(told)}), reply_to=message)

    return app


def _ask(grid: WorkerGrid, values: dict[int, str]) -> dict[int, Answer]:
    found: dict[int, Answer] = {}
    outgoing = {node: {"value": value} for node, value in values.items()}
    exchange(
        grid,
        messages_for(outgoing, "train.echo", "1", 60.0),
        120.0,
        lambda answer: found.__setitem__(answer.node, answer),
    )
    return found


def test_each_node_is_served_by_one_worker_that_keeps_its_context(pool: WorkerPool) -> None:
    grid = WorkerGrid(pool, load_app, [{"number": number} for number in range(5)])
    nodes = sorted(grid.get_node_ids())
    for turn in (1, 2):
        found = _ask(grid, {node: f"{turn}.{node}" for node in nodes})
        assert sorted(found) == nodes
        for number, node in enumerate(nodes):
            fields = found[node].fields
            assert fields is not None
            assert fields == {
                "value": f"{turn}.{node}",
                "node": number,
                "pid": pool.pids[number % 2],
                "count": turn,
            }


def test_a_failing_app_is_that_nodes_own_matter(pool: WorkerPool) -> None:
    grid = WorkerGrid(pool, load_app, [{"number": number} for number in range(3)])
    first, second, third = sorted(grid.get_node_ids())
    found = _ask(grid, {first: "fail", second: "fine", third: "fine"})
    assert found[first].fields is None
    assert found[second].fields is not None
    assert found[third].fields is not None


def _raise(what: str) -> None:
    raise ConfigError([what, "another problem"])


def test_work_is_shared_out_and_comes_back_in_order(pool: WorkerPool) -> None:
    assert pool.each(pow, [(number, 2) for number in range(7)]) == [number**2 for number in range(7)]
    assert pool.each(pow, []) == []
    with pytest.raises(ConfigError, match="another problem"):
        pool.each(_raise, [("a problem",)])
    pool.give(1, "later", pow, 3, 3)
    assert pool.each(pow, [(2, 2), (2, 3)]) == [4, 8]
    assert pool.answer("later") == 27
    with pytest.raises(ValueError, match="nobody is at later"):
        pool.answer("later")


def test_a_dead_worker_is_a_clear_error_and_the_others_are_ended() -> None:
    with WorkerPool(2, 1) as dying:
        pids = dying.pids
        grid = WorkerGrid(dying, load_app, [{"number": number} for number in range(2)])
        first, second = sorted(grid.get_node_ids())
        with pytest.raises(WorkerDied, match=r"worker 2 of 2 ended by signal 9 .*memory may have run out"):
            _ask(grid, {first: "fine", second: "die"})
    assert not any(_alive(pid) for pid in pids)


def _parent(pids: object) -> None:
    with WorkerPool(2, 1) as pool:
        pool.each(pow, [(1, 1), (1, 1)])
        for pid in pool.pids:
            pids.put(pid)  # type: ignore[attr-defined]
        pool.give(0, "sleep", time.sleep, 600.0)
        time.sleep(600)


def test_workers_do_not_outlive_a_killed_parent() -> None:
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    parent = context.Process(target=_parent, args=(told,))
    parent.start()
    pids = [told.get(timeout=120), told.get(timeout=120)]
    parent.kill()
    parent.join()
    end = time.monotonic() + 30
    while any(_alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(_alive(pid) for pid in pids)


@pytest.mark.parametrize(("workers", "threads"), [(0, 1), (1, 0)])
def test_a_pool_of_nothing_is_refused(workers: int, threads: int) -> None:
    with pytest.raises(ValueError, match="at least one worker with one thread"):
        WorkerPool(workers, threads)
