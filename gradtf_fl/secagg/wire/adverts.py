"""Stages 0 and 1: each member's public keys for the round, and the directory of everybody's adverts.

A member receives the hash of every advert, from which the graph is drawn, and in full only those of its
neighbours: 36 bytes for each member, about 330 for each neighbour. Only neighbours' signatures are verified: what
the server could gain by inventing the others is a choice of graphs, and `degree.GRINDING_BITS` accounts for that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from gradtf_fl.secagg.crypto.agreement_proof import POSSESSION_BYTES
from gradtf_fl.secagg.crypto.primitives import KEY_BYTES, USAGE_ADVERTS, check_x25519_public, digest
from gradtf_fl.secagg.roster import Roster
from gradtf_fl.secagg.violations import AdvertMismatch, DuplicateKey, DuplicateMessage, IncompleteShares
from gradtf_fl.secagg.wire.encoding import Reader, Writer
from gradtf_fl.secagg.wire.messages import MessageKind, header, open_broadcast, open_signed

_HASH_BYTES = 32


@dataclass(frozen=True)
class Advert:
    """Stage 0, client -> server: the round's public keys.

    Attributes:
        encryption_key, mask_key: X25519 public keys [32].
        contribution: 32 bytes towards the public coin that draws neighbours.
        self_commitment: commitment to b_i [32].
        ledger_head: head of the organization's privacy ledger [32], so that a lost last row is found.
        possession: proof that the member knows its encryption key [64]; looked at where a ciphertext does not open.
    """

    encryption_key: bytes
    mask_key: bytes
    contribution: bytes
    self_commitment: bytes
    ledger_head: bytes
    possession: bytes

    def encode(self) -> bytes:
        out = Writer().fixed(self.encryption_key).fixed(self.mask_key).fixed(self.contribution)
        return out.fixed(self.self_commitment).fixed(self.ledger_head).fixed(self.possession).done()

    @classmethod
    def decode(cls, body: bytes | memoryview) -> Advert:
        """`MalformedMessage`; `BadKey` for keys that are not in canonical form."""
        reader = Reader(body)
        encryption, mask, contribution, committed, head = (reader.fixed(KEY_BYTES) for _ in range(5))
        advert = cls(encryption, mask, contribution, committed, head, reader.fixed(POSSESSION_BYTES))
        reader.done()
        check_x25519_public(advert.encryption_key)
        check_x25519_public(advert.mask_key)
        return advert


@dataclass(frozen=True)
class Directory:
    """Stage 1, server -> one client: U1 as (member -> SHA-256 of its signed advert), and its neighbours' adverts.

    Attributes:
        hashes: by member, in increasing order.
        adverts: signed messages of the recipient's neighbours, in increasing order of member.
    """

    hashes: dict[int, bytes]
    adverts: tuple[bytes, ...]

    def encode(self, commitment: bytes) -> bytes:
        out = Writer().fixed(header(MessageKind.DIRECTORY, commitment)).by_member(self.hashes).u32(len(self.adverts))
        for advert in self.adverts:
            out.blob(advert)
        return out.done()

    @classmethod
    def decode(cls, data: bytes, commitment: bytes) -> Directory:
        reader = open_broadcast(data, MessageKind.DIRECTORY, commitment)
        hashes = reader.by_member(_HASH_BYTES)
        adverts = tuple(reader.blob() for _ in range(reader.count(4)))
        reader.done()
        return cls(hashes, adverts)

    def root(self, commitment: bytes) -> bytes:
        """Digest [32] of C and all adverts' hashes: the view of U1, and what the graph is drawn from."""
        return digest(USAGE_ADVERTS, commitment, Writer().by_member(self.hashes).done())

    def verified(
        self, neighbours: Sequence[int], own_keys: set[bytes], commitment: bytes, roster: Roster
    ) -> dict[int, Advert]:
        """The adverts of exactly ``neighbours``, by member; every signature and every key is checked.

        Args:
            own_keys: the recipient's two X25519 keys, which nobody else may advertise.

        Raises:
            MalformedMessage, WrongRound, UnknownIdentity, BadSignature, BadKey.
            AdvertMismatch: an advert that is not the one in the directory.
            DuplicateKey: an X25519 key that is advertised twice, in whatever role.
            DuplicateMessage: two adverts of one member. IncompleteShares: others than the neighbours'.
        """
        adverts: dict[int, Advert] = {}
        keys = set(own_keys)
        for message in self.adverts:
            member, body = open_signed(message, MessageKind.ADVERT, commitment, roster)
            if member in adverts:
                raise DuplicateMessage(f"member {member} advertises twice")
            if hashlib.sha256(message).digest() != self.hashes.get(member):
                raise AdvertMismatch(f"the advert of member {member} is not the one in the directory")
            adverts[member] = Advert.decode(body)
            keys |= {adverts[member].encryption_key, adverts[member].mask_key}
        if len(keys) != 2 * len(self.adverts) + len(own_keys):
            raise DuplicateKey("a key is advertised twice")
        if tuple(adverts) != tuple(neighbours):
            raise IncompleteShares("adverts must come from exactly the neighbours in U1")
        return adverts
