"""Proof that a shared X25519 secret is the right one, without the private key that made it.

A member whose ciphertext from a sender does not open shows the secret K that it shares with that sender, so that
everybody can try the ciphertext for themselves. It proves (Chaum and Pedersen, CRYPTO '92; non-interactive after Fiat
and Shamir) that one x gives both its own advertised key, E = x * 8B, and K = x * 8P, where P is the sender's key. The
proof reveals nothing about x beyond K, and K opens what passed between these two members and nothing else.

An X25519 private key is 8x, and X25519 keeps only the u-coordinate of a point. Here points are those of the
birationally equivalent Edwards curve of RFC 8032, and the two signs that u leaves out are sent along. K must lie in the
subgroup of prime order, so no second K passes; a component of low order in E or P changes nothing, as in X25519.

"K opens nothing else" needs that the sender knows its own private key. Whoever advertises a P, where P is another
member's key, would be shown a K' for that member's secret K'. So an advert proves that its owner knows the key
(Schnorr, CRYPTO '89), and K is shown to no owner whose proof fails.

Plain Python integers: some 10 ms for each proof and each verification. Every member makes one proof of possession in a
round; only a cheated one makes or verifies more. Every multiplication takes the same steps; Python does not promise
more about time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from gradtf_fl.secagg.crypto.primitives import (
    KEY_BYTES,
    USAGE_POSSESSION,
    USAGE_POSSESSION_NONCE,
    USAGE_PROOF,
    USAGE_PROOF_NONCE,
    derive,
    digest,
    x25519,
    x25519_public,
)
from gradtf_fl.secagg.violations import BadKey, BadProof

PROOF_BYTES = 1 + 3 * KEY_BYTES
POSSESSION_BYTES = 2 * KEY_BYTES

Point = tuple[int, int, int, int]
"""Extended coordinates (X, Y, Z, T) with X Y = Z T (Hisil et al., ASIACRYPT 2008)."""

_P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P
_ROOT_OF_MINUS_ONE = pow(2, (_P - 1) // 4, _P)
_NEUTRAL: Point = (0, 1, 1, 0)


@dataclass(frozen=True)
class AgreementProof:
    """K, and the proof of it.

    Attributes:
        secret: K as X25519 gives it [32 bytes].
        signs: bit 0 of the advertised key's point, bit 1 of K's.
        challenge: c, below `ORDER`.
        response: r, below `ORDER`.
    """

    secret: bytes
    signs: int
    challenge: int
    response: int

    def encode(self) -> bytes:
        numbers = (number.to_bytes(KEY_BYTES, "big") for number in (self.challenge, self.response))
        return bytes([self.signs]) + self.secret + b"".join(numbers)

    @classmethod
    def decode(cls, data: bytes) -> AgreementProof:
        """`BadProof` for anything but `encode`'s form."""
        if len(data) != PROOF_BYTES or data[0] > 3:
            raise BadProof("no proof of an agreement")
        secret, challenge, response = (data[at : at + KEY_BYTES] for at in range(1, PROOF_BYTES, KEY_BYTES))
        numbers = int.from_bytes(challenge, "big"), int.from_bytes(response, "big")
        if max(numbers) >= ORDER:
            raise BadProof("a number of the proof is not canonical")
        return cls(secret, data[0], *numbers)


def prove(private: bytes, peer: bytes, context: bytes) -> AgreementProof:
    """The secret of ``private`` [32 bytes] and ``peer``'s public key, with its proof.

    Args:
        context: what the proof is bound to.

    Raises:
        BadKey: ``peer`` is not on the curve, or has low order.
    """
    secret, own = x25519(private, peer), x25519_public(private)
    scalar = _clamped(private)
    base, point = _times_eight(_BASE), _times_eight(lifted(peer, 0))
    signs = _sign(_multiple(scalar, _BASE)) | _sign(_multiple(scalar, lifted(peer, 0))) << 1
    nonce = int.from_bytes(derive(private, context, USAGE_PROOF_NONCE, peer, 64), "big") % ORDER
    commitments = _multiple(nonce, base), _multiple(nonce, point)
    challenge = _challenge(context, own, peer, secret, signs, commitments)
    return AgreementProof(secret, signs, challenge, (nonce + challenge * (scalar // 8)) % ORDER)


def verify_proof(proof: AgreementProof, own: bytes, peer: bytes, context: bytes) -> None:
    """`BadProof` unless ``proof.secret`` is what the owner of the key ``own`` shares with the owner of ``peer``."""
    try:
        mine, shared = lifted(own, proof.signs & 1), lifted(proof.secret, proof.signs >> 1)
        theirs = _times_eight(lifted(peer, 0))
    except BadKey as error:
        raise BadProof(f"the proof is about no point of the curve: {error}") from error
    if not _is_neutral(_multiple(ORDER, shared)) or _is_neutral(shared):
        raise BadProof("the secret is not in the subgroup of prime order")
    minus = ORDER - proof.challenge
    commitments = (
        _sum(_multiple(proof.response, _times_eight(_BASE)), _multiple(minus, mine)),
        _sum(_multiple(proof.response, theirs), _multiple(minus, shared)),
    )
    if proof.challenge != _challenge(context, own, peer, proof.secret, proof.signs, commitments):
        raise BadProof("the secret is not the one that the advertised keys agree on")


def prove_possession(private: bytes, context: bytes) -> bytes:
    """Proof [64 bytes] that the owner of ``private``'s public key knows ``private``; bound to ``context``."""
    scalar, own = _clamped(private), x25519_public(private)
    x = -(scalar // 8) if _sign(_multiple(scalar, _BASE)) else scalar // 8
    nonce = int.from_bytes(derive(private, context, USAGE_POSSESSION_NONCE, size=64), "big") % ORDER
    challenge = _possession_challenge(context, own, _multiple(nonce, _times_eight(_BASE)))
    return b"".join(number.to_bytes(KEY_BYTES, "big") for number in (challenge, (nonce + challenge * x) % ORDER))


def check_possession(proof: bytes, own: bytes, context: bytes) -> None:
    """`BadProof` unless ``proof`` is that of an owner of the key ``own`` who knows its private key."""
    challenge, response = (int.from_bytes(proof[at : at + KEY_BYTES], "big") for at in (0, KEY_BYTES))
    if max(challenge, response) >= ORDER:
        raise BadProof("a number of the proof is not canonical")
    try:
        mine = lifted(own, 0)
    except BadKey as error:
        raise BadProof(f"the proof is about no point of the curve: {error}") from error
    commitment = _sum(_multiple(response, _times_eight(_BASE)), _multiple(ORDER - challenge, mine))
    if challenge != _possession_challenge(context, own, commitment):
        raise BadProof("an advertised key is not known to be its owner's")


def check_provable(public: bytes) -> None:
    """`BadKey` unless an agreement with ``public`` can be proved: it lies on the curve and has no low order."""
    if _is_neutral(_times_eight(lifted(public, 0))):
        raise BadKey("an X25519 key has low order")


def lifted(public: bytes, sign: int) -> Point:
    """The Edwards point of a u-coordinate [32 bytes, little endian] whose x has the lowest bit ``sign``.

    Raises:
        BadKey: not canonical, or on the curve's twist.
    """
    u = int.from_bytes(public, "little")
    if u >= _P or u == _P - 1:
        raise BadKey("an X25519 key is not in canonical form, or has no point")
    y = (u - 1) * pow(u + 1, -1, _P) % _P
    x = _root((y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P)
    if x & 1 != sign:
        x = -x % _P
    return x, y, 1, x * y % _P


def _root(square: int) -> int:
    root = pow(square, (_P + 3) // 8, _P)
    if (root * root - square) % _P:
        root = root * _ROOT_OF_MINUS_ONE % _P
    if (root * root - square) % _P:
        raise BadKey("an X25519 key is on the curve's twist")
    return root


def _sum(one: Point, other: Point) -> Point:
    """Complete: it holds for all points, equal ones included."""
    x1, y1, z1, t1 = one
    x2, y2, z2, t2 = other
    a, b = (y1 - x1) * (y2 - x2) % _P, (y1 + x1) * (y2 + x2) % _P
    c, d = 2 * _D * t1 * t2 % _P, 2 * z1 * z2 % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _multiple(scalar: int, point: Point) -> Point:
    """256 doublings and 256 additions, whatever the scalar (below 2^256)."""
    sums = [_NEUTRAL, point]
    found = _NEUTRAL
    for at in range(255, -1, -1):
        found = _sum(found, found)
        found = _sum(found, sums[scalar >> at & 1])
    return found


def _times_eight(point: Point) -> Point:
    for _ in range(3):
        point = _sum(point, point)
    return point


def _is_neutral(point: Point) -> bool:
    x, y, z, _ = point
    return x % _P == 0 and (y - z) % _P == 0


def _affine(point: Point) -> tuple[int, int]:
    x, y, z, _ = point
    inverse = pow(z, -1, _P)
    return x * inverse % _P, y * inverse % _P


def _sign(point: Point) -> int:
    return _affine(point)[0] & 1


def _clamped(private: bytes) -> int:
    """The scalar of a private key (RFC 7748, section 5)."""
    return int.from_bytes(private, "little") & (2**254 - 8) | 2**254


def _challenge(
    context: bytes, own: bytes, peer: bytes, secret: bytes, signs: int, commitments: tuple[Point, Point]
) -> int:
    points = b"".join(value.to_bytes(KEY_BYTES, "big") for point in commitments for value in _affine(point))
    bound = hashlib.sha256(context).digest()
    return int.from_bytes(digest(USAGE_PROOF, bound, own, peer, secret, bytes([signs]), points), "big") % ORDER


def _possession_challenge(context: bytes, own: bytes, commitment: Point) -> int:
    point = b"".join(value.to_bytes(KEY_BYTES, "big") for value in _affine(commitment))
    return int.from_bytes(digest(USAGE_POSSESSION, hashlib.sha256(context).digest(), own, point), "big") % ORDER


_BASE = lifted((9).to_bytes(32, "little"), 0)
