"""The cryptographic primitives as this protocol uses them, each derivation under its own label.

X25519 (RFC 7748), Ed25519 (RFC 8032), HKDF-SHA256 (RFC 5869), ChaCha20-Poly1305 (RFC 8439), AES-256-CTR
(SP 800-38A), all from the package `cryptography`. C is the commitment to the round's configuration: it salts
every derivation, so nothing derived in one round or attempt has a meaning in another.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gradtf_fl.secagg.violations import BadKey, BadSignature, UndecryptableShare

Randomness = Callable[[int], bytes]

KEY_BYTES = 32
SIGNATURE_BYTES = 64
TAG_BYTES = 16

_PREFIX = b"gradtf/sa/v1/"
USAGE_SEED_MASK_SECRET = _PREFIX + b"seed/s"  # client seed -> s_i
USAGE_SEED_SELF_SECRET = _PREFIX + b"seed/b"  # client seed -> b_i
USAGE_SEED_ENCRYPTION = _PREFIX + b"seed/enc"  # client seed -> X25519 key of the share channel
USAGE_SEED_CONTRIBUTION = _PREFIX + b"seed/contribution"  # client seed -> share of the public coin
USAGE_SEED_SHARING = _PREFIX + b"seed/sharing"  # client seed -> key of the polynomials' coefficients
USAGE_SEED_ROUNDING = _PREFIX + b"seed/rounding"  # client seed -> key of the stochastic rounding
USAGE_SEED_NOISE = _PREFIX + b"seed/noise"  # client seed -> key of the Skellam noise
USAGE_SEED_VOTES = _PREFIX + b"seed/votes"  # client seed -> which votes are verified on a large graph
USAGE_ROTATION = _PREFIX + b"rotation"  # H(. | C) -> public signs of the rotation
USAGE_MASK_KEY = _PREFIX + b"mask-key"  # s_i -> X25519 key of the pairwise masks
USAGE_PAIR_MASK = _PREFIX + b"mask"  # X25519(s_i, S_j) -> PRG key, | lo | hi
USAGE_SELF_MASK = _PREFIX + b"self"  # b_i -> PRG key, | i
USAGE_SHARE_KEY = _PREFIX + b"enc"  # X25519(e_i, E_j) -> AEAD key, | source | destination
USAGE_COMMITMENT = _PREFIX + b"commit"  # H(. | C | i | b_i)
USAGE_CONFIG = _PREFIX + b"config"  # C = H(. | config)
USAGE_ROSTER = _PREFIX + b"roster"  # H(. | roster)
USAGE_ADVERTS = _PREFIX + b"adverts"  # H(. | C | all adverts' hashes): the view of U1, root of the graph
USAGE_GRAPH = _PREFIX + b"graph"  # H(. | root) -> key of the circle's order
USAGE_GROUPS = _PREFIX + b"groups"  # H(. | roster | number of groups) -> key of the partition
USAGE_BEACON = _PREFIX + b"beacon"  # H(. | C of round 0 | view | all b_j of U3): what no party can steer
USAGE_SAMPLE = _PREFIX + b"sample"  # H(. | beacon | round) -> key of the order that the round's members come first in
USAGE_VIEW = _PREFIX + b"view"  # H(. | C | U1 | U2 | U3)
USAGE_SEALED = _PREFIX + b"sealed"  # a sender signs each ciphertext as . | H(C | source | target | ciphertext)
USAGE_PROOF = _PREFIX + b"proof"  # H(. | ...) -> challenge of the proof of an agreement
USAGE_PROOF_NONCE = _PREFIX + b"proof-nonce"  # X25519 key -> nonce of that proof, | peer's key
USAGE_POSSESSION = _PREFIX + b"possession"  # H(. | ...) -> challenge of the proof that a key's owner knows it
USAGE_POSSESSION_NONCE = _PREFIX + b"possession-nonce"  # X25519 key -> nonce of that proof
USAGE_SIGN = _PREFIX + b"sign"  # every client message is signed as . | H(message)

_X25519_PRIME = 2**255 - 19
_ZERO_NONCE_12 = bytes(12)
_ZERO_NONCE_16 = bytes(16)


def digest(usage: bytes, *parts: bytes | memoryview) -> bytes:
    """SHA-256 over a length-prefixed label and the parts; the caller's parts must be self-delimiting."""
    state = hashlib.sha256(len(usage).to_bytes(1, "big") + usage)
    for part in parts:
        state.update(part)
    return state.digest()


def index_bytes(*indices: int) -> bytes:
    """Roster indices as u32 each, for labels."""
    return b"".join(index.to_bytes(4, "big") for index in indices)


def derive(secret: bytes, salt: bytes, usage: bytes, context: bytes = b"", size: int = KEY_BYTES) -> bytes:
    """HKDF-SHA256 (RFC 5869) with info = len(usage) | usage | context: no two usages share an info."""
    info = len(usage).to_bytes(1, "big") + usage + context
    return HKDF(algorithm=SHA256(), length=size, salt=salt, info=info).derive(secret)


def loaded(private: bytes | X25519PrivateKey) -> X25519PrivateKey:
    """The key object of 32 bytes (clamped as RFC 7748, section 5 says). Loading costs as much as an agreement."""
    return X25519PrivateKey.from_private_bytes(private) if isinstance(private, bytes) else private


def x25519_public(private: bytes | X25519PrivateKey) -> bytes:
    """Public key [32 bytes] of a private key."""
    return loaded(private).public_key().public_bytes_raw()


def check_x25519_public(public: bytes) -> None:
    """`BadKey` unless ``public`` is the canonical encoding of a u-coordinate: equal keys have equal bytes."""
    if len(public) != KEY_BYTES or int.from_bytes(public, "little") >= _X25519_PRIME:
        raise BadKey("an X25519 key is not in canonical form")


def x25519(private: bytes | X25519PrivateKey, public: bytes) -> bytes:
    """Shared secret [32 bytes]; `BadKey` where it would be zero (a point of low order)."""
    try:
        return loaded(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise BadKey("an X25519 key has low order") from error


def pair_mask_key(private: bytes | X25519PrivateKey, public: bytes, commitment: bytes, one: int, other: int) -> bytes:
    """AES key of the mask that members ``one`` and ``other`` share; the same on both sides."""
    lo, hi = min(one, other), max(one, other)
    return derive(x25519(private, public), commitment, USAGE_PAIR_MASK, index_bytes(lo, hi))


def self_mask_key(secret: bytes, commitment: bytes, owner: int) -> bytes:
    """AES key of the mask that only ``owner`` adds, from its secret b_i."""
    return derive(secret, commitment, USAGE_SELF_MASK, index_bytes(owner))


def mask_private_key(secret: bytes, commitment: bytes) -> bytes:
    """X25519 private key from s_i: 32 bytes are shared among the neighbours, not a key file."""
    return derive(secret, commitment, USAGE_MASK_KEY)


def commit(secret: bytes, commitment: bytes, owner: int) -> bytes:
    """Hash commitment to b_i (256 bits of entropy, so hiding needs no extra randomness)."""
    return digest(USAGE_COMMITMENT, commitment, index_bytes(owner), secret)


def channel_of(secret: bytes, commitment: bytes, source: int, target: int) -> ChaCha20Poly1305:
    """The AEAD from ``source`` to ``target``, from the X25519 secret that they share."""
    return ChaCha20Poly1305(derive(secret, commitment, USAGE_SHARE_KEY, index_bytes(source, target)))


def seal(
    private: bytes | X25519PrivateKey, public: bytes, commitment: bytes, source: int, target: int, plain: bytes
) -> bytes:
    """ChaCha20-Poly1305 from ``source`` to ``target``. The key serves one message, so the nonce is zero."""
    channel = channel_of(x25519(private, public), commitment, source, target)
    return channel.encrypt(_ZERO_NONCE_12, plain, commitment + index_bytes(source, target))


def unseal(
    private: bytes | X25519PrivateKey, public: bytes, commitment: bytes, source: int, target: int, sealed: bytes
) -> bytes:
    """Inverse of `seal`; `UndecryptableShare` where the tag does not verify."""
    return unsealed(x25519(private, public), commitment, source, target, sealed)


def unsealed(secret: bytes, commitment: bytes, source: int, target: int, sealed: bytes) -> bytes:
    """`unseal` with the X25519 secret that the two share."""
    channel = channel_of(secret, commitment, source, target)
    try:
        return channel.decrypt(_ZERO_NONCE_12, sealed, commitment + index_bytes(source, target))
    except (InvalidTag, ValueError) as error:
        raise UndecryptableShare(f"the ciphertext from member {source} does not authenticate") from error


def verify(public: bytes, signature: bytes, message: bytes) -> None:
    """`BadSignature` unless ``signature`` is ``public``'s Ed25519 signature of ``message``."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise BadSignature("an Ed25519 signature does not verify") from error


def keystream(key: bytes, size: int) -> bytes:
    """The first ``size`` bytes of AES-256-CTR under ``key`` from counter 0, for short strings."""
    return Cipher(algorithms.AES256(key), modes.CTR(_ZERO_NONCE_16)).encryptor().update(bytes(size))


class ReplayRandomness:
    """A `Randomness` that is a function of its seed: for vectors and replays, never for a real round."""

    def __init__(self, seed: bytes) -> None:
        key = hashlib.sha256(_PREFIX + b"replay" + seed).digest()
        self._stream = Cipher(algorithms.AES256(key), modes.CTR(_ZERO_NONCE_16)).encryptor()

    def __call__(self, size: int) -> bytes:
        return self._stream.update(bytes(size))


system_randomness: Randomness = os.urandom
