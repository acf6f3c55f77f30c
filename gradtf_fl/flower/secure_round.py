"""The server's side of one round's secure sums over Flower's grid: stage by stage, each with a deadline.

advertise -> share -> accept -> mask -> consistency -> unmask; mask takes an exchange for each piece of the vector.
Whoever is silent, refuses or breaks the protocol at a stage is out of the round from there on; the protocol decides
whether enough remain. A round has one sum, or one for each group of organizations; all groups go through a stage
together.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from gradtf_fl.errors import RoundAborted
from gradtf_fl.flower.exchanges import TTL_MARGIN, Answer, Traffic, exchange, messages_for, patience
from gradtf_fl.flower.groups import groups_needed
from gradtf_fl.flower.records import EventKind, NodeOutcome, OnEvent, RoundEvent, RoundRecord
from gradtf_fl.round_messages import (
    MESSAGE_TYPES,
    METRICS,
    STAGE,
    MalformedFields,
    PieceRequest,
    Refusal,
    Stage,
    StagePayload,
)
from gradtf_fl.secagg import (
    BeaconProof,
    ProtocolViolation,
    Roster,
    RoundConfig,
    SecAggServer,
    SecureSum,
    WrongRound,
    commitment_of,
)

T = TypeVar("T")
logger = logging.getLogger("gradtf.server")
_WHY = {
    Refusal.POLICY: "refuse it, for their policy, budget or rows",
    Refusal.MODEL_HASH: "have another model than the one that the round starts from",
    Refusal.STALE: "answered this round or a later one before",
    Refusal.PROTOCOL: "say that what came is not what the round binds (a Flower app's run_config= too)",
    Refusal.ADAPTER: "refuse the adapter that rides along",
    Refusal.INTERNAL: "failed at home, at what their own logs say",
}
"""Of organizations that refuse a round, by code."""
_BARE = "answered in clear, without secure aggregation: a Flower app needs secagg_mod"
WAITING, ANSWERED, SILENT, UNUSABLE = "waiting", "answered", "silent", "unusable"  # outcomes; or a refusal's code


@dataclass
class RoundLog:
    """What happened so far in a round; complete enough to report an aborted one.

    Attributes:
        answered: stage -> organizations whose answer counted.
        dropped: stage -> organizations lost there.
        refused: refusal code -> organizations.
        included: hex keys of the organizations in each sum.
        cheated: hex keys of the organizations that were shut out for a ciphertext that does not open, or for a false
            complaint about one -> `gradtf_fl.secagg.Evidence` in hex.
        seconds: ``train`` and ``aggregate``.
        organizations: node -> hex key of its advert.
        metrics: node -> what came with its advert in clear, as it came.
        bare: organizations that answered it in clear.
    """

    answered: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    refused: dict[Refusal, int] = field(default_factory=dict)
    included: tuple[tuple[str, ...], ...] = ()
    cheated: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)
    organizations: dict[int, str] = field(default_factory=dict)
    metrics: dict[int, object] = field(default_factory=dict)
    bare: int = 0

    def record(self, config: RoundConfig, state: Literal["completed", "aborted"]) -> RoundRecord:
        """The attempt's record, without what comes after the sum."""
        return RoundRecord(
            round=config.round,
            attempt=config.attempt,
            state=state,
            aborted_at=list(self.answered)[-1] if state == "aborted" and self.answered else "",
            joined=self.answered.get("advertise", 0),
            masked=self.answered.get("mask", 0),
            unmasked=self.answered.get("unmask", 0),
            dropped=dict(self.dropped),
            refused={str(code): count for code, count in self.refused.items()},
            bytes_up_per_client=self.traffic.mean_up(),
            bytes_down_per_client=self.traffic.mean_down(),
            included=tuple(key for keys in self.included for key in keys) if state == "completed" else (),
            cheated=dict(self.cheated),
            opened=self.included,
            sums=self.included if state == "completed" and config.groups > 1 else (),
            seconds=dict(self.seconds),
        )


@dataclass
class _Group:
    """One sum: its protocol, and the identity keys of the nodes still in it."""

    server: SecAggServer
    nodes: dict[int, bytes] = field(default_factory=dict)


class SecureRound:
    """Drives one attempt. `sums` runs all stages and returns the means.

    Args:
        configs: one for each group; they differ in group and graph only.
        message_type: the one type under which all stages travel, each with its name; None gives each its own type.
    """

    def __init__(
        self,
        grid: Grid,
        configs: Sequence[RoundConfig],
        roster: Roster,
        rounds: int,
        on_event: OnEvent | None = None,
        message_type: str | None = None,
    ) -> None:
        self.log = RoundLog()
        self._message_type = message_type
        self._grid = grid
        self._config = configs[0]
        self._groups = {config.commitment: _Group(SecAggServer(config, roster)) for config in configs}
        self._rounds = rounds
        self._on_event = on_event
        self._label = f"{self._config.round}.{self._config.attempt}"

    def sums(self, begin: list[Message]) -> list[SecureSum]:
        """All stages, opened by the ``train.begin`` messages in ``begin``; one sum for each group that got there.

        Raises:
            RoundAborted: fewer than the threshold at some stage (of too many groups); nothing was decoded.
        """
        return self._through(begin, self._decoded)

    def draw(self, begin: list[Message]) -> BeaconProof:
        """All stages of round 0, as `sums`: the proof of the run's beacon."""
        (group,) = self._groups.values()
        return self._through(begin, group.server.close_draw)

    def _through(self, begin: list[Message], end: Callable[[], T]) -> T:
        started = time.monotonic()
        self._stage("advertise", begin, self._receive_advert)
        self.log.seconds["train"] = time.monotonic() - started
        started = time.monotonic()
        try:
            directories = self._close_advertise(len(begin))
            self._exchange("share", self._payloads(directories), lambda server: server.receive_shares)
            deliveries = self._payloads(self._close(SecAggServer.close_share))
            self._exchange("accept", deliveries, lambda server: server.receive_accept)
            accepted = self._close_accept()
            self._collect(accepted)
            survivors = self._payloads(self._close(SecAggServer.close_mask))
            self._exchange("consistency", survivors, lambda server: server.receive_consistency)
            votes = self._payloads(self._close(SecAggServer.close_consistency))
            self._exchange("unmask", votes, lambda server: server.receive_unmask)
            return end()
        finally:
            self.log.seconds["aggregate"] = time.monotonic() - started

    def _close_advertise(self, asked: int) -> dict[int, bytes]:
        joined = sum(len(group.nodes) for group in self._groups.values())
        try:
            return self._close(SecAggServer.close_advertise)
        except RoundAborted as aborted:
            reasons = [f"{count} {_WHY[code]}" for code, count in self.log.refused.items()]
            reasons += [f"{self.log.bare} {_BARE}"] * (self.log.bare > 0)
            if not reasons:
                raise
            first, *rest = reasons
            count, _, what = first.partition(" ")
            why = "; ".join([f"{count} of {asked} organizations {what}", *rest])
            why += f"; {joined} joined and {self._config.quorum} are needed"
            raise RoundAborted("advertise", aborted.counts, why) from aborted

    def _close(self, close: Callable[[SecAggServer], Mapping[bytes, bytes]]) -> dict[int, bytes]:
        """Ends a stage for every group: node -> what it gets next. Groups that fell below their threshold leave."""
        outgoing: dict[int, bytes] = {}
        for commitment, group in list(self._groups.items()):
            try:
                messages = close(group.server)
            except RoundAborted as aborted:
                self._lose(commitment, aborted)
                continue
            outgoing |= {node: messages[key] for node, key in group.nodes.items() if key in messages}
        return outgoing

    def _close_accept(self) -> dict[int, bytes]:
        servers = [group.server for group in self._groups.values()]
        try:
            accepted = self._close(SecAggServer.close_accept)
            for group in self._groups.values():
                for node in group.nodes.keys() - accepted.keys():
                    del group.nodes[node]
                    self.log.dropped["accept"] = self.log.dropped.get("accept", 0) + 1
            return accepted
        finally:
            for server in servers:
                self.log.cheated |= {key.hex(): evidence.encode().hex() for key, evidence in server.cheaters.items()}
            if self.log.cheated:
                names = ", ".join(sorted(key[:16] for key in self.log.cheated))
                logger.warning("round %s: members that cheated, shut out: %s", self._label, names)

    def _collect(self, accepted: Mapping[int, bytes]) -> None:
        """The masked vectors, one exchange for each piece, until each piece holds those of all that are left.

        A piece that a lost member is in is collected again from the others.
        """
        config = self._config
        while groups := [group for group in self._groups.values() if group.server.piece is not None]:
            requests = {
                node: PieceRequest(config.round, config.attempt, accepted[node], group.server.piece or 0)
                for group in groups
                for node in group.nodes
            }
            self._exchange("mask", requests, lambda server: server.receive_masked)
            for group in groups:
                group.server.close_piece()
        self.log.answered["mask"] = sum(len(group.nodes) for group in self._groups.values())

    def _decoded(self) -> list[SecureSum]:
        decoded: list[SecureSum] = []
        for commitment, group in list(self._groups.items()):
            try:
                large = group.server.pieces > 1  # float32 in the sum's own memory: twice as much again is too much
                decoded.append(group.server.close_unmask(np.float32 if large else np.float64))
                self.log.included += (tuple(sorted(key.hex() for key in group.server.included)),)
            except RoundAborted as aborted:
                self._lose(commitment, aborted)
        return decoded

    def _lose(self, commitment: bytes, aborted: RoundAborted) -> None:
        del self._groups[commitment]
        if len(self._groups) < groups_needed(self._config.groups):
            raise aborted

    def _exchange(
        self,
        stage: Stage,
        outgoing: Mapping[int, StagePayload],
        receiver: Callable[[SecAggServer], Callable[[bytes], bytes]],
    ) -> None:
        ttl = patience(self._grid, self._config.deadline_s, len(outgoing)) + TTL_MARGIN
        named = {} if self._message_type is None else {STAGE: stage}
        fields = {node: named | message.to_fields() for node, message in outgoing.items()}
        messages = messages_for(fields, self._message_type or MESSAGE_TYPES[stage], self._label, ttl)

        def take(node: int, payload: bytes) -> None:
            group = next(group for group in self._groups.values() if node in group.nodes)
            if receiver(group.server)(payload) != group.nodes[node]:
                raise ProtocolViolation("an organization answered in another's name")

        self._stage(stage, messages, take)

    def _payloads(self, outgoing: Mapping[int, bytes]) -> dict[int, StagePayload]:
        config = self._config
        return {node: StagePayload(config.round, config.attempt, payload) for node, payload in outgoing.items()}

    def _receive_advert(self, node: int, payload: bytes) -> None:
        group = self._groups.get(commitment_of(payload))
        if group is None:
            raise WrongRound("an advert for none of this round's groups")
        key = group.nodes[node] = group.server.receive_advert(payload)
        self.log.organizations[node] = key.hex()

    def _stage(self, stage: Stage, messages: list[Message], take: Callable[[int, bytes], None]) -> None:
        """Exchange one stage; nodes without a usable answer leave their group."""
        asked = [message.metadata.dst_node_id for message in messages]
        outcomes = dict.fromkeys(asked, WAITING)
        started, good = time.monotonic(), set[int]()

        def tell(kind: EventKind, nodes: Iterable[int]) -> None:
            self._tell(kind, stage, len(good), len(asked), started, [(node, outcomes[node]) for node in nodes])

        def on_answer(answer: Answer) -> None:
            if answer.refusal is not None:
                outcomes[answer.node] = str(answer.refusal)
                self.log.refused[answer.refusal] = self.log.refused.get(answer.refusal, 0) + 1
            elif answer.fields is not None and self._usable(answer, take):
                outcomes[answer.node] = ANSWERED
                good.add(answer.node)
                if METRICS in answer.fields:
                    self.log.metrics[answer.node] = answer.fields[METRICS]
            else:
                outcomes[answer.node] = UNUSABLE
                self.log.bare += answer.bare
            tell("reply", [answer.node])

        tell("stage", asked)
        wait = patience(self._grid, self._config.deadline_s, len(asked))
        exchange(self._grid, messages, wait, on_answer, self.log.traffic)
        lost = [node for node in asked if node not in good]
        for group in self._groups.values():
            for node in lost:
                group.nodes.pop(node, None)
        self.log.answered[stage] = len(good)
        if lost:
            self.log.dropped[stage] = self.log.dropped.get(stage, 0) + len(lost)
        outcomes = {node: SILENT if outcome == WAITING else outcome for node, outcome in outcomes.items()}
        tell("closed", asked)

    def _usable(self, answer: Answer, take: Callable[[int, bytes], None]) -> bool:
        try:
            message = StagePayload.from_fields(answer.fields or {})
            if (message.round, message.attempt) != (self._config.round, self._config.attempt):
                return False
            take(answer.node, message.payload)
        except (MalformedFields, ProtocolViolation):
            return False
        return True

    def _tell(
        self,
        kind: EventKind,
        stage: str,
        joined: int,
        expected: int,
        started: float,
        nodes: Iterable[tuple[int, str]],
    ) -> None:
        if self._on_event is None:
            return
        traffic, keys = self.log.traffic, self.log.organizations
        self._on_event(
            RoundEvent(
                kind,
                self._config.round,
                self._rounds,
                stage,
                joined=joined,
                expected=expected,
                dropped=sum(self.log.dropped.values()),
                seconds=time.monotonic() - started,
                attempt=self._config.attempt,
                nodes=tuple(
                    NodeOutcome(n, keys.get(n, ""), outcome, traffic.up.get(n, 0), traffic.down.get(n, 0))
                    for n, outcome in nodes
                ),
            )
        )
