"""Who cheated with a ciphertext: evidence that anybody with the roster can check, and that convicts one of two.

A member i seals its shares for a member j and signs each ciphertext, for the adverts that it has seen. Where one does
not open, j complains: it shows the secret K that the two share, with a proof (`agreement_proof`). From i's advert, i's
signed ciphertexts, j's advert and j's signed complaint everybody reaches one verdict:

- i's advert does not prove that i knows its own key: i (j then shows nothing: i's key may be made of another's);
- the proof does not hold: j, which accuses without cause;
- the ciphertext opens under K to two field elements: j;
- it does not: i.

Nothing that the honest need is told. An honest i signs one ciphertext for j, and it opens, so an honest j never shows a
secret that it shares with an honest member. Every other pair holds one that cheats, and K is what that one knows
already: what it opens (the one's shares at the other, and the reverse) counts as in the hands of the colluders, of whom
the threshold allows c. A complaint is bound to C, to i and to j, so in another attempt it proves nothing.
Both sign for the adverts of all members (their hashes come along), so whoever signs two adverts frames nobody with the
one that the other has not seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from gradtf_fl.secagg.crypto import primitives as crypto
from gradtf_fl.secagg.crypto.agreement_proof import AgreementProof, check_possession, verify_proof
from gradtf_fl.secagg.crypto.round_secrets import HeldShares
from gradtf_fl.secagg.crypto.shamir import ELEMENT_BYTES, is_element
from gradtf_fl.secagg.roster import Roster
from gradtf_fl.secagg.violations import BadProof, BadSignature, UndecryptableShare, UnjustEvidence
from gradtf_fl.secagg.wire.adverts import Advert, Directory
from gradtf_fl.secagg.wire.encoding import Reader, Writer
from gradtf_fl.secagg.wire.messages import (
    CIPHERTEXT_BYTES,
    Complaints,
    MessageKind,
    SealedShares,
    open_signed,
    sealed_statement,
)


@dataclass(frozen=True)
class Evidence:
    """Four signed messages of one attempt, about one accused and one accuser, and the adverts that both have seen.

    Attributes:
        commitment: C of the attempt.
        accused_advert: the accused's `Advert`.
        shares: the accused's `SealedShares`.
        accuser_advert: the accuser's `Advert`.
        complaints: the accuser's `Complaints`.
        hashes: SHA-256 of every signed advert of U1, by member.
    """

    commitment: bytes
    accused_advert: bytes
    shares: bytes
    accuser_advert: bytes
    complaints: bytes
    hashes: Mapping[int, bytes]

    def encode(self) -> bytes:
        """Bytes to keep and to pass on."""
        out = Writer().fixed(self.commitment).blob(self.accused_advert).blob(self.shares)
        return out.blob(self.accuser_advert).blob(self.complaints).by_member(self.hashes).done()

    @classmethod
    def decode(cls, data: bytes) -> Evidence:
        """Inverse of `encode`; `MalformedMessage` for anything else."""
        reader = Reader(data)
        commitment, (accused, shares, accuser, complaints) = reader.fixed(32), [reader.blob() for _ in range(4)]
        evidence = cls(commitment, accused, shares, accuser, complaints, reader.by_member(32))
        reader.done()
        return evidence

    def cheater(self, roster: Roster) -> int:
        """Roster index of the one that the evidence convicts: the accused, or whoever accused it without cause.

        Raises:
            UnjustEvidence: the messages are not about one accused and one accuser that have seen these adverts.
            MalformedMessage, WrongRound, UnknownIdentity, BadSignature, BadKey: one is not what it claims to be.
        """
        c = self.commitment
        accused, advert = open_signed(self.accused_advert, MessageKind.ADVERT, c, roster)
        accuser, accusing = open_signed(self.accuser_advert, MessageKind.ADVERT, c, roster)
        source, shares = open_signed(self.shares, MessageKind.SHARES, c, roster)
        target, body = open_signed(self.complaints, MessageKind.COMPLAINTS, c, roster)
        complaints, root = Complaints.decode(body), Directory(dict(self.hashes), ()).root(c)
        sealed, proof = SealedShares.decode(shares).by_peer.get(target), complaints.by_source.get(source)
        if (source, target) != (accused, accuser) or sealed is None or proof is None:
            raise UnjustEvidence("the messages are not about one accused and one accuser")
        seen = {source: self.accused_advert, target: self.accuser_advert}
        if complaints.root != root or any(
            self.hashes.get(member) != hashlib.sha256(message).digest() for member, message in seen.items()
        ):
            raise UnjustEvidence("the accuser complains about other adverts")
        try:
            check_sender(roster, root, source, target, sealed)
        except BadSignature as error:
            raise UnjustEvidence("the accused has not signed that ciphertext for these adverts") from error
        keys, own = Advert.decode(advert), Advert.decode(accusing).encryption_key
        key = keys.encryption_key
        try:
            check_possession(keys.possession, key, possession_context(c, source))
        except BadProof:
            return accused
        try:
            shown = AgreementProof.decode(proof)
            verify_proof(shown, own, key, channel_context(c, source, target))
            opened(shown.secret, c, source, target, sealed)
        except UndecryptableShare:
            return accused
        except BadProof:
            return accuser
        return accuser


def opened(secret: bytes, commitment: bytes, source: int, target: int, sealed: bytes) -> HeldShares:
    """The shares in a ciphertext; `UndecryptableShare` where it does not open to two field elements."""
    plain = crypto.unsealed(secret, commitment, source, target, sealed[:CIPHERTEXT_BYTES])
    shares = HeldShares(plain[:ELEMENT_BYTES], plain[ELEMENT_BYTES:])
    if not (is_element(shares.self_share) and is_element(shares.mask_share)):
        raise UndecryptableShare(f"member {source} sealed something that is not a field element")
    return shares


def check_sender(roster: Roster, root: bytes, source: int, target: int, sealed: bytes) -> None:
    """`BadSignature` unless ``source`` signed for the ciphertext, and for the adverts of ``root``."""
    ciphertext, signature = sealed[:CIPHERTEXT_BYTES], sealed[CIPHERTEXT_BYTES:]
    crypto.verify(roster.keys[source], signature, sealed_statement(root, source, target, ciphertext))


def possession_context(commitment: bytes, member: int) -> bytes:
    """What a member's proof that it knows its own key is bound to."""
    return commitment + crypto.index_bytes(member)


def channel_context(commitment: bytes, source: int, target: int) -> bytes:
    """What the proof of a complaint is bound to."""
    return commitment + crypto.index_bytes(source, target)
