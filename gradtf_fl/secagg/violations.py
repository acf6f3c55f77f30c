"""Every way in which a peer can break the protocol, one named exception each.

All of them are `ValueError`s raised on untrusted input: whoever drives the state machines catches
`ProtocolViolation`, treats the sender as dropped (server) or leaves the round (client).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gradtf_fl.errors import GradtfError, RoundAborted


class ProtocolViolation(GradtfError, ValueError):
    """A message, a configuration or a call that the protocol does not allow."""


class MalformedMessage(ProtocolViolation):
    """Bytes that are not the canonical encoding of the expected message."""


class WrongRound(ProtocolViolation):
    """A message that commits to another round configuration than the one in progress."""


class UnknownIdentity(ProtocolViolation):
    """A sender, recipient or list member outside the pinned roster (or outside the set allowed here)."""


class BadSignature(ProtocolViolation):
    """An Ed25519 signature that does not verify under the roster's key."""


class BadKey(ProtocolViolation):
    """An X25519 public key that is not canonical or has low order."""


class BadProof(ProtocolViolation):
    """A complaint whose proof does not show the secret that two advertised keys agree on."""


class UnjustEvidence(ProtocolViolation):
    """Evidence against a member that is not about one round, one accused and one accuser on the roster."""


class DuplicateKey(ProtocolViolation):
    """The same X25519 key advertised twice, by one organization or by two."""


class AdvertMismatch(ProtocolViolation):
    """An advert, validly signed, that is not the one whose hash is in the directory."""


class DuplicateMessage(ProtocolViolation):
    """A second message of one sender in one stage."""


class LateMessage(ProtocolViolation):
    """A message for a stage that is already closed; it is discarded and never answered."""


class StageOrder(ProtocolViolation):
    """A stage called twice, too early, or after the round has ended for this party."""


class PolicyViolation(ProtocolViolation):
    """A round configuration that the organization's own policy forbids. Lists ALL reasons."""

    def __init__(self, reasons: str | Sequence[str]) -> None:
        self.reasons = (reasons,) if isinstance(reasons, str) else tuple(reasons)
        super().__init__("; ".join(self.reasons))


class StaleRound(PolicyViolation):
    """A (round, attempt) that is not above the last one this organization took part in."""


class TooSmallDifference(PolicyViolation):
    """A sum whose members differ from an earlier sum's by so few that the difference would show them."""


class WrongBeacon(PolicyViolation):
    """A sample drawn by another beacon than the one that the run's members have drawn, or a proof that proves none."""


class RosterMismatch(PolicyViolation):
    """A round for another roster than the one pinned in the organization's own file."""


class TooFewMembers(PolicyViolation):
    """Fewer organizations left than the policy's n_min or the round's quorum: the sum would hide too little."""


class TooFewNeighbours(ProtocolViolation):
    """Fewer than `threshold` members left in this client's neighbourhood (itself included)."""


class IncompleteShares(ProtocolViolation):
    """Shares or ciphertexts for other parties than exactly the expected ones."""


class UndecryptableShare(ProtocolViolation):
    """A share ciphertext that does not authenticate, or that holds no field element."""


class SurvivorsNotSubset(ProtocolViolation):
    """A member list that is not contained in the list of the stage before."""


class OwnKeyMissing(ProtocolViolation):
    """A member list, or an advert list, without this client's own entry as it was sent."""


class InconsistentViews(ProtocolViolation):
    """Signed views of (U1, U2, U3) that differ from this client's own, or fewer than `threshold` of them."""


class UpdateRejected(GradtfError, ValueError):
    """The organization's OWN vector or weight cannot be encoded (shape, non-finite, weight): local."""


class ReconstructionMismatch(RoundAborted):
    """Reconstructed secret of one organization disagrees with what it advertised; names the share set.

    Attributes:
        owner: roster index of the organization whose secret was rebuilt.
        holders: roster indices of the organizations whose shares were used.
    """

    def __init__(self, counts: Mapping[str, int], owner: int, holders: Sequence[int], what: str) -> None:
        self.owner = owner
        self.holders = tuple(holders)
        super().__init__(
            "unmask",
            counts,
            f"{what} of member {owner} rebuilt from shares of {list(holders)} is not the advertised one",
        )
