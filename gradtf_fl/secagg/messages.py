"""The messages of the five stages, each a frozen value with one canonical encoding.

Client -> server: magic | kind | C | sender | body | Ed25519 signature over (label, SHA-256 of all before it).
Server -> client: magic | kind | C | body. Nothing in it is believed that a client has not signed or sealed.
Members are roster indices; sets are strictly increasing.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum

from gradtf_fl.secagg.encoding import Reader, Writer, strictly_increasing
from gradtf_fl.secagg.primitives import (
    KEY_BYTES,
    SIGNATURE_BYTES,
    TAG_BYTES,
    USAGE_SIGN,
    USAGE_VIEW,
    check_x25519_public,
    digest,
    verify,
)
from gradtf_fl.secagg.roster import Roster
from gradtf_fl.secagg.shamir import ELEMENT_BYTES, is_element
from gradtf_fl.secagg.violations import (
    DuplicateKey,
    DuplicateMessage,
    MalformedMessage,
    UnknownIdentity,
    WrongRound,
)

MAGIC = b"GSA1"
STAGES = ("advertise", "share", "mask", "consistency", "unmask")
SEALED_BYTES = 2 * ELEMENT_BYTES + TAG_BYTES


class Kind(IntEnum):
    """First byte after the magic."""

    ADVERT = 1
    ADVERTS = 2
    SHARES = 3
    DELIVERY = 4
    MASKED = 5
    SURVIVORS = 6
    VOTE = 7
    VOTES = 8
    UNMASKING = 9


def header(kind: Kind, commitment: bytes) -> bytes:
    """magic | kind | C: 37 bytes."""
    return MAGIC + bytes([kind]) + commitment


def signed(
    sign: Callable[[bytes], bytes], kind: Kind, commitment: bytes, sender: int, body: bytes | Iterable[bytes]
) -> bytes:
    """A client's message with its signature; a large body may come in chunks, hashed as they are made."""
    out, state = io.BytesIO(), hashlib.sha256()
    chunks = (body,) if isinstance(body, bytes) else body
    for chunk in itertools.chain([header(kind, commitment), sender.to_bytes(4, "big")], chunks):
        out.write(chunk)
        state.update(chunk)
    out.write(sign(USAGE_SIGN + state.digest()))
    return out.getvalue()


def open_broadcast(data: bytes, kind: Kind, commitment: bytes) -> Reader:
    """A reader at the body of a server's message; `MalformedMessage` or `WrongRound` otherwise."""
    reader = Reader(data)
    if reader.fixed(4) != MAGIC or reader.u8() != kind:
        raise MalformedMessage(f"not a message of kind {kind.name}")
    if reader.fixed(32) != commitment:
        raise WrongRound("the message commits to another round configuration")
    return reader


def open_signed(data: bytes, kind: Kind, commitment: bytes, roster: Roster) -> tuple[int, memoryview]:
    """(sender, body) of a client's message, its signature verified under the roster's key.

    Raises:
        MalformedMessage, WrongRound, UnknownIdentity, BadSignature.
    """
    reader = open_broadcast(data, kind, commitment)
    sender = reader.u32()
    if sender >= len(roster):
        raise UnknownIdentity(f"member {sender} is not on the roster of {len(roster)}")
    if reader.left < SIGNATURE_BYTES:
        raise MalformedMessage("the message has no signature")
    body = reader.view(reader.left - SIGNATURE_BYTES)
    signature = reader.fixed(SIGNATURE_BYTES)
    hashed = hashlib.sha256(memoryview(data)[:-SIGNATURE_BYTES]).digest()
    verify(roster.keys[sender], signature, USAGE_SIGN + hashed)
    return sender, body


@dataclass(frozen=True)
class Advert:
    """Stage 0, client -> server: the round's public keys.

    Attributes:
        encryption_key, mask_key: X25519 public keys [32].
        contribution: 32 bytes towards the public coin that draws neighbours.
        self_commitment: commitment to b_i [32].
        ledger_head: head of the organization's privacy ledger [32], so that a lost last row is found.
    """

    encryption_key: bytes
    mask_key: bytes
    contribution: bytes
    self_commitment: bytes
    ledger_head: bytes

    def encode(self) -> bytes:
        out = Writer().fixed(self.encryption_key).fixed(self.mask_key).fixed(self.contribution)
        return out.fixed(self.self_commitment).fixed(self.ledger_head).done()

    @classmethod
    def decode(cls, body: bytes | memoryview) -> Advert:
        """`MalformedMessage`; `BadKey` for keys that are not in canonical form."""
        reader = Reader(body)
        advert = cls(*(reader.fixed(KEY_BYTES) for _ in range(5)))
        reader.done()
        check_x25519_public(advert.encryption_key)
        check_x25519_public(advert.mask_key)
        return advert


@dataclass(frozen=True)
class AdvertList:
    """Stage 1, server -> client: the signed adverts of U1, by member."""

    adverts: tuple[bytes, ...]

    def encode(self, commitment: bytes) -> bytes:
        out = Writer().fixed(header(Kind.ADVERTS, commitment)).u32(len(self.adverts))
        for advert in self.adverts:
            out.blob(advert)
        return out.done()

    @classmethod
    def decode(cls, data: bytes, commitment: bytes) -> AdvertList:
        reader = open_broadcast(data, Kind.ADVERTS, commitment)
        adverts = tuple(reader.blob() for _ in range(reader.count(4)))
        reader.done()
        return cls(adverts)

    def verified(self, commitment: bytes, roster: Roster) -> dict[int, Advert]:
        """The adverts by member, in increasing order; every signature and every key is checked.

        Raises:
            MalformedMessage, WrongRound, UnknownIdentity, BadSignature, BadKey.
            DuplicateKey: an X25519 key that is advertised twice, in whatever role.
            DuplicateMessage: two adverts of one member.
        """
        adverts: dict[int, Advert] = {}
        keys: set[bytes] = set()
        for message in self.adverts:
            member, body = open_signed(message, Kind.ADVERT, commitment, roster)
            if member in adverts:
                raise DuplicateMessage(f"member {member} advertises twice")
            adverts[member] = Advert.decode(body)
            keys |= {adverts[member].encryption_key, adverts[member].mask_key}
        if len(keys) != 2 * len(self.adverts):
            raise DuplicateKey("a key is advertised twice")
        strictly_increasing(list(adverts))
        return adverts


@dataclass(frozen=True)
class SealedShares:
    """Ciphertexts of (b share, s share) by peer: recipients in stage 1, sources in stage 2."""

    by_peer: dict[int, bytes]

    def write(self, out: Writer) -> Writer:
        out.u32(len(self.by_peer))
        for peer in sorted(self.by_peer):
            out.u32(peer).fixed(self.by_peer[peer])
        return out

    @classmethod
    def read(cls, reader: Reader) -> SealedShares:
        pairs = [(reader.u32(), reader.fixed(SEALED_BYTES)) for _ in range(reader.count(4 + SEALED_BYTES))]
        strictly_increasing([peer for peer, _ in pairs])
        return cls(dict(pairs))

    def encode(self) -> bytes:
        """Body of the stage 1 message, client -> server."""
        return self.write(Writer()).done()

    @classmethod
    def decode(cls, body: bytes | memoryview) -> SealedShares:
        reader = Reader(body)
        shares = cls.read(reader)
        reader.done()
        return shares


@dataclass(frozen=True)
class Delivery:
    """Stage 2, server -> one client: U2, and the ciphertexts of its neighbours in U2."""

    members: tuple[int, ...]
    sealed: SealedShares

    def encode(self, commitment: bytes) -> bytes:
        out = Writer().fixed(header(Kind.DELIVERY, commitment)).indices(self.members)
        return self.sealed.write(out).done()

    @classmethod
    def decode(cls, data: bytes, commitment: bytes) -> Delivery:
        reader = open_broadcast(data, Kind.DELIVERY, commitment)
        delivery = cls(reader.indices(), SealedShares.read(reader))
        reader.done()
        return delivery


@dataclass(frozen=True)
class Survivors:
    """Stage 3, server -> client: U3, the members whose masked vectors are in the sum."""

    members: tuple[int, ...]

    def encode(self, commitment: bytes) -> bytes:
        return Writer().fixed(header(Kind.SURVIVORS, commitment)).indices(self.members).done()

    @classmethod
    def decode(cls, data: bytes, commitment: bytes) -> Survivors:
        reader = open_broadcast(data, Kind.SURVIVORS, commitment)
        survivors = cls(reader.indices())
        reader.done()
        return survivors


@dataclass(frozen=True)
class Votes:
    """Stage 4, server -> client: signatures of members over the stage 3 message each of them sent."""

    by_member: dict[int, bytes]

    def encode(self, commitment: bytes) -> bytes:
        out = Writer().fixed(header(Kind.VOTES, commitment)).u32(len(self.by_member))
        for member in sorted(self.by_member):
            out.u32(member).fixed(self.by_member[member])
        return out.done()

    @classmethod
    def decode(cls, data: bytes, commitment: bytes) -> Votes:
        reader = open_broadcast(data, Kind.VOTES, commitment)
        count = reader.count(4 + SIGNATURE_BYTES)
        pairs = [(reader.u32(), reader.fixed(SIGNATURE_BYTES)) for _ in range(count)]
        reader.done()
        strictly_increasing([member for member, _ in pairs])
        return cls(dict(pairs))


def vote_bytes(commitment: bytes, member: int, view: bytes) -> bytes:
    """What ``member`` signs in stage 3 for a view digest [32]: anyone who holds the view can rebuild it."""
    unsigned = header(Kind.VOTE, commitment) + member.to_bytes(4, "big") + view
    return USAGE_SIGN + hashlib.sha256(unsigned).digest()


def view_digest(commitment: bytes, adverts_view: bytes, u2: tuple[int, ...], u3: tuple[int, ...]) -> bytes:
    """Digest [32] of one view of the round: C, the broadcast of adverts, U2 and U3."""
    lists = Writer().indices(u2).indices(u3).done()
    return digest(USAGE_VIEW, commitment, adverts_view, lists)


@dataclass(frozen=True)
class Unmasking:
    """Stage 4, client -> server: exactly ONE share for each owner; which of the two follows from U3 alone."""

    by_owner: dict[int, bytes]

    def encode(self) -> bytes:
        out = Writer().u32(len(self.by_owner))
        for owner in sorted(self.by_owner):
            out.u32(owner).fixed(self.by_owner[owner])
        return out.done()

    @classmethod
    def decode(cls, body: bytes | memoryview) -> Unmasking:
        reader = Reader(body)
        pairs = [(reader.u32(), reader.fixed(ELEMENT_BYTES)) for _ in range(reader.count(4 + ELEMENT_BYTES))]
        reader.done()
        strictly_increasing([owner for owner, _ in pairs])
        if not all(is_element(share) for _, share in pairs):
            raise MalformedMessage("a share is no field element")
        return cls(dict(pairs))
