"""How messages are framed and signed, and those of stages 1 to 4, each a frozen value with one canonical encoding.

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

from gradtf_fl.secagg.crypto.primitives import (
    SIGNATURE_BYTES,
    TAG_BYTES,
    USAGE_SIGN,
    verify,
)
from gradtf_fl.secagg.crypto.shamir import ELEMENT_BYTES, is_element
from gradtf_fl.secagg.roster import Roster
from gradtf_fl.secagg.violations import (
    MalformedMessage,
    UnknownIdentity,
    WrongRound,
)
from gradtf_fl.secagg.wire.encoding import Reader, Writer

MAGIC = b"GSA1"
SEALED_BYTES = 2 * ELEMENT_BYTES + TAG_BYTES


class MessageKind(IntEnum):
    """First byte after the magic."""

    ADVERT = 1
    DIRECTORY = 2
    SHARES = 3
    DELIVERY = 4
    MASKED = 5
    SURVIVORS = 6
    VOTE = 7
    VOTES = 8
    UNMASKING = 9


def header(kind: MessageKind, commitment: bytes) -> bytes:
    """magic | kind | C: 37 bytes."""
    return MAGIC + bytes([kind]) + commitment


def commitment_of(message: bytes) -> bytes:
    """The C that a message names, for finding its round; `MalformedMessage` where there is none."""
    reader = Reader(message)
    reader.view(len(MAGIC) + 1)
    return reader.fixed(32)


def signed(
    sign: Callable[[bytes], bytes], kind: MessageKind, commitment: bytes, sender: int, body: bytes | Iterable[bytes]
) -> bytes:
    """A client's message with its signature; a large body may come in chunks, hashed as they are made."""
    out, state = io.BytesIO(), hashlib.sha256()
    chunks = (body,) if isinstance(body, bytes) else body
    for chunk in itertools.chain([header(kind, commitment), sender.to_bytes(4, "big")], chunks):
        out.write(chunk)
        state.update(chunk)
    out.write(sign(USAGE_SIGN + state.digest()))
    return out.getvalue()


def open_broadcast(data: bytes, kind: MessageKind, commitment: bytes) -> Reader:
    """A reader at the body of a server's message; `MalformedMessage` or `WrongRound` otherwise."""
    reader = Reader(data)
    if reader.fixed(4) != MAGIC or reader.u8() != kind:
        raise MalformedMessage(f"not a message of kind {kind.name}")
    if reader.fixed(32) != commitment:
        raise WrongRound("the message commits to another round configuration")
    return reader


def open_signed(data: bytes, kind: MessageKind, commitment: bytes, roster: Roster) -> tuple[int, memoryview]:
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
class SealedShares:
    """Ciphertexts of (b share, s share) by peer: recipients in stage 1, sources in stage 2."""

    by_peer: dict[int, bytes]

    def encode(self) -> bytes:
        """Body of the stage 1 message, client -> server."""
        return Writer().by_member(self.by_peer).done()

    @classmethod
    def decode(cls, body: bytes | memoryview) -> SealedShares:
        reader = Reader(body)
        shares = cls(reader.by_member(SEALED_BYTES))
        reader.done()
        return shares


@dataclass(frozen=True)
class Delivery:
    """Stage 2, server -> one client: U2, and the ciphertexts of its neighbours in U2."""

    members: tuple[int, ...]
    sealed: SealedShares

    def encode(self, commitment: bytes) -> bytes:
        out = Writer().fixed(header(MessageKind.DELIVERY, commitment)).indices(self.members)
        return out.by_member(self.sealed.by_peer).done()

    @classmethod
    def decode(cls, data: bytes, commitment: bytes) -> Delivery:
        reader = open_broadcast(data, MessageKind.DELIVERY, commitment)
        delivery = cls(reader.indices(), SealedShares(reader.by_member(SEALED_BYTES)))
        reader.done()
        return delivery


@dataclass(frozen=True)
class Survivors:
    """Stage 3, server -> client: U3, the members whose masked vectors are in the sum."""

    members: tuple[int, ...]

    def encode(self, commitment: bytes) -> bytes:
        return Writer().fixed(header(MessageKind.SURVIVORS, commitment)).indices(self.members).done()

    @classmethod
    def decode(cls, data: bytes, commitment: bytes) -> Survivors:
        reader = open_broadcast(data, MessageKind.SURVIVORS, commitment)
        survivors = cls(reader.indices())
        reader.done()
        return survivors


@dataclass(frozen=True)
class Unmasking:
    """Stage 4, client -> server: exactly ONE share for each owner; which of the two follows from U3 alone."""

    by_owner: dict[int, bytes]

    def encode(self) -> bytes:
        return Writer().by_member(self.by_owner).done()

    @classmethod
    def decode(cls, body: bytes | memoryview) -> Unmasking:
        reader = Reader(body)
        shares = reader.by_member(ELEMENT_BYTES)
        reader.done()
        if not all(is_element(share) for share in shares.values()):
            raise MalformedMessage("a share is no field element")
        return cls(shares)
