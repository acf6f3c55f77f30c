"""A member's answers to the five stages after the first: bytes in, bytes out, its state on disk in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gradtf_fl.flower.member_store import MemberStore, OpenRound
from gradtf_fl.flower.refusals import Refused
from gradtf_fl.round_messages import MalformedFields, PieceRequest, Refusal, Stage, StagePayload
from gradtf_fl.secagg import (
    ClientPolicy,
    Identity,
    Roster,
    SecAggClient,
    TooSmallDifference,
    check_difference,
)

MEMBER_BYTES, OTHER_BYTES = 1 << 10, 1 << 18
"""What a server's message holds at most: for each organization of the roster (an advert takes 370), and besides."""


@dataclass(frozen=True)
class Member:
    """Who answers, by which rules, and where its state lies.

    Attributes:
        identity: its key.
        roster: the organizations that it pins.
        policy: what it allows a round to be.
        store: its state between two messages.
        min_difference: fewest organizations by which the members of two sums may differ, where they differ at all.
        rest_rounds: rounds that it sits out after one for which it masked an update.
    """

    identity: Identity
    roster: Roster
    policy: ClientPolicy
    store: MemberStore
    min_difference: int = 1
    rest_rounds: int = 0

    def check_size(self, data: bytes, what: str) -> None:
        """`MalformedFields` for more than an honest server sends: read, it would take many times its size in memory."""
        most = MEMBER_BYTES * len(self.roster) + OTHER_BYTES
        if len(data) > most:
            raise MalformedFields(f"{what} of {len(data)} bytes: more than {most}")

    def answer(self, stage: Stage, message: StagePayload) -> StagePayload:
        """The answer to a stage of the round that is open, from "share" on.

        Raises:
            Refused, ProtocolViolation, MalformedFields: final for the round, its keys are deleted.
        """
        if message.round < 0 or message.attempt < 0:
            raise MalformedFields("round or attempt is out of range")
        answers: dict[Stage, Callable[[SecAggClient, OpenRound, StagePayload], bytes]] = {
            "share": lambda client, _, message: client.share(message.payload),
            "accept": lambda client, _, message: client.accept(message.payload),
            "mask": self._mask,
            "consistency": self._consistency,
            "unmask": self._unmask,
        }
        with self.store.stage(message.round, message.attempt) as opened:
            self.check_size(message.payload, "a message")
            policy = self.policy if message.round else self.policy.for_beacon()
            client = SecAggClient.from_bytes(opened.protocol, policy, self.roster, self.identity)
            payload = answers[stage](client, opened, message)
            opened.masked = stage == "mask" and message.round > 0
            opened.protocol = client.to_bytes()
        return StagePayload(message.round, message.attempt, payload)

    def _mask(self, client: SecAggClient, opened: OpenRound, message: StagePayload) -> bytes:
        """A piece of the masked update. The first request masks all of it, and the plain one is deleted.

        Where there are several pieces, they are kept until the next stage: any of them may be asked for again, as the
        server does when another member stops between two. A single piece is answered once.
        """
        if not isinstance(message, PieceRequest) or not 0 <= message.piece < client.pieces:
            raise MalformedFields(f"the masked update has pieces 0 to {client.pieces - 1}")
        if opened.vector is not None:
            masked = client.mask(message.payload, opened.vector, opened.weight)
            if client.pieces == 1:
                (only,) = masked
                opened.vector = None
                return only
            for number, piece in enumerate(masked):
                opened.pieces[number] = piece
            opened.vector = None
        if message.piece not in opened.pieces:
            raise Refused(Refusal.STALE, "the update was masked before")
        return opened.pieces[message.piece]

    def _consistency(self, client: SecAggClient, opened: OpenRound, message: StagePayload) -> bytes:
        """A signature over (C, U2, U3), if the sum over U3 reveals no more than earlier ones do.

        From here on the sum counts as opened: the others can do that without this member.
        """
        vote = client.consistency(message.payload)
        opened.pieces.clear()
        if client.config.round == 0:
            opened.drawn += 1
            if opened.drawn > self.policy.trials:
                raise Refused(Refusal.POLICY, "[secagg] trials: this organization has helped to draw as many beacons")
            return vote
        try:
            check_difference(client.sum, opened.earlier(), self.min_difference)
        except TooSmallDifference as error:
            raise Refused(Refusal.POLICY, f"{error} ([policy] min_difference)") from error
        opened.signed = client.sum
        return vote

    def _unmask(self, client: SecAggClient, opened: OpenRound, message: StagePayload) -> bytes:
        """One share for each neighbour; the round's keys are deleted."""
        opened.finished = True
        return client.unmask(message.payload)
