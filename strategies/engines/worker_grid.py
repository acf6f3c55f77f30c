"""A Flower grid over worker processes: the same ServerApp and ClientApp as in one process, several nodes at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from strategies.engines.in_process import (
    FIRST_NODE_ID,
    InProcessGrid,
    be_the_server,
    client_reply,
    contexts_of,
    unwired,
    wired,
)
from strategies.engines.worker_pool import WorkerPool

PULL_SECONDS = 1.0

LoadApp = Callable[[], ClientApp]
_served: tuple[ClientApp, dict[int, Context]] | None = None
"""Of a worker: the app, and the contexts of the nodes that it serves."""


class WorkerGrid(InProcessGrid):
    """Calls one ClientApp for many nodes in the processes of a pool.

    Node number i is always served by worker i mod K, which keeps its context. Each node gets its messages in the order
    in which they were pushed; replies come as workers are done. What a node answers does not depend on who else is
    served, so that the number of workers changes no result.

    Args:
        pool: at least one worker; none at work.
        load_app: gives the app in a worker; a function that a new process can import.
        node_configs: of each node.
        run_config: of the run.
    """

    def __init__(
        self,
        pool: WorkerPool,
        load_app: LoadApp,
        node_configs: Sequence[Mapping[str, Any]],
        run_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(ClientApp(), node_configs, run_config)
        self._pool = pool
        self._queues: list[deque[Message]] = [deque() for _ in range(len(pool))]
        pool.everywhere(_begin, load_app, [dict(one) for one in node_configs], dict(run_config or {}))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages at their nodes' workers; a message for an unknown node raises KeyError."""
        ids = super().push_messages(messages)
        while self._waiting:
            message = self._waiting.popleft()
            number = message.metadata.dst_node_id - FIRST_NODE_ID
            self._queues[number % len(self._queues)].append(message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that have come to ``message_ids``; waits up to a second for the first one.

        Messages that nobody waits for any more are dropped, with their replies.

        Raises:
            WorkerDied: a worker process has ended.
        """
        wanted = set(message_ids)
        for number in self._pool.idle():
            while (queue := self._queues[number]) and queue[0].metadata.message_id not in wanted:
                queue.popleft()
            if queue:
                message = queue.popleft()
                node = message.metadata.dst_node_id
                self._pool.give(number, message.metadata.message_id, _answer, node, wired(message))
        return [unwired(wire) for job, wire in self._pool.answers(PULL_SECONDS) if job in wanted]


def _begin(load_app: LoadApp, node_configs: Sequence[Mapping[str, Any]], run_config: Mapping[str, Any]) -> None:
    """In a worker: make the nodes' contexts."""
    global _served
    be_the_server()
    _served = load_app(), contexts_of(node_configs, run_config)


def _answer(node: int, wire: bytes) -> bytes:
    """In a worker: the node's reply."""
    assert _served is not None
    app, contexts = _served
    return client_reply(app, contexts[node], wire)
