"""A hash chain of signed rows: what makes an edited, re-ordered or shortened ledger show.

    hash_n = SHA-256(domain, number_n, kind_n, body_n, hash_{n-1})      hash_0 = 32 zero bytes
    signature_n = Ed25519(domain, hash_n)

Every stored field is either an input of the hash, the hash itself, or a signature over it, so no field can
change alone. The first row's body names the public key; a ``rotate`` row hands over to another one
(`gradtf_fl.privacy.ledger.rotation`). Who wants certainty about the key compares it with the roster.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gradtf_fl.privacy.ledger.rotation import ROTATE, rotated_key

GENESIS_HASH = b"\0" * 32
_HASH_DOMAIN = b"gradtf-fl/ledger/hash/v1"
_SIGNATURE_DOMAIN = b"gradtf-fl/ledger/signature/v1"


class Entry(NamedTuple):
    """One row of the ledger. ``number`` counts from 1; ``body`` is canonical JSON; hashes are 32 bytes."""

    number: int
    kind: str
    body: str
    previous: bytes
    hash: bytes
    signature: bytes


LedgerCheck = Literal["chain", "signatures", "content", "head", "file", "key", "announced heads"]


@dataclass(frozen=True)
class Problem:
    """One break of a ledger.

    Attributes:
        row: number of the row; 0 stands for the file as a whole.
        what: what is wrong with it.
        check: which check found it.
    """

    row: int
    what: str
    check: LedgerCheck = field(default="file", compare=False)

    def __str__(self) -> str:
        return f"row {self.row}: {self.what}" if self.row else self.what


def entry_hash(number: int, kind: str, body: str, previous: bytes) -> bytes:
    """SHA-256 (32 bytes) over length-prefixed fields, so that no two entries share an encoding."""
    digest = hashlib.sha256(_HASH_DOMAIN)
    for part in (b"%d" % number, kind.encode(), body.encode(), previous):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def seal(number: int, kind: str, body: str, previous: bytes, key: Ed25519PrivateKey) -> Entry:
    """The entry that follows the one whose hash is ``previous``."""
    digest = entry_hash(number, kind, body, previous)
    return Entry(number, kind, body, previous, digest, key.sign(_SIGNATURE_DOMAIN + digest))


class Chain:
    """A chain read row by row.

    Attributes:
        rows: how many were followed.
        head: hash of the last one (32 bytes).
        key: the Ed25519 key (32 bytes) that signs now.
        keys: every key so far, the first one first.
    """

    def __init__(self, public_key: bytes) -> None:
        self.rows = 0
        self.head = GENESIS_HASH
        self.keys = [public_key]
        self._verifier = _verifier(public_key)

    @property
    def key(self) -> bytes:
        return self.keys[-1]

    def follow(self, entry: Entry, *, check_signature: bool = True) -> list[Problem]:
        """Take ``entry`` as the next row and say what is wrong with it; a good ``rotate`` row changes the key.

        Args:
            check_signature: False leaves the signature unread, but for a ``rotate`` row's. Any later signature
                that is read covers this row too, through its hash.
        """
        position = self.rows + 1
        problems = []
        if entry.number != position:
            what = f"row {position} is expected here: rows are missing or moved"
            problems.append(Problem(entry.number, what, "chain"))
        elif entry.previous != self.head:
            problems.append(Problem(position, "does not follow the row before it", "chain"))
        if entry_hash(entry.number, entry.kind, entry.body, entry.previous) != entry.hash:
            problems.append(Problem(position, "its content does not match its hash", "chain"))
        if check_signature or entry.kind == ROTATE:
            problems += self._signature_problems(position, entry)
        if entry.kind == ROTATE and not problems:
            problems += self._rotate(position, entry)
        self.rows, self.head = position, entry.hash
        return problems

    def extend(self, entry: Entry) -> None:
        """Take the row that was just sealed as the next one: there is nothing to check."""
        if entry.kind == ROTATE:
            self._rotate(entry.number, entry)
        self.rows, self.head = entry.number, entry.hash

    def _signature_problems(self, position: int, entry: Entry) -> list[Problem]:
        if self._verifier is None:
            return [Problem(position, "its public key is not an Ed25519 key", "signatures")]
        try:
            self._verifier.verify(entry.signature, _SIGNATURE_DOMAIN + entry.hash)
        except InvalidSignature:
            return [Problem(position, "its signature is not the organization's", "signatures")]
        return []

    def _rotate(self, position: int, entry: Entry) -> list[Problem]:
        try:
            key = rotated_key(entry.body, entry.previous)
        except ValueError as error:
            return [Problem(position, f"hands over to no key ({error})", "signatures")]
        self.keys.append(key)
        self._verifier = _verifier(key)
        return []


def _verifier(public_key: bytes) -> Ed25519PublicKey | None:
    try:
        return Ed25519PublicKey.from_public_bytes(public_key)
    except ValueError:
        return None


def follow_all(chain: Chain, entries: Sequence[Entry], *, every_signature: bool = True) -> list[Problem]:
    """Every break of ``entries`` as the next rows of ``chain``, in row order; empty when it holds.

    Args:
        every_signature: False reads only the signatures that the others hang on: of each rotation and of the
            last row. The last one covers the hash of every row before it, so nobody without the key can change
            what a row says; that a signature in the middle was damaged goes unnoticed.
    """
    problems = []
    for entry in entries:
        problems += chain.follow(entry, check_signature=every_signature or entry is entries[-1])
        if entry.number != chain.rows:
            break  # rows are missing or moved: every later one would only say so again
    return problems
