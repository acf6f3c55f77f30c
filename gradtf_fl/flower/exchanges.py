"""One request to several organizations and their answers, under a deadline.

Replies are matched by ``reply_to_message_id`` (a dead SuperNode's error carries another node's id) and
handed over as they arrive, so that nothing is kept. Whoever has not answered at the deadline is lost; the
message's ttl ends with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from gradtf_fl.errors import RoundAborted
from gradtf_fl.round_messages import REFUSAL, SECTION, Fields, Refusal

CONNECT = "connect"  # where a round aborts that too few organizations came to
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0  # seconds between two pulls
NODE_PAUSE = 0.5  # seconds between two looks at who is connected
TTL_MARGIN = 5.0  # seconds that a message outlives the deadline, for clocks that differ


@dataclass(frozen=True)
class Answer:
    """What one organization sent back: fields, or a refusal code, or nothing usable.

    Attributes:
        bare: it answered, and not with a message of ours: nobody guards its app.
    """

    node: int
    fields: Mapping[str, Any] | None = None
    refusal: Refusal | None = None
    bare: bool = False


@dataclass
class Traffic:
    """Payload bytes to and from each node."""

    down: dict[int, int] = field(default_factory=dict)
    up: dict[int, int] = field(default_factory=dict)

    def mean_down(self) -> int:
        """Bytes to an organization, mean over those asked."""
        return round(sum(self.down.values()) / len(self.down)) if self.down else 0

    def mean_up(self) -> int:
        """Bytes from an organization, mean over those that answered."""
        return round(sum(self.up.values()) / len(self.up)) if self.up else 0


def messages_for(outgoing: Mapping[int, Fields], message_type: str, group: str, ttl: float) -> list[Message]:
    """One Flower message for each node."""
    return [
        Message(
            RecordDict({SECTION: ConfigRecord(fields)}),
            node,
            message_type,
            ttl=ttl,
            group_id=group,
        )
        for node, fields in outgoing.items()
    ]


def wait_for_nodes(grid: Grid, wanted: int, least: int, join_s: float, all_s: float | None = None) -> list[int]:
    """The connected nodes, as soon as ``wanted`` are there.

    Args:
        join_s: seconds to wait for ``least``.
        all_s: seconds to wait for the others, too (default: as long).

    Raises:
        RoundAborted: fewer than ``least`` after ``join_s``.
    """
    started = time.monotonic()
    while len(nodes := sorted(grid.get_node_ids())) < wanted:
        waited, limit = time.monotonic() - started, join_s if len(nodes) < least or all_s is None else all_s
        if waited >= limit:
            break
        time.sleep(min(NODE_PAUSE, limit - waited))
    if len(nodes) < least:
        reason = f"{len(nodes)} organizations are connected after {join_s:g} s, {least} are needed"
        raise RoundAborted(CONNECT, {"connected": len(nodes)}, reason)
    return nodes


def patience(grid: Grid, deadline_s: float, nodes: int) -> float:
    """Seconds to wait for ``nodes`` answers: a grid that runs its clients one by one needs the sum."""
    return deadline_s * max(1, nodes) if getattr(grid, "sequential", False) else deadline_s


def exchange(
    grid: Grid,
    messages: Iterable[Message],
    deadline_s: float,
    on_answer: Callable[[Answer], None],
    traffic: Traffic | None = None,
) -> None:
    """Send ``messages`` and call ``on_answer`` for each reply that arrives within ``deadline_s`` seconds."""
    sent = list(messages)
    traffic = traffic if traffic is not None else Traffic()
    for message in sent:
        node = message.metadata.dst_node_id
        traffic.down[node] = traffic.down.get(node, 0) + payload_bytes(message)
    grid.push_messages(sent)
    waiting = {message.metadata.message_id: message.metadata.dst_node_id for message in sent}
    waiting.pop("", None)  # a message that could not be pushed has no id
    del sent
    end, pause = time.monotonic() + deadline_s, FIRST_PAUSE
    while waiting and time.monotonic() < end:
        replies = list(grid.pull_messages(list(waiting)))
        for reply in replies:
            known = waiting.pop(reply.metadata.reply_to_message_id, None)
            if known is None:
                continue
            traffic.up[known] = traffic.up.get(known, 0) + payload_bytes(reply)
            on_answer(_answer(known, reply))
        pause = FIRST_PAUSE if replies else min(LONGEST_PAUSE, 2 * pause)
        if waiting and not replies:
            time.sleep(min(pause, max(0.0, end - time.monotonic())))


def _answer(node: int, reply: Message) -> Answer:
    if not reply.has_content():
        return Answer(node)
    record = reply.content.get(SECTION)
    if not isinstance(record, ConfigRecord):
        return Answer(node, bare=True)
    fields = dict(record)
    if REFUSAL not in fields:
        return Answer(node, fields=fields)
    try:
        return Answer(node, refusal=Refusal(str(fields[REFUSAL])))
    except ValueError:
        return Answer(node, refusal=Refusal.INTERNAL)


def payload_bytes(message: Message) -> int:
    """Bytes of all values in a message: what this project sends, without Flower's own framing."""
    if not message.has_content():
        return 0
    record = message.content.get(SECTION)
    return sum(_size(value) for value in record.values()) if isinstance(record, ConfigRecord) else 0


def _size(value: object) -> int:
    if isinstance(value, bytes):
        return len(value)
    return len(value.encode()) if isinstance(value, str) else 8
