"""Who takes part: an organization's Ed25519 identity, and the pinned list of everyone's public keys."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradtf_fl.errors import ConfigError
from gradtf_fl.files import PRIVATE, place_new, read_private
from gradtf_fl.secagg.crypto.primitives import KEY_BYTES, USAGE_ROSTER, Randomness, digest, system_randomness
from gradtf_fl.secagg.violations import UnknownIdentity


class Identity:
    """An organization's long-lived Ed25519 key (RFC 8032). Signs adverts, views and ledger rows.

    >>> from gradtf_fl import Identity
    >>> identity = Identity.generate()
    >>> len(identity.public), len(identity.sign(b"message"))
    (32, 64)
    """

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self.private = private
        self.public: bytes = private.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"Identity({self.public.hex()})"

    @classmethod
    def generate(cls, rng: Randomness = system_randomness) -> Identity:
        """A new identity from 32 bytes of ``rng``."""
        return cls(Ed25519PrivateKey.from_private_bytes(rng(32)))

    def sign(self, message: bytes) -> bytes:
        """Signature [64 bytes]."""
        return self.private.sign(message)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an unencrypted PKCS#8 PEM file, mode 0600, atomically; never replaces an existing one."""
        target = Path(path)
        pem = self.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        try:
            place_new(target, pem, PRIVATE)
        except FileExistsError:
            raise ConfigError(f"{target}: an identity already exists there and is never overwritten") from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Identity:
        """Reads what `save` wrote; `ConfigError` for a missing, foreign or group-readable file."""
        pem = read_private(Path(path), "identity key")
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"{path}: not an unencrypted PEM private key") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"{path}: not an Ed25519 key")
        return cls(key)


@dataclass(frozen=True)
class Roster:
    """The organizations' public keys, pinned out of band in every organization's own file.

    ``keys`` are kept sorted, whatever order they are given in, so that two organizations that list the same
    keys agree on ``hash`` and on every ``index``. An index is what messages call a member.

    >>> from gradtf_fl import Identity, Roster
    >>> keys = tuple(Identity.generate().public for _ in range(3))
    >>> Roster(keys).hash == Roster(keys[::-1]).hash
    True
    """

    keys: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if any(not isinstance(key, bytes) or len(key) != KEY_BYTES for key in self.keys):
            raise ConfigError("roster: every key is 32 bytes of an Ed25519 public key")
        if len(set(self.keys)) != len(self.keys):
            raise ConfigError("roster: a key is listed twice")
        if len(self.keys) < 2:
            raise ConfigError("roster: at least two organizations are needed")
        object.__setattr__(self, "keys", tuple(sorted(self.keys)))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Roster:
        """The roster in a file: one hex Ed25519 key a line; `ConfigError` names what is wrong with it."""
        try:
            lines = [line.strip() for line in Path(path).read_text(encoding="ascii").splitlines() if line.strip()]
            return cls(tuple(bytes.fromhex(line) for line in lines))
        except OSError as error:
            raise ConfigError(f"{path}: the organizations' keys cannot be read ({error.strerror})") from error
        except ConfigError as error:
            raise ConfigError([f"{path}: {problem}" for problem in error.problems]) from None
        except ValueError as error:
            raise ConfigError(f"{path}: not one hex Ed25519 key a line") from error

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def hash(self) -> bytes:
        """SHA-256 of the sorted keys."""
        return digest(USAGE_ROSTER, *self.keys)

    @cached_property
    def _positions(self) -> dict[bytes, int]:
        return {key: position for position, key in enumerate(self.keys)}

    def index(self, key: bytes) -> int:
        """Position of ``key``; `UnknownIdentity` where it is not on the roster."""
        try:
            return self._positions[key]
        except KeyError:
            raise UnknownIdentity(f"{key.hex()} is not on the roster") from None
