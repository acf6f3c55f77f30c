"""How messages are framed and signed, and those of stages 1 to 5, each a frozen value with one canonical encoding.

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
from typing import ClassVar, TypeVar

from gradtf_fl.secagg.crypto.agreement_proof import PROOF_BYTES
from gradtf_fl.secagg.crypto.primitives import (
    SIGNATURE_BYTES,
    TAG_BYTES,
    USAGE_SEALED,
    USAGE_SIGN,
    digest,
    index_bytes,
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
CIPHERTEXT_BYTES = 2 * ELEMENT_BYTES + TAG_BYTES
SEALED_BYTES = CIPHERTEXT_BYTES + SIGNATURE_BYTES


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
    COMPLAINTS = 10
    ACCEPTED = 11


def header(kind: MessageKind, commitment: bytes) -> bytes:
    """magic | kind | C: 37 bytes."""
    return MAGIC + bytes([kind]) + commitment


def commitment_of(message: bytes) -> bytes:
    """The C that a message names, for finding its round; `MalformedMessage` without one."""
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


def piece_of(body: memoryview) -> tuple[int, memoryview]:
    """(number, packed words) from the body of a masked piece."""
    reader = Reader(body)
    return reader.u32(), reader.view(reader.left)


def sealed_statement(root: bytes, source: int, target: int, ciphertext: bytes) -> bytes:
    """What ``source`` signs for one ciphertext: for the adverts that it has seen (`Directory.root`, with C in it)."""
    return USAGE_SEALED + digest(USAGE_SEALED, root, index_bytes(source, target), ciphertext)


@dataclass(frozen=True)
class SealedShares:
    """Ciphertexts of (b share, s share), each signed by its sender, by peer: recipients in stage 1, sources in 2.

    A signature for each: a recipient whose ciphertext does not open shows the secret it shares with the sender only
    where the sender signed for that very ciphertext. A server that alters one learns nothing.
    """

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
    """Stage 2, server -> one client: U2, and the signed ciphertexts of its neighbours in U2."""

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
class Complaints:
    """Stage 2, client -> server: by source, proof of the secret under which its ciphertext does not open.

    ``root``: of the adverts that they are about (`Directory.root`).
    """

    root: bytes
    by_source: dict[int, bytes]

    def encode(self) -> bytes:
        return Writer().fixed(self.root).by_member(self.by_source).done()

    @classmethod
    def decode(cls, body: bytes | memoryview) -> Complaints:
        reader = Reader(body)
        root = reader.fixed(32)
        complaints = cls(root, reader.by_member(PROOF_BYTES))
        reader.done()
        return complaints


_Members = TypeVar("_Members", bound="MemberList")


@dataclass(frozen=True)
class MemberList:
    """Server -> client: the members that are left."""

    KIND: ClassVar[MessageKind]
    members: tuple[int, ...]

    def encode(self, commitment: bytes) -> bytes:
        return Writer().fixed(header(self.KIND, commitment)).indices(self.members).done()

    @classmethod
    def decode(cls: type[_Members], data: bytes, commitment: bytes) -> _Members:
        reader = open_broadcast(data, cls.KIND, commitment)
        found = cls(reader.indices())
        reader.done()
        return found


class Accepted(MemberList):
    """Stage 3: U2 without whoever was silent, or was shown to cheat. Only these are masked with."""

    KIND = MessageKind.ACCEPTED


class Survivors(MemberList):
    """Stage 4: U3, the members whose masked vectors are in the sum."""

    KIND = MessageKind.SURVIVORS


@dataclass(frozen=True)
class Unmasking:
    """Stage 5, client -> server: exactly ONE share for each owner; which of the two follows from U3 alone."""

    by_owner: dict[int, bytes]

    def encode(self) -> bytes:
        return Writer().by_member(self.by_owner).done()

    @classmethod
    def decode(cls, body: bytes | memoryview) -> Unmasking:
        reader = Reader(body)
        shares = reader.by_member(ELEMENT_BYTES)
        reader.done()
        if not all(is_element(share) for share in shares.values()):
            raise MalformedMessage("a share is not a field element")
        return cls(shares)
