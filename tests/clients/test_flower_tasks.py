"""Taking messages from a real SuperNode's Runtime API: fails loudly when a new Flower changes what we lean on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from flwr.app import ConfigRecord, Context, Message, RecordDict

from clients.flower_private import TaskType, identify, pull_and_inflate_object_from_tree
from clients.node.executor import Executor
from clients.node.flower_tasks import TaskSource
from gradtf_fl.deployment.processes import free_port
from gradtf_fl.flower import Vanished
from gradtf_fl.round_messages import REFUSAL, SECTION, Fields
from tests.flower_private import (
    Fab,
    NodeStateFactory,
    ObjectStoreFactory,
    Run,
    create_app,
    insert_message,
    iterate_object_tree,
)

RUN, NODE, SECRET = 7, 11, b"x" * 32


@dataclass
class SuperNode:
    """The part of a SuperNode that hands out messages."""

    factory: NodeStateFactory
    port: int

    def give(self, message_type: str, fields: Fields) -> None:
        """A message of the server's arrives."""
        state = self.factory.state()
        identify(task_id=1, run_id=RUN, node_id=1)
        message = Message(RecordDict({SECTION: ConfigRecord(fields)}), NODE, message_type)
        insert_message(message, state, self.factory.objectstore_factory.store())
        run = state.get_run(RUN)
        assert run is not None
        assert state.create_task(task_type=TaskType.CLIENT_APP, run_id=RUN, fab_hash=run.fab_hash) is not None

    def reply(self, seconds: float = 20.0) -> Message:
        """The next reply that waits to be sent to the server."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.factory.state().get_messages_legacy(is_reply=True):
                return found[0]
            time.sleep(0.02)
        raise AssertionError("no reply")

    def fields(self, message: Message) -> dict[str, object]:
        """What the reply says."""
        store = self.factory.objectstore_factory.store()
        tree = store.get_object_tree(message.metadata.message_id)
        end = time.monotonic() + 20.0  # its parts arrive after it
        while not all(store.get(part.object_id) for part in iterate_object_tree(tree)) and time.monotonic() < end:
            time.sleep(0.02)
        whole = pull_and_inflate_object_from_tree(
            tree, lambda object_id: store.get(object_id) or b"", lambda _: None, return_type=Message
        )
        return dict(whole.content[SECTION]) if whole.has_content() else {"error": whole.error.code}


@pytest.fixture
def supernode() -> Iterator[SuperNode]:
    factory = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
    state = factory.state()
    state.set_node_id(NODE)
    run = Run.create_empty(RUN)
    run.fab_hash = state.store_fab(Fab("", b"the server's code", {}))
    state.store_run(run)
    state.set_run_series_context(run.series_id, Context(RUN, NODE, {}, RecordDict(), {}))
    port = free_port()
    app = create_app(state_factory=factory, superexec_auth_secret=SECRET)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield SuperNode(factory, port)
    server.should_exit = True
    thread.join(10.0)


class Link:
    """In the worker's place: answers at once."""

    def ask(self, message_type: str, fields: Fields) -> Fields:
        if message_type == "train.gone":
            raise Vanished
        if message_type == "train.broken":
            raise RuntimeError("row 12: patient-7431")
        return {"of": message_type, "twice": fields["value"] * 2}  # type: ignore[operator]


@pytest.fixture
def executor(supernode: SuperNode) -> Iterator[Executor]:
    told: list[tuple[str, str]] = []
    link: Any = Link()
    source = TaskSource(f"127.0.0.1:{supernode.port}", SECRET)
    executor = Executor(source, link, lambda message_type, outcome, seconds: told.append((message_type, outcome)))
    executor.told = told  # type: ignore[attr-defined]
    executor.start()
    yield executor
    assert executor.stop(10.0)


def test_a_message_is_answered_and_the_servers_code_never_unpacked(supernode: SuperNode, executor: Executor) -> None:
    for value in (3, 4):  # one after the other, from one process
        supernode.give("train.double", {"value": value})
        assert supernode.fields(supernode.reply()) == {"of": "train.double", "twice": 2 * value}
    assert executor.served == 2
    assert executor.told == [("train.double", "answered")] * 2  # type: ignore[attr-defined]


def test_a_failure_leaves_as_a_code(supernode: SuperNode, executor: Executor) -> None:
    supernode.give("train.broken", {"value": 1})
    fields = supernode.fields(supernode.reply())
    assert fields == {REFUSAL: "internal"}
    supernode.give("train.gone", {"value": 1})
    assert set(supernode.fields(supernode.reply())) == {"error"}


def test_without_the_secret_nobody_gets_a_message(supernode: SuperNode) -> None:
    supernode.give("train.double", {"value": 1})
    assert TaskSource(f"127.0.0.1:{supernode.port}", b"y" * 32).acquire() is None
    ours = TaskSource(f"127.0.0.1:{supernode.port}", SECRET).acquire()
    assert ours is not None


def test_a_supernode_that_is_gone_has_no_messages() -> None:
    assert TaskSource(f"127.0.0.1:{free_port()}", SECRET).acquire() is None
