"""A hash chain of signed entries: what makes an edited, re-ordered or shortened ledger show.

    hash_n = SHA-256(domain, number_n, kind_n, body_n, hash_{n-1})      hash_0 = 32 zero bytes
    signature_n = Ed25519(domain, hash_n)

Every stored field is either an input of the hash, the hash itself, or a signature over it, so no field can
change alone. The first entry's body names the public key; who wants certainty about the key compares it with
the roster.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

GENESIS_HASH = b"\0" * 32
_HASH_DOMAIN = b"gradtf-fl/ledger/hash/v1"
_SIGNATURE_DOMAIN = b"gradtf-fl/ledger/signature/v1"


@dataclass(frozen=True)
class Entry:
    """One row of the ledger. ``number`` counts from 1; ``body`` is canonical JSON; hashes are 32 bytes."""

    number: int
    kind: str
    body: str
    previous: bytes
    hash: bytes
    signature: bytes


@dataclass(frozen=True)
class Problem:
    """One break of a ledger: the number of the row (0: the file as a whole) and what is wrong with it."""

    row: int
    what: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.what}" if self.row else self.what


def entry_hash(number: int, kind: str, body: str, previous: bytes) -> bytes:
    """SHA-256 (32 bytes) over length-prefixed fields, so that no two entries share an encoding."""
    digest = hashlib.sha256(_HASH_DOMAIN)
    for part in (str(number).encode(), kind.encode(), body.encode(), previous):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def seal(number: int, kind: str, body: str, previous: bytes, key: Ed25519PrivateKey) -> Entry:
    """The entry that follows the one whose hash is ``previous``."""
    digest = entry_hash(number, kind, body, previous)
    return Entry(number, kind, body, previous, digest, key.sign(_SIGNATURE_DOMAIN + digest))


def chain_problems(entries: Sequence[Entry], public_key: bytes) -> list[Problem]:
    """Every break of the chain, in row order; empty when it holds.

    Args:
        entries: all rows, ascending.
        public_key: Ed25519 key (32 bytes) that must have signed each of them.
    """
    try:
        verifier = Ed25519PublicKey.from_public_bytes(public_key)
    except ValueError:
        return [Problem(1, "its public key is no Ed25519 key")]
    problems = []
    previous = GENESIS_HASH
    for position, entry in enumerate(entries, 1):
        if entry.number != position:
            problems.append(Problem(entry.number, f"row {position} is expected here: rows are missing or moved"))
            break
        if entry.previous != previous:
            problems.append(Problem(position, "does not follow the row before it"))
        if entry_hash(entry.number, entry.kind, entry.body, entry.previous) != entry.hash:
            problems.append(Problem(position, "its content does not match its hash"))
        try:
            verifier.verify(entry.signature, _SIGNATURE_DOMAIN + entry.hash)
        except InvalidSignature:
            problems.append(Problem(position, "its signature is not the organization's"))
        previous = entry.hash
    return problems
