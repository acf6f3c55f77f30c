"""Stages 3 and 4: every member signs its view of the round, and nobody opens a share without enough signatures.

One view for all honest members is what makes "exactly one share for each member" mean one kind of share in the
whole round. Two views would each need V signatures of different honest members, and colluders sign both, so
2 V <= n + c; with 2 Q > n + c at most one view reaches the quorum Q. On a complete graph all signatures are
verified. On a k-regular graph a client verifies a random sample of them, chosen by a key that the server has not
seen: a list of V signatures for a view that fewer than (n + c) / 2 signed passes one client with probability at
most ((n + c) / 2V)^sample, and any of n clients with at most n times that.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from gradtf_fl.secagg.crypto.primitives import SIGNATURE_BYTES, USAGE_SIGN, USAGE_VIEW, digest, verify
from gradtf_fl.secagg.graph import shuffled
from gradtf_fl.secagg.roster import Roster
from gradtf_fl.secagg.violations import BadSignature, InconsistentViews
from gradtf_fl.secagg.wire.encoding import Writer
from gradtf_fl.secagg.wire.messages import MessageKind, header, open_broadcast

VIEW_BITS = 40


@dataclass(frozen=True)
class Votes:
    """Stage 4, server -> client: signatures of members over the stage 3 message each of them sent."""

    by_member: dict[int, bytes]

    def encode(self, commitment: bytes) -> bytes:
        return Writer().fixed(header(MessageKind.VOTES, commitment)).by_member(self.by_member).done()

    @classmethod
    def decode(cls, data: bytes, commitment: bytes) -> Votes:
        reader = open_broadcast(data, MessageKind.VOTES, commitment)
        votes = cls(reader.by_member(SIGNATURE_BYTES))
        reader.done()
        return votes

    def verified(self, members: set[int] | None, commitment: bytes, view: bytes, roster: Roster) -> None:
        """`InconsistentViews` unless the votes of ``members`` (None: all) are signatures over ``view``."""
        for member, signature in self.by_member.items():
            if members is None or member in members:
                try:
                    verify(roster.keys[member], signature, vote_bytes(commitment, member, view))
                except BadSignature as error:
                    text = f"member {member} did not sign this client's view of the round"
                    raise InconsistentViews(text) from error


def sample(votes: Votes, members: int, colluders: int, key: bytes) -> set[int] | None:
    """Members whose votes a client on a k-regular graph verifies; None for all of them.

    Args:
        members: n, organizations that could vote.
        colluders: c of them may sign two views.
        key: 32 bytes that nobody else knows.
    """
    fooled = (members + colluders) / (2 * max(len(votes.by_member), 1))
    if fooled >= 1:
        return None
    size = math.ceil((VIEW_BITS + math.log2(members)) / -math.log2(fooled))
    return None if size >= len(votes.by_member) else set(shuffled(votes.by_member, key)[:size])


def vote_bytes(commitment: bytes, member: int, view: bytes) -> bytes:
    """What ``member`` signs in stage 3 for a view digest [32]: anyone who holds the view can rebuild it."""
    unsigned = header(MessageKind.VOTE, commitment) + member.to_bytes(4, "big") + view
    return USAGE_SIGN + hashlib.sha256(unsigned).digest()


def view_digest(commitment: bytes, adverts_root: bytes, u2: tuple[int, ...], u3: tuple[int, ...]) -> bytes:
    """Digest [32] of one view of the round: C, all adverts, U2 and U3."""
    lists = Writer().indices(u2).indices(u3).done()
    return digest(USAGE_VIEW, commitment, adverts_root, lists)
