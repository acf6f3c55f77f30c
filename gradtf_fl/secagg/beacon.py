"""A beacon that no party can steer, drawn once a run by the whole roster, and the proof that every organization checks.

Round 0 is an ordinary round of secure aggregation over one zero. Its beacon is a hash of the self-mask secrets b_j of
all members in its sum. A member commits to b_j in its signed advert, before anybody knows another one's. More than
(N + c) / 2 members sign the view, and with it whose b_j count, before an honest one hands out a share of any. From then
on b_j can be rebuilt without its owner. So nobody speaks last: who withholds, or lies, changes no beacon. What is left
to a server is to drop the whole attempt once it has seen the beacon, and to draw another one. That is a trial, and each
organization counts how many it helps with (`ClientPolicy.trials`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from gradtf_fl.secagg.crypto.primitives import KEY_BYTES, SIGNATURE_BYTES, USAGE_BEACON, commit, digest
from gradtf_fl.secagg.degree import Topology
from gradtf_fl.secagg.policy import ClientPolicy
from gradtf_fl.secagg.roster import Roster
from gradtf_fl.secagg.round_config import RoundConfig
from gradtf_fl.secagg.violations import (
    AdvertMismatch,
    IncompleteShares,
    InconsistentViews,
    MalformedMessage,
    SurvivorsNotSubset,
    WrongBeacon,
)
from gradtf_fl.secagg.wire.adverts import Advert, Directory
from gradtf_fl.secagg.wire.encoding import Reader, Writer
from gradtf_fl.secagg.wire.messages import MessageKind, open_signed
from gradtf_fl.secagg.wire.votes import Votes, view_digest

_MAGIC = b"GSAB"
_CLIP = 1e-6
_MOST = 2**32 - 1


@dataclass(frozen=True)
class SamplePlan:
    """What a run's beacon will draw, fixed by round 0's ``dp`` before anybody knows the beacon.

    Attributes:
        sample: organizations a round.
        groups: groups that they are split into.
    """

    sample: int
    groups: int = 1

    def canonical(self) -> str:
        """Canonical JSON: sorted keys, no blanks."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_canonical(cls, text: str) -> SamplePlan:
        """Inverse of `canonical`; `MalformedMessage` for anything else."""
        try:
            plan = cls(**json.loads(text))
            sound = all(type(value) is int and 1 <= value <= _MOST for value in asdict(plan).values())
            sound = sound and plan.canonical() == text
        except (TypeError, ValueError, RecursionError) as error:
            raise MalformedMessage("the plan of the samples cannot be read") from error
        if not sound:
            raise MalformedMessage("the plan of the samples is not two whole numbers in canonical form")
        return plan


def draw_config(
    roster: Roster, plan: SamplePlan, shape: Topology, *, run_id: str, attempt: int, nonce: bytes, deadline_s: float
) -> RoundConfig:
    """Round 0 of a run: the whole roster, one coordinate, nothing trained.

    Args:
        shape: `topology` of the whole roster.
        nonce: 32 fresh bytes.
    """
    return RoundConfig(
        run_id=run_id,
        round=0,
        attempt=attempt,
        nonce=nonce,
        model_hash=bytes(KEY_BYTES),
        dim=1,
        bits=24,
        clip=_CLIP,
        dp=plan.canonical(),
        roster_hash=roster.hash,
        degree=shape.degree,
        threshold=shape.threshold,
        quorum=shape.quorum,
        deadline_s=deadline_s,
    )


def check_draw(config: RoundConfig, roster: Roster, policy: ClientPolicy) -> SamplePlan:
    """The plan of the samples, where ``config`` is a round 0 in which ``policy`` lets an organization take part.

    Raises:
        WrongBeacon: a round other than round 0. MalformedMessage: a malformed plan.
        RosterMismatch, TooFewMembers, PolicyViolation.
    """
    bare = (config.round, config.sample, config.groups, config.dim) == (0, 0, 1, 1)
    if not bare or config.model_hash != bytes(KEY_BYTES) or config.noise_multiplier:
        raise WrongBeacon("a beacon is drawn by the whole roster in a round 0 over one zero")
    policy.for_beacon().check(config, roster)
    return SamplePlan.from_canonical(config.dp)


@dataclass(frozen=True)
class BeaconProof:
    """Everything from which anybody with the roster computes a run's beacon. About 470 bytes for each member.

    Attributes:
        config: of round 0.
        hashes: SHA-256 of every signed advert of U1, by member.
        u2: members that were accepted.
        adverts: signed adverts of U3, in increasing order of member.
        votes: signatures over (C, U1, U2, U3), by member.
        secrets: b_j [32 bytes] of U3, by member.
    """

    config: RoundConfig
    hashes: Mapping[int, bytes]
    u2: tuple[int, ...]
    adverts: tuple[bytes, ...]
    votes: Mapping[int, bytes]
    secrets: Mapping[int, bytes]

    def encode(self) -> bytes:
        """Canonical bytes."""
        out = Writer().fixed(_MAGIC).blob(self.config.encode()).by_member(self.hashes).indices(self.u2)
        out.u32(len(self.adverts))
        for advert in self.adverts:
            out.blob(advert)
        return out.by_member(self.votes).by_member(self.secrets).done()

    @classmethod
    def decode(cls, data: bytes) -> BeaconProof:
        """Inverse of `encode`; `MalformedMessage` for anything else."""
        reader = Reader(data)
        if reader.fixed(4) != _MAGIC:
            raise MalformedMessage("not the proof of a beacon")
        config, hashes, u2 = RoundConfig.decode(reader.blob()), reader.by_member(KEY_BYTES), reader.indices()
        adverts = tuple(reader.blob() for _ in range(reader.count(4)))
        proof = cls(config, hashes, u2, adverts, reader.by_member(SIGNATURE_BYTES), reader.by_member(KEY_BYTES))
        reader.done()
        return proof

    @property
    def plan(self) -> SamplePlan:
        """What the beacon draws; `MalformedMessage` where round 0 does not say."""
        return SamplePlan.from_canonical(self.config.dp)

    def verified(self, roster: Roster, policy: ClientPolicy) -> bytes:
        """The beacon [32 bytes], where the proof satisfies ``policy``.

        Raises:
            WrongBeacon: not a round 0, or a secret that does not open its owner's commitment.
            RosterMismatch, TooFewMembers, PolicyViolation: a round in which this organization takes no part, or too few
                members whose secrets count: one of them must be honest.
            SurvivorsNotSubset, IncompleteShares, AdvertMismatch: lists or adverts that do not belong together.
            InconsistentViews: a vote over another view, or fewer than the quorum.
            MalformedMessage, WrongRound, UnknownIdentity, BadSignature, BadKey.
        """
        check_draw(self.config, roster, policy)
        c, u3 = self.config.commitment, tuple(sorted(self.secrets))
        if not (set(u3) <= set(self.u2) <= self.hashes.keys() and self.votes.keys() <= set(u3)):
            raise SurvivorsNotSubset("the proof's U3 is not within U2, U2 not within U1, or the voters not within U3")
        policy.check_members(len(u3), self.config.quorum)
        self._check_secrets(c, u3, roster)
        view = view_digest(c, Directory(dict(self.hashes), ()).root(c), self.u2, u3)
        if len(self.votes) < self.config.quorum:
            raise InconsistentViews(f"{len(self.votes)} signed views, {self.config.quorum} needed")
        Votes(dict(self.votes)).verified(None, c, view, roster)
        return digest(USAGE_BEACON, c, view, Writer().by_member(self.secrets).done())

    def _check_secrets(self, commitment: bytes, u3: tuple[int, ...], roster: Roster) -> None:
        if len(self.adverts) != len(u3):
            raise IncompleteShares("adverts must come from exactly the members of U3")
        for member, message in zip(u3, self.adverts, strict=True):
            sender, body = open_signed(message, MessageKind.ADVERT, commitment, roster)
            if sender != member:
                raise IncompleteShares("adverts must come from exactly the members of U3")
            if hashlib.sha256(message).digest() != self.hashes[member]:
                raise AdvertMismatch(f"the advert of member {member} is not the one that was voted on")
            if commit(self.secrets[member], commitment, member) != Advert.decode(body).self_commitment:
                raise WrongBeacon(f"the secret of member {member} is not the one that it committed to")
