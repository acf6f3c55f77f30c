"""A Flower grid inside this process: the same ServerApp and ClientApp, the same messages, no network, no Ray.

Leans on Flower's private API (the identity of a task, the message's id, and the serialisation that the wire uses), see
`strategies.flower_private`; `tests/strategies/test_in_process.py` fails loudly when a new Flower changes it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from strategies.flower_private import (
    SUPERLINK_NODE_ID,
    ErrorCode,
    NodeInfo,
    Run,
    WireMessage,
    identify,
    message_from_proto,
    message_to_proto,
    set_message_id,
)

RUN_ID = 1
FIRST_NODE_ID = 100


class InProcessGrid(Grid):  # type: ignore[misc]
    """Calls one ClientApp for several nodes, one after the other, in the order in which messages were pushed.

    A client runs when its reply is pulled, so that the server handles each reply before the next one exists
    (memory of one vector, live progress). Contents pass through Flower's wire serialisation in both
    directions.

    Attributes:
        sequential: waiting times add up here; a deadline for one organization has to be multiplied.
    """

    sequential = True

    def __init__(
        self,
        client_app: ClientApp,
        node_configs: Sequence[Mapping[str, Any]],
        run_config: Mapping[str, Any] | None = None,
    ) -> None:
        self._client_app = client_app
        self._contexts = contexts_of(node_configs, run_config)
        self._waiting: deque[Message] = deque()
        self._run = Run.create_empty(RUN_ID)
        be_the_server()

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Deprecated in Flower; kept because the base class demands it."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes."""
        return list(self._contexts)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """All nodes."""
        return [NodeInfo(node_id=node_id) for node_id in self._contexts]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; a message for an unknown node raises KeyError."""
        ids = []
        for message in messages:
            set_message_id(message, str(uuid4()))
            _ = self._contexts[message.metadata.dst_node_id]
            self._waiting.append(message)
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the next queued client among ``message_ids``; its reply, or nothing when none is queued."""
        wanted = set(message_ids)
        for _ in range(len(self._waiting)):
            message = self._waiting.popleft()
            if message.metadata.message_id in wanted:
                return [self._run_client(message)]
            self._waiting.append(message)
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push all, then pull until all have answered or ``timeout`` seconds are over."""
        open_ids = set(self.push_messages(messages))
        end = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while open_ids and (end is None or time.monotonic() < end):
            for reply in self.pull_messages(open_ids):
                open_ids.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    def _run_client(self, message: Message) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        try:
            return unwired(client_reply(self._client_app, context, wired(message)))
        finally:
            be_the_server()


def be_the_server() -> None:
    """Make this process the ServerApp's task; `Message(...)` raises without it."""
    identify(task_id=1, run_id=RUN_ID, node_id=SUPERLINK_NODE_ID)


def contexts_of(node_configs: Sequence[Mapping[str, Any]], run_config: Mapping[str, Any] | None) -> dict[int, Context]:
    """Each node's context, by its id."""
    return {
        FIRST_NODE_ID + number: Context(
            RUN_ID, FIRST_NODE_ID + number, dict(node_config), RecordDict(), dict(run_config or {})
        )
        for number, node_config in enumerate(node_configs)
    }


def wired(message: Message) -> bytes:
    """A message as Flower's wire carries it."""
    found: bytes = message_to_proto(message).SerializeToString()
    return found


def unwired(wire: bytes) -> Message:
    """The message that `wired` wrote."""
    return message_from_proto(WireMessage.FromString(wire))


def client_reply(client_app: ClientApp, context: Context, wire: bytes) -> bytes:
    """A node's reply to a message, both in their wire form. An exception becomes an error message, as at a node."""
    message = unwired(wire)
    try:
        reply = client_app(message, context)
    except Exception as error:  # as the real node does: the exception's text travels (so handlers must not raise)
        reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, repr(error)), reply_to=message)
    set_message_id(reply, str(uuid4()))
    return wired(reply)
