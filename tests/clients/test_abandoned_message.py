"""A message that its SuperNode gave up half-way: Flower's own client would wait for the rest of it for ever."""

from __future__ import annotations

import time

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

import clients.node.flower_tasks
from clients.flower_private import TaskType, identify, set_message_id
from clients.node.executor import Executor
from gradtf_fl.round_messages import SECTION
from tests.clients.test_flower_tasks import NODE, RUN, SuperNode, executor, supernode
from tests.flower_private import get_object_tree, no_object_id_recompute

__all__ = ["executor", "supernode"]


def give_half(supernode: SuperNode) -> None:
    """The head of a message arrives; then its run ends, and the SuperNode turns to the next one."""
    state, store = supernode.factory.state(), supernode.factory.objectstore_factory.store()
    identify(task_id=1, run_id=RUN, node_id=1)
    message = Message(RecordDict({SECTION: ConfigRecord({"value": 1})}), NODE, "train.double")
    run = state.get_run(RUN)
    assert run is not None
    assert state.create_task(task_type=TaskType.CLIENT_APP, run_id=RUN, fab_hash=run.fab_hash) is not None
    with no_object_id_recompute():
        set_message_id(message, message.object_id)
        store.preregister(RUN, get_object_tree(message))
        state.store_message(message)


def test_the_next_message_is_answered(supernode: SuperNode, executor: Executor) -> None:
    give_half(supernode)
    supernode.give("train.double", {"value": 4})
    assert supernode.fields(supernode.reply()) == {"of": "train.double", "twice": 8}
    assert executor.served == 1


def test_a_reply_that_gets_lost_is_no_failed_task(
    supernode: SuperNode, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told of a failed task, the SuperNode would wait for a reply for ever; a claim that expires makes it go on."""
    told: list[object] = []

    def lose(*_: object) -> None:
        raise ConnectionError("lost")

    monkeypatch.setattr(clients.node.flower_tasks, "push_message", lose)
    monkeypatch.setattr(clients.node.flower_tasks, "push_task_output", lambda *arguments: told.append(arguments))
    supernode.give("train.double", {"value": 4})
    end = time.monotonic() + 20.0
    while executor.served == 0 and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.5)
    assert (executor.served, told) == (1, [])
