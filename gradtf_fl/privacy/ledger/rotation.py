"""Handing a ledger over to another key.

A ``rotate`` row is signed by the old key like every row, and its body holds the new key's own signature over the
place in the chain. So neither key can be put there by somebody else: without the old key the row does not verify,
without the new one nobody could continue.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ROTATE = "rotate"
_PROOF_DOMAIN = b"gradtf-fl/ledger/rotate/v1"


def rotation_document(new_key: Ed25519PrivateKey, previous: bytes, when: str) -> dict[str, Any]:
    """Body of the ``rotate`` row that follows the row whose hash is ``previous`` (32 bytes)."""
    public = new_key.public_key().public_bytes_raw()
    return {"public_key": public.hex(), "proof": new_key.sign(_PROOF_DOMAIN + previous + public).hex(), "when": when}


def rotated_key(body: str, previous: bytes) -> bytes:
    """The key (32 bytes) that a ``rotate`` row after ``previous`` hands over to.

    Raises:
        ValueError: the body is of another form, or the new key did not sign this place in the chain.
    """
    try:
        document = json.loads(body)
    except RecursionError as error:
        raise ValueError("the body is nested too deeply") from error
    if not isinstance(document, Mapping) or not all(isinstance(document.get(k), str) for k in ("public_key", "proof")):
        raise ValueError("public_key or proof is missing")
    public = bytes.fromhex(document["public_key"])
    verifier = Ed25519PublicKey.from_public_bytes(public)
    try:
        verifier.verify(bytes.fromhex(document["proof"]), _PROOF_DOMAIN + previous + public)
    except InvalidSignature:
        raise ValueError("the new key did not sign it") from None
    return public
