"""A ledger, and the key that signs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradtf_fl.privacy import DpEvent, Ledger

EVENT = DpEvent(sigma=1.75, q=1 / 16, steps=50)
"""Epsilon at 1e-5 after one, two, three: 1.219, 1.697, 2.078."""


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture
def ledger(tmp_path: Path, key: Ed25519PrivateKey) -> Ledger:
    """Budget 2.0 at delta 1e-5."""
    return Ledger.open(tmp_path / "ledger.sqlite", identity_key=key, organization="clinic", delta=1e-5, budget=2.0)
