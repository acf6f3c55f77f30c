"""What a lying server or member makes: messages that are well formed, and signed where the liar has the key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from gradtf_fl.secagg.crypto import primitives as crypto
from gradtf_fl.secagg.graph import Graph
from gradtf_fl.secagg.wire.adverts import Advert, Directory
from gradtf_fl.secagg.wire.messages import (
    Accepted,
    Delivery,
    MessageKind,
    SealedShares,
    Survivors,
    open_signed,
    sealed_statement,
    signed,
)
from gradtf_fl.secagg.wire.votes import Votes

from .federation import Federation

BODY = slice(41, -64)
"""The body in a client's message: behind magic, kind, C and sender, before the signature."""


def adverts_of(federation: Federation) -> dict[int, bytes]:
    return {i: federation.answer("advertise", i) for i in federation.members}


def opened(federation: Federation, message: bytes) -> Advert:
    return Advert.decode(open_signed(message, MessageKind.ADVERT, federation.commitment, federation.roster)[1])


def lie(federation: Federation, i: int, kind: MessageKind, body: bytes) -> bytes:
    """Member i lies: the signature is right."""
    return signed(federation.identities[i].sign, kind, federation.commitment, i, body)


def hashes_of(adverts: Mapping[int, bytes]) -> dict[int, bytes]:
    return {i: hashlib.sha256(adverts[i]).digest() for i in sorted(adverts)}


def directory(
    federation: Federation, adverts: Mapping[int, bytes], recipient: int, hashes: Mapping[int, bytes] | None = None
) -> bytes:
    """The directory of ``adverts`` for ``recipient``, honest but for what it is made of."""
    hashes = dict(hashes_of(adverts) if hashes is None else hashes)
    root = Directory(hashes, ()).root(federation.commitment)
    around = Graph(tuple(hashes), federation.config.degree, root).neighbours(recipient)
    shown = tuple(adverts[j] for j in around if j in adverts)
    return Directory(hashes, shown).encode(federation.commitment)


def delivery(federation: Federation, members: tuple[int, ...], sealed: dict[int, bytes]) -> bytes:
    return Delivery(members, SealedShares(sealed)).encode(federation.commitment)


def accepted(federation: Federation, *members: int) -> bytes:
    return Accepted(members).encode(federation.commitment)


def sealed_by(federation: Federation, i: int, target: int, plain: bytes) -> bytes:
    """What member i seals and signs for ``target``: any 64 bytes."""
    its = federation.secrets(i).encryption_private
    key = crypto.x25519_public(federation.secrets(target).encryption_private)
    return signed_by(federation, i, target, crypto.seal(its, key, federation.commitment, i, target, plain))


def signed_by(federation: Federation, i: int, target: int, ciphertext: bytes) -> bytes:
    """A ciphertext with member i's signature."""
    statement = sealed_statement(federation.server._adverts_root, i, target, ciphertext)
    return ciphertext + federation.identities[i].sign(statement)


def survivors(federation: Federation, *members: int) -> bytes:
    return Survivors(members).encode(federation.commitment)


def votes(federation: Federation, by_member: dict[int, bytes]) -> bytes:
    return Votes(by_member).encode(federation.commitment)
