"""Published vectors for the primitives as this protocol calls them, and the separation of its labels."""

from __future__ import annotations

import hashlib
import hmac
import subprocess
import sys

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from gradtf_fl.secagg import BadKey, BadSignature, UndecryptableShare
from gradtf_fl.secagg import primitives as crypto
from gradtf_fl.secagg.masks import add_masks

A = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
B = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
C = hashlib.sha256(b"a round").digest()


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


def test_x25519_rfc7748_section_6_1() -> None:
    public_a, public_b = crypto.x25519_public(A), crypto.x25519_public(B)
    assert public_a.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert public_b.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert crypto.x25519(A, public_b).hex() == crypto.x25519(B, public_a).hex() == shared


def test_ed25519_rfc8032_test_2() -> None:
    secret = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    public = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    signature = bytes.fromhex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert Ed25519PrivateKey.from_private_bytes(secret).sign(b"\x72") == signature
    crypto.verify(public, signature, b"\x72")
    with pytest.raises(BadSignature):
        crypto.verify(public, signature, b"\x73")
    with pytest.raises(BadSignature):
        crypto.verify(public, signature[:-1], b"\x72")


def test_hkdf_rfc5869_case_1_and_its_use() -> None:
    info = bytes(range(0xF0, 0xFA))
    okm = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    assert hkdf_by_hand(b"\x0b" * 22, bytes(range(13)), info, 42).hex() == okm
    for size in (32, 80):
        ours = crypto.derive(b"secret", C, b"usage", b"context", size)
        assert ours == hkdf_by_hand(b"secret", C, b"\x05usagecontext", size)


def test_chacha20poly1305_rfc8439_section_2_8_2() -> None:
    text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
    text += b"sunscreen would be it."
    sealed = ChaCha20Poly1305(bytes(range(0x80, 0xA0))).encrypt(
        bytes.fromhex("070000004041424344454647"), text, bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    )
    assert sealed[:16].hex() == "d31a8d34648e60db7b86afbc53ef7ec2"
    assert sealed[-16:].hex() == "1ae10b594f09e26a7e902ecbd0600691"


def test_share_channel_is_rfc8439_under_a_derived_key() -> None:
    sealed = crypto.seal(A, crypto.x25519_public(B), C, 3, 9, b"shares")
    shared = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
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


@pytest.mark.parametrize(
    ("key", "first_block"),
    [  # AESAVS known answers for AES-256 of the zero block, which is the first counter block
        (
            "c47b0294dbbbee0fec4757f22ffeee3587ca4730c3d33b691df38bab076bc558",
            "46f2fb342d6f0ab477476fc501242c5f",
        ),
        (
            "8000000000000000000000000000000000000000000000000000000000000000",
            "e35a6dcb19b201a01ebcfa8aa22b5759",
        ),
    ],
)
def test_masks_are_aes_256_ctr(key: str, first_block: str) -> None:
    assert crypto.keystream(bytes.fromhex(key), 16).hex() == first_block
    words = np.zeros(4, dtype="<u4")
    add_masks(words, plus=[bytes.fromhex(key)])
    assert words.tobytes().hex() == first_block


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
    assert len(labels) == len(set(labels)) == 16
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
