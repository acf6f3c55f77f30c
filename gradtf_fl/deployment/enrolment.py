"""Who takes part, agreed out of band: an organization's enrolment, and the server's invitation with everyone's keys.

An organization sends its `Enrolment` (public keys only) to the server's operator; the operator sends every organization
the same `Invitation`: all enrolments, the key that signs LLM adapters, the server's address and its certificate
authority. The server could lie in it, and would then sit in the middle of the key agreement. So everybody reads the
invitation's fingerprint to everybody else over another channel (telephone) before joining: one word covers it all.

ORG/enrolment.json, SERVER/enrolments/NAME.json    `Enrolment`
SERVER/invitation.json                             `Invitation`
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from pydantic import Field, model_validator

from gradtf_fl.config import Address, OrganizationName, PublicKey, Section, validate
from gradtf_fl.errors import ConfigError

ENROLMENT_TAG, INVITATION_TAG = b"gradtf/enrolment/v1\0", b"gradtf/invitation/v1\0"
MAX_FILE = 10_000_000  # bytes


class Enrolment(Section):
    """What an organization says about itself.

    Attributes:
        name: what people call it.
        identity: Ed25519 key (hex) that signs its adverts and its ledger.
        node_key: OpenSSH line of the ECDSA key that its SuperNode authenticates with.
        signature: the identity's, over the other fields, so that nobody enrols a key that is not theirs.
    """

    name: OrganizationName
    identity: PublicKey
    node_key: str = Field(max_length=2000)
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")

    @model_validator(mode="after")
    def _is_genuine(self) -> Enrolment:
        try:
            usable = isinstance(load_ssh_public_key(self.node_key.encode()), EllipticCurvePublicKey)
        except (ValueError, UnsupportedAlgorithm):
            usable = False
        if not usable:
            raise ValueError("node_key is not an OpenSSH line with an ECDSA key")
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.identity))
            key.verify(bytes.fromhex(self.signature), _statement(self.name, self.identity, self.node_key))
        except (InvalidSignature, ValueError):
            raise ValueError("the enrolment is not signed by its own identity: it was changed on the way") from None
        return self

    @property
    def fingerprint(self) -> str:
        """Of both keys, to be compared out of band."""
        return fingerprint(_statement(self.name, self.identity, self.node_key))


def enrol(name: str, identity: Ed25519PrivateKey, node_key: str) -> Enrolment:
    """A signed enrolment."""
    public = identity.public_key().public_bytes_raw().hex()
    signature = identity.sign(_statement(name, public, node_key)).hex()
    return Enrolment(name=name, identity=public, node_key=node_key, signature=signature)


class Invitation(Section):
    """What every organization joins.

    Attributes:
        server: HOST:PORT.
        provider_key: Ed25519 key (hex) that signs LLM adapters.
        ca: PEM text of the authority of the server's certificate.
        organizations: everyone's enrolment.
    """

    server: Address
    provider_key: PublicKey
    ca: str = Field(max_length=200_000)
    organizations: tuple[Enrolment, ...] = Field(strict=False, min_length=2)

    @model_validator(mode="after")
    def _names_everyone_once(self) -> Invitation:
        for what in ("name", "identity", "node_key"):
            values = [getattr(organization, what) for organization in self.organizations]
            if twice := sorted({value for value in values if values.count(value) > 1}):
                raise ValueError(f"two organizations have the same {what}: {', '.join(v[:40] for v in twice)}")
        return self

    @property
    def roster(self) -> tuple[str, ...]:
        """Identity keys (hex), in the order of the invitation."""
        return tuple(organization.identity for organization in self.organizations)

    @property
    def fingerprint(self) -> str:
        """Of everything in it."""
        return fingerprint(INVITATION_TAG + canonical(self).encode())


@dataclass(frozen=True)
class NewKey:
    """An organization whose keys differ from those known under its name."""

    name: str
    old: str
    new: str


def changed_keys(old: Invitation, new: Invitation) -> list[NewKey]:
    """Organizations that came with other keys than before, as after a rotation or an attack."""
    known = {organization.name: organization.fingerprint for organization in old.organizations}
    return [
        NewKey(organization.name, known[organization.name], organization.fingerprint)
        for organization in new.organizations
        if known.get(organization.name, organization.fingerprint) != organization.fingerprint
    ]


def fingerprint(data: bytes) -> str:
    """All of SHA-256, to be read aloud: 52 letters and digits (RFC 4648, base32) in thirteen groups of four.

    Whoever writes two documents with one fingerprint needs a collision: 2^128 trials, where half as many bits would
    leave 2^64.
    """
    digits = base64.b32encode(hashlib.sha256(data).digest()).decode().rstrip("=").lower()
    return " ".join(digits[i : i + 4] for i in range(0, len(digits), 4))


def same_fingerprint(left: str, right: str) -> bool:
    """Whether two fingerprints are equal but for blanks and case."""
    return "".join(left.lower().split()) == "".join(right.lower().split())


def canonical(document: Section) -> str:
    """Canonical JSON: sorted keys, no blanks."""
    return json.dumps(document.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def read_enrolment(path: Path) -> Enrolment:
    """An enrolment file; `ConfigError` with every problem."""
    return validate(Enrolment, _read(path), lambda key: f"{path}: {key}" if key else str(path))


def read_invitation(path: Path) -> Invitation:
    """An invitation file; `ConfigError` with every problem."""
    return validate(Invitation, _read(path), lambda key: f"{path}: {key}" if key else str(path))


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_FILE:
            raise ConfigError(f"{path}: larger than {MAX_FILE / 1e6:g} MB")
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: not a JSON object")
    return document


def _statement(name: str, identity: str, node_key: str) -> bytes:
    return ENROLMENT_TAG + json.dumps([name, identity, node_key], separators=(",", ":")).encode()
