"""Published vectors for the primitives as this protocol calls them, and the separation of its labels.

The vectors are in tests/vectors/primitives.json, each with the document and section that it comes from.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from gradtf_fl.secagg import BadKey, BadSignature, Identity, UndecryptableShare
from gradtf_fl.secagg.crypto import masks
from gradtf_fl.secagg.crypto import primitives as crypto
from gradtf_fl.secagg.crypto.masks import add_masks

PUBLISHED = json.loads((Path(__file__).parent.parent / "vectors" / "primitives.json").read_text())
C = hashlib.sha256(b"a round").digest()

Vector = dict[str, Any]


def published(primitive: str) -> pytest.MarkDecorator:
    """One test for each vector of ``primitive``, its hexadecimal fields as bytes."""
    vectors = [
        {
            name: value if name == "source" or isinstance(value, int) else bytes.fromhex(value)
            for name, value in v.items()
        }
        for v in PUBLISHED[primitive]
    ]
    return pytest.mark.parametrize("vector", vectors, ids=[str(vector["source"]) for vector in vectors])


AGREEMENT = PUBLISHED["x25519_agreement"][0]
A, B = bytes.fromhex(AGREEMENT["private_a"]), bytes.fromhex(AGREEMENT["private_b"])


def hkdf_by_hand(secret: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    """RFC 5869, sections 2.2 and 2.3, from HMAC alone."""
    key = hmac.digest(salt, secret, "sha256")
    out, block = b"", b""
    for counter in range(1, 256):
        block = hmac.digest(key, block + info + bytes([counter]), "sha256")
        out += block
        if len(out) >= size:
            return out[:size]
    raise AssertionError("too long")


def keystream_from(key: bytes, counter: bytes, size: int) -> bytes:
    """``size`` bytes of AES-256-CTR under ``key`` from ``counter`` on, by the calls that make masks."""
    buffer = bytearray(size + 15)
    written = Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor().update_into(bytes(size), buffer)
    return bytes(buffer[:written])


def xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


@published("x25519")
def test_x25519(vector: Vector) -> None:
    assert crypto.x25519(vector["scalar"], vector["u"]) == vector["out"]


@published("x25519_iterated")
def test_x25519_iterated(vector: Vector) -> None:
    scalar = u = bytes([9]) + bytes(31)
    for _ in range(vector["iterations"]):
        scalar, u = crypto.x25519(scalar, u), scalar
    assert scalar == vector["out"]


@published("x25519_agreement")
def test_x25519_agreement(vector: Vector) -> None:
    public_a, public_b = crypto.x25519_public(vector["private_a"]), crypto.x25519_public(vector["private_b"])
    assert (public_a, public_b) == (vector["public_a"], vector["public_b"])
    assert crypto.x25519(vector["private_a"], public_b) == vector["shared"]
    assert crypto.x25519(crypto.loaded(vector["private_b"]), public_a) == vector["shared"]


@published("ed25519")
def test_ed25519(vector: Vector) -> None:
    identity = Identity(Ed25519PrivateKey.from_private_bytes(vector["secret"]))
    public, message, signature = vector["public"], vector["message"], vector["signature"]
    assert identity.public == public
    assert identity.sign(message) == signature
    crypto.verify(public, signature, message)
    for other_signature, other_message in (
        (signature, message + b"\0"),
        (signature[:-1], message),
        (bytes([signature[0] ^ 1]) + signature[1:], message),
    ):
        with pytest.raises(BadSignature):
            crypto.verify(public, other_signature, other_message)


@published("hkdf_sha256")
def test_hkdf_sha256(vector: Vector) -> None:
    """The class that `derive` calls, and the two lines of HMAC that the next test holds `derive` against."""
    secret, salt, info, size = vector["secret"], vector["salt"], vector["info"], len(vector["out"])
    assert HKDF(algorithm=SHA256(), length=size, salt=salt, info=info).derive(secret) == vector["out"]
    assert hkdf_by_hand(secret, salt, info, size) == vector["out"]
    assert hmac.digest(salt, secret, "sha256") == vector["prk"]
    assert HKDFExpand(algorithm=SHA256(), length=size, info=info).derive(vector["prk"]) == vector["out"]


def test_derive_is_hkdf_with_a_length_prefixed_label() -> None:
    for size in (32, 80):
        ours = crypto.derive(b"secret", C, b"usage", b"context", size)
        assert ours == hkdf_by_hand(b"secret", C, b"\x05usagecontext", size)


@published("sha_256")
def test_sha_256_and_its_use(vector: Vector) -> None:
    message = vector["message"]
    assert hashlib.sha256(message).digest() == vector["out"]
    assert crypto.digest(b"label", message, b"more") == hashlib.sha256(b"\x05label" + message + b"more").digest()


@published("chacha20_poly1305")
def test_chacha20_poly1305(vector: Vector) -> None:
    channel = ChaCha20Poly1305(vector["key"])
    assert channel.encrypt(vector["nonce"], vector["plain"], vector["associated"]) == vector["out"]
    assert channel.decrypt(vector["nonce"], vector["out"], vector["associated"]) == vector["plain"]


def test_share_channel_is_rfc8439_under_a_derived_key() -> None:
    sealed = crypto.seal(A, crypto.x25519_public(B), C, 3, 9, b"shares")
    shared = bytes.fromhex(AGREEMENT["shared"])
    label = b"gradtf/sa/v1/enc"
    ends = bytes([0, 0, 0, 3, 0, 0, 0, 9])
    key = hkdf_by_hand(shared, C, bytes([len(label)]) + label + ends, 32)
    assert ChaCha20Poly1305(key).decrypt(bytes(12), sealed, C + ends) == b"shares"


def test_sealed_shares_are_bound_to_round_source_and_target() -> None:
    public_a, public_b = crypto.x25519_public(A), crypto.x25519_public(B)
    sealed = crypto.seal(A, public_b, C, 1, 2, b"shares")
    assert crypto.unseal(B, public_a, C, 1, 2, sealed) == b"shares"
    for commitment, source, target in ((bytes(32), 1, 2), (C, 2, 1), (C, 1, 3)):
        with pytest.raises(UndecryptableShare):
            crypto.unseal(B, public_a, commitment, source, target, sealed)
    for broken in (sealed[:-1], b"", sealed[:5] + bytes([sealed[5] ^ 1]) + sealed[6:]):
        with pytest.raises(UndecryptableShare):
            crypto.unseal(B, public_a, C, 1, 2, broken)


@published("aes_256_block")
def test_aes_256_is_the_block_cipher_of_the_masks(vector: Vector) -> None:
    """The first block of a stream is AES of its first counter, so a mask can be made to show any block."""
    assert keystream_from(vector["key"], vector["plain"], 16) == vector["out"]
    if vector["plain"] == bytes(16):  # counter 0, where every stream of the protocol starts
        assert crypto.keystream(vector["key"], 16) == vector["out"]


@published("aes_256_ctr")
def test_aes_256_ctr_from_the_standards_counter(vector: Vector) -> None:
    """All four blocks of the example, through the streams that masks are made of."""
    stream = keystream_from(vector["key"], vector["counter"], len(vector["plain"]))
    assert xor(stream, vector["plain"]) == vector["out"]


@pytest.mark.parametrize("mode", ["ctr", "gcm"])
def test_masks_are_the_same_whichever_mode_is_faster(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SP 800-38D, section 7.1: GCM with a 96-bit nonce of zeros encrypts from counter 2 on."""
    monkeypatch.setattr(masks, "_gcm_is_faster", lambda: mode == "gcm")
    key, size = hashlib.sha256(b"key").digest(), 3 * masks.CHUNK_BYTES // 4 + 5
    words = np.zeros(size, dtype="<u4")
    add_masks(words, plus=[key], threads=1)
    assert words.tobytes() == keystream_from(key, bytes(15) + b"\2", 4 * size)


def test_our_streams_are_aes_256_of_the_counters_from_zero() -> None:
    """SP 800-38A, section 6.5, with T_1 = 0 and the standard incrementing function over all 128 bits."""
    key, blocks = hashlib.sha256(b"key").digest(), 300  # more than one byte of the counter
    counters = b"".join(number.to_bytes(16, "big") for number in range(blocks))
    expected = Cipher(algorithms.AES256(key), modes.ECB()).encryptor().update(counters)
    assert crypto.keystream(key, 16 * blocks) == expected
    assert crypto.keystream(key, 21) == expected[:21]
    replayed = crypto.ReplayRandomness(b"seed")
    seed = hashlib.sha256(b"gradtf/sa/v1/replay" + b"seed").digest()
    assert replayed(5) + replayed(27) == crypto.keystream(seed, 32)
    for dtype in ("<u2", "<u4"):
        words = np.zeros(16 * (blocks - 2) // np.dtype(dtype).itemsize, dtype=dtype)
        add_masks(words, plus=[key])
        assert words.tobytes() == expected[32:]  # masks start at counter 2
        add_masks(words, minus=[key])
        assert not words.any()


def test_low_order_and_uncanonical_keys_are_refused() -> None:
    for low in (bytes(32), bytes([1]) + bytes(31)):
        with pytest.raises(BadKey):
            crypto.x25519(A, low)
    public = crypto.x25519_public(B)
    twin = public[:-1] + bytes([public[-1] | 0x80])  # X25519 ignores the top bit: same key, other bytes
    assert crypto.x25519(A, twin) == crypto.x25519(A, public)
    crypto.check_x25519_public(public)
    for bad in (twin, public[:-1], (2**255 - 19).to_bytes(32, "little")):
        with pytest.raises(BadKey):
            crypto.check_x25519_public(bad)


def test_every_usage_has_its_own_label() -> None:
    labels = [value for name, value in vars(crypto).items() if name.startswith("USAGE_")]
    assert len(labels) == len(set(labels)) > 20
    assert all(label.startswith(b"gradtf/sa/v1/") for label in labels)
    outputs = {crypto.derive(b"secret", C, label) for label in labels}
    assert len(outputs) == len(labels)
    assert crypto.derive(b"s", C, b"ab", b"c") != crypto.derive(b"s", C, b"a", b"bc")
    assert crypto.digest(b"ab", b"c") != crypto.digest(b"a", b"bc")


def test_pair_keys_agree_and_belong_to_the_pair() -> None:
    public_a, public_b = crypto.x25519_public(A), crypto.x25519_public(B)
    assert crypto.pair_mask_key(A, public_b, C, 4, 7) == crypto.pair_mask_key(B, public_a, C, 7, 4)
    assert crypto.pair_mask_key(A, public_b, C, 4, 7) != crypto.pair_mask_key(A, public_b, C, 4, 8)
    assert crypto.pair_mask_key(A, public_b, C, 4, 7) != crypto.pair_mask_key(A, public_b, bytes(32), 4, 7)


def test_the_room_imports_neither_torch_nor_flower() -> None:
    code = "import sys, gradtf_fl.secagg; sys.exit(len({'torch', 'flwr', 'pydantic', 'click'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
