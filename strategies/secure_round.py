"""The server's side of one secure sum over Flower's grid: stage by stage, each with a deadline.

advertise -> share -> mask -> consistency -> unmask. Whoever is silent, refuses or breaks the protocol at a
stage is out of the round from there on; the protocol decides whether enough remain.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from gradtf_fl.errors import BudgetExhausted, RoundAborted
from gradtf_fl.round_messages import MESSAGE_TYPES, Fields, MalformedMessage, Refusal, StagePayload
from gradtf_fl.secagg import ProtocolViolation, Roster, RoundConfig, SecAggServer, SecureSum
from strategies.exchange import TTL_MARGIN, Answer, Traffic, exchange, messages_for, patience
from strategies.records import EventKind, OnEvent, RoundEvent


@dataclass
class RoundLog:
    """What happened so far in a round; complete enough to report an aborted one.

    Attributes:
        answered: stage -> organizations whose answer counted. dropped: stage -> organizations lost there.
        refused: refusal code -> organizations. included: hex keys of the organizations in the sum.
        seconds: ``train`` and ``aggregate``.
    """

    answered: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    included: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)


class SecureRound:
    """Drives one attempt. `sum` runs all stages and returns the mean."""

    def __init__(
        self,
        grid: Grid,
        config: RoundConfig,
        roster: Roster,
        rounds: int,
        on_event: OnEvent | None = None,
    ) -> None:
        self.log = RoundLog()
        self._grid = grid
        self._config = config
        self._server = SecAggServer(config, roster)
        self._rounds = rounds
        self._on_event = on_event
        self._key_of: dict[int, bytes] = {}
        self._group = f"{config.round}.{config.attempt}"

    def sum(self, begin: list[Message]) -> SecureSum:
        """All stages, opened by the ``train.begin`` messages in ``begin``.

        Raises:
            RoundAborted: fewer than the threshold at some stage; nothing was decoded.
            BudgetExhausted: so many refused for their budget that the threshold could not be reached.
        """
        started = time.monotonic()
        self._stage("advertise", begin, self._receive_advert)
        self.log.seconds["train"] = time.monotonic() - started
        started = time.monotonic()
        try:
            adverts = self._close_advertise(len(begin))
            self._broadcast("share", adverts, self._server.receive_shares)
            shares = self._server.close_share()
            outgoing = {node: self._fields(shares[key]) for node, key in self._key_of.items() if key in shares}
            self._stage("mask", self._messages("mask", outgoing), self._receiver(self._server.receive_masked))
            survivors = self._server.close_mask()
            self.log.included = tuple(sorted(key.hex() for key in self._key_of.values()))
            self._broadcast("consistency", survivors, self._server.receive_consistency)
            views = self._server.close_consistency()
            self._broadcast("unmask", views, self._server.receive_unmask)
            return self._server.close_unmask()
        finally:
            self.log.seconds["aggregate"] = time.monotonic() - started

    def _close_advertise(self, asked: int) -> bytes:
        try:
            return self._server.close_advertise()
        except RoundAborted as aborted:
            if broke := self.log.refused.get(Refusal.BUDGET, 0):
                raise BudgetExhausted(
                    f"round {self._config.round}: {broke} of {asked} organizations refuse it for their "
                    f"privacy budget; {len(self._key_of)} joined and {self._config.threshold} are needed"
                ) from aborted
            raise

    def _broadcast(self, stage: str, payload: bytes, receive: Callable[[bytes], bytes]) -> None:
        outgoing = {node: self._fields(payload) for node in self._key_of}
        self._stage(stage, self._messages(stage, outgoing), self._receiver(receive))

    def _fields(self, payload: bytes) -> Fields:
        return StagePayload(self._config.round, self._config.attempt, payload).to_fields()

    def _messages(self, stage: str, outgoing: Mapping[int, Fields]) -> list[Message]:
        ttl = patience(self._grid, self._config.deadline_s, len(outgoing)) + TTL_MARGIN
        return messages_for(outgoing, MESSAGE_TYPES[stage], self._group, ttl)

    def _receive_advert(self, node: int, payload: bytes) -> None:
        self._key_of[node] = self._server.receive_advert(payload)

    def _receiver(self, receive: Callable[[bytes], bytes]) -> Callable[[int, bytes], None]:
        def take(node: int, payload: bytes) -> None:
            if receive(payload) != self._key_of[node]:
                raise ProtocolViolation("an organization answered in another's name")

        return take

    def _stage(self, stage: str, messages: list[Message], take: Callable[[int, bytes], None]) -> None:
        """Exchange one stage; nodes without a usable answer leave ``_key_of``."""
        asked = [message.metadata.dst_node_id for message in messages]
        started, good = time.monotonic(), set[int]()
        self._tell("stage", stage, 0, len(asked), started)

        def on_answer(answer: Answer) -> None:
            if answer.refusal is not None:
                self.log.refused[answer.refusal] = self.log.refused.get(answer.refusal, 0) + 1
            elif answer.fields is not None and self._usable(answer, take):
                good.add(answer.node)
            self._tell("reply", stage, len(good), len(asked), started)

        wait = patience(self._grid, self._config.deadline_s, len(asked))
        exchange(self._grid, messages, wait, on_answer, self.log.traffic)
        lost = [node for node in asked if node not in good]
        for node in lost:
            self._key_of.pop(node, None)
        self.log.answered[stage] = len(good)
        if lost:
            self.log.dropped[stage] = len(lost)

    def _usable(self, answer: Answer, take: Callable[[int, bytes], None]) -> bool:
        try:
            message = StagePayload.from_fields(answer.fields or {})
            if (message.round, message.attempt) != (self._config.round, self._config.attempt):
                return False
            take(answer.node, message.payload)
        except (MalformedMessage, ProtocolViolation):
            return False
        return True

    def _tell(self, kind: EventKind, stage: str, joined: int, expected: int, started: float) -> None:
        if self._on_event is not None:
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
                )
            )
