"""A run's events as files: OUT/status.json for the live view, OUT/events.jsonl for collectors, and a tracker.

It stands apart from the run. Whatever fails here (a full disk, a broken tracker) is logged once and forgotten: no round
fails for it. Nothing here is about an organization's data: a server knows keys, message sizes, times, refusal codes.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Self

from gradtf_fl.config import FederationPlan
from gradtf_fl.deployment import ExchangeStatus, JsonLog, NodeStatus, PlanStatus, RunState, RunStatus
from gradtf_fl.errors import ConfigError, RoundAborted, RoundRejected
from gradtf_fl.file_names import EVENTS
from gradtf_fl.flower import NodeOutcome, OnEvent, RoundEvent, RoundRecord
from gradtf_fl.round_messages import Refusal
from strategies.server.tracking import Tracker, scalars_of

REPLY_EVERY_S = 0.25  # a thousand replies to a stage do not mean a thousand files
REFUSALS = frozenset(map(str, Refusal))

logger = logging.getLogger("gradtf.server")


class Observer:
    """An `OnEvent`; as a context manager it also records how the run ended.

    Files are written from the first event on: a server that may not run here (the folder is another's) leaves none.
    """

    def __init__(self, plan: FederationPlan, tracker: Tracker | None = None) -> None:
        self._out, self._tracker = plan.out, tracker
        self._status = RunStatus(
            PlanStatus(
                plan.organizations,
                plan.rounds,
                plan.epsilon,
                plan.delta,
                plan.noise_multiplier,
                plan.deadline_s,
                plan.join_s,
            ),
            pid=os.getpid(),
        )
        self._nodes: dict[int, NodeStatus] = {}
        self._log = JsonLog(plan.out / EVENTS, "serverapp")
        self._written = float("-inf")
        self._exchange_seconds: dict[str, float] = {}
        self._complaints: set[str] = set()

    def __call__(self, event: RoundEvent) -> None:
        """Take in one event; never raises."""
        if not self._status.started:
            self._quietly(self._begin)
        self._quietly(lambda: self._take(event))
        if event.kind != "reply" or time.monotonic() - self._written >= REPLY_EVERY_S:
            self._quietly(self._write)
        self._quietly(lambda: self._tell(event))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status.started:
            name = "" if kind is None else kind.__name__
            self._status = replace(
                self._status, state=state_of(error), error=name, stage="" if not name else self._status.stage
            )
            self._quietly(self._write)
            self._quietly(lambda: self._log.write("finished", state=self._status.state, error=kind))
        if self._tracker is not None:
            self._quietly(self._tracker.close)

    # what happened -----------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._status = replace(self._status, started=time.time())
        try:
            before = RunStatus.read(self._out)
        except ConfigError:
            before = None
        if before is not None:  # whose node is whose, and who refused, is worth keeping over a restart
            self._nodes = {
                n.node: NodeStatus(n.node, n.key, refusal=n.refusal, refused_in=n.refused_in) for n in before.nodes
            }
        plan = self._status.plan
        self._log.write("started", pid=self._status.pid, organizations=plan.organizations, rounds=plan.rounds)

    def _take(self, event: RoundEvent) -> None:
        """The event's effect on the status."""
        status = replace(self._status, round=event.round)
        if event.kind == "round":
            self._nodes = {
                n.node: replace(n, stage="", outcome="", bytes_up=0, bytes_down=0) for n in self._nodes.values()
            }
            status = replace(status, attempt=0, exchanges=(), refused={}, dropped=0)
            status = _at(status, "connect", 0, status.plan.organizations)
        elif event.kind == "stage":
            status = replace(_at(status, event.stage, 0, event.expected), attempt=event.attempt, dropped=event.dropped)
        elif event.kind == "reply":
            status = replace(status, answered=event.joined)
        elif event.kind == "closed":
            exchange = ExchangeStatus(event.stage, event.joined, event.expected, round(event.seconds, 3))
            status = replace(
                status, answered=event.joined, dropped=event.dropped, exchanges=(*status.exchanges, exchange)
            )
            if event.stage == "unmask":
                status = _at(status, "generate")
        elif event.kind == "end" and event.record is not None:
            status = replace(status, attempt=event.record.attempt, refused=dict(event.record.refused))
            if event.record.state == "completed" and event.record.round == status.plan.rounds:
                status = _at(status, "deliver", 0, status.plan.organizations)
        elif event.kind == "delivered":
            status = replace(self._status, delivered=event.round, stored=event.joined, asked=event.expected)
            if event.round == status.round:  # else it rode with this round's begin
                status = _at(status, "")
        for node in event.nodes:
            self._see(event, node)
        self._status = status

    def _see(self, event: RoundEvent, seen: NodeOutcome) -> None:
        known = self._nodes.get(seen.node, NodeStatus(seen.node))
        key = seen.organization or known.key
        if key != known.key:  # an organization that was registered again has another node
            self._nodes = {n: status for n, status in self._nodes.items() if status.key != key}
        if seen.outcome in REFUSALS:
            known = replace(known, refusal=seen.outcome, refused_in=event.round)
        self._nodes[seen.node] = replace(
            known,
            key=key,
            stage=event.stage,
            outcome=seen.outcome,
            bytes_up=seen.bytes_up,
            bytes_down=seen.bytes_down,
        )

    def _write(self) -> None:
        self._written = time.monotonic()
        self._status = replace(self._status, updated=time.time(), nodes=tuple(self._nodes.values()))
        self._status.write(self._out)

    # who is told --------------------------------------------------------------------------------------------

    def _tell(self, event: RoundEvent) -> None:
        """The event as log lines; a finished attempt also goes to the tracker."""
        where = {"round": event.round, "attempt": self._status.attempt}
        if event.kind == "round":
            self._exchange_seconds = {}
            self._log.write("round", round=event.round, rounds=event.rounds)
        elif event.kind == "closed":
            self._exchange_seconds[event.stage] = event.seconds
            counts = {"answered": event.joined, "expected": event.expected, "dropped": event.dropped}
            self._log.write("exchange", **where, stage=event.stage, **counts, seconds=round(event.seconds, 3))
            for node in event.nodes:
                if node.outcome != "answered":
                    self._log.write(
                        "lost", **where, stage=event.stage, organization=self._key(node), outcome=node.outcome
                    )
        elif event.kind == "generated":
            self._log.write("generated", **where, seconds=round(event.seconds, 3))
        elif event.kind == "delivered":
            self._log.write("delivered", round=event.round, stored=event.joined, asked=event.expected)
        elif event.kind == "end" and event.record is not None:
            self._tell_end(event.record)
            if self._tracker is not None:
                self._tracker.scalars(event.round, scalars_of(event.record, self._exchange_seconds))

    def _key(self, node: NodeOutcome) -> str | None:
        return node.organization or self._nodes[node.node].key or None

    def _tell_end(self, record: RoundRecord) -> None:
        where = {"round": record.round, "attempt": record.attempt}
        self._log.write(
            "end",
            **where,
            state=record.state,
            aborted_at=record.aborted_at,
            joined=record.joined,
            masked=record.masked,
            unmasked=record.unmasked,
            dropped=sum(record.dropped.values()),
            adapter=record.llm_adapter_sha256,
            **{f"seconds_{part}": round(seconds, 3) for part, seconds in record.seconds.items()},
            **{f"refused_{code}": count for code, count in record.refused.items()},
        )
        for node in self._nodes.values():
            if node.stage:
                included = node.key in record.included
                traffic = {"bytes_up": node.bytes_up, "bytes_down": node.bytes_down}
                self._log.write("organization", **where, organization=node.key or None, included=included, **traffic)

    def _quietly(self, work: Callable[[], None]) -> None:
        """Do it; a failure is logged when it is new."""
        try:
            work()
        except Exception as error:
            complaint = f"{type(error).__name__}: {error}"
            if complaint not in self._complaints:
                self._complaints.add(complaint)
                logger.warning("the run continues, but its status, log or tracker is behind: %s", complaint)


def _at(status: RunStatus, stage: str, answered: int = 0, expected: int = 0) -> RunStatus:
    return replace(status, stage=stage, stage_started=time.time(), answered=answered, expected=expected)


def state_of(error: BaseException | None) -> RunState:
    """How a run ended that ended with ``error``."""
    if error is None:
        return "completed"
    if isinstance(error, RoundAborted):
        return "rejected" if isinstance(error, RoundRejected) else "aborted"
    return "failed" if isinstance(error, Exception) else "stopped"


def tell_all(*listeners: OnEvent) -> OnEvent:
    """One `OnEvent` that calls ``listeners`` in turn."""

    def tell(event: RoundEvent) -> None:
        for listener in listeners:
            listener(event)

    return tell
