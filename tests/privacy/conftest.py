"""A tiny model of the embedded pair's shape (untrained), House Rules rows, and a ledger's key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from experiments.embedded.pretrain_pair import build_model
from gradtf_fl.adapters import AdapterSpec, attach
from gradtf_fl.privacy import DpEvent, Ledger
from gradtf_fl.tasks import TokenRows, house_rules

EVENT = DpEvent(sigma=1.75, q=1 / 16, steps=50)
"""Epsilon at 1e-5 after one, two, three: 1.219, 1.697, 2.078."""


def adapter_model(seed: int = 0, train_a: bool = True) -> torch.nn.Module:
    return attach(build_model("tiny", seed), AdapterSpec(train_a=train_a))


@pytest.fixture
def model() -> torch.nn.Module:
    return adapter_model()


@pytest.fixture(scope="session")
def rows() -> TokenRows:
    """128 rows of 11 tokens, loss on the last two."""
    pairs = house_rules.code_pairs("private")[:128]
    tokens = house_rules.encode(np.full(128, 7), pairs[:, 0], pairs[:, 1], np.zeros((128, 3), bool))
    ids = torch.from_numpy(tokens)
    labels = ids.clone()
    labels[:, : house_rules.PROMPT_TOKENS] = -100
    return TokenRows(ids, torch.ones_like(ids), labels)


@pytest.fixture(scope="session")
def ragged_rows(rows: TokenRows) -> TokenRows:
    """The first eight rows, right-padded by 0..3 tokens, prompts and answers of different lengths."""
    ids, mask, labels = (
        rows.input_ids[:8].clone(),
        rows.attention_mask[:8].clone(),
        rows.input_ids[:8].clone(),
    )
    for i in range(8):
        labels[i, : 5 + i % 4] = -100
        end = 11 - i % 4
        ids[i, end:], mask[i, end:], labels[i, end:] = 0, 0, -100
    return TokenRows(ids, mask, labels)


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture
def ledger(tmp_path: Path, key: Ed25519PrivateKey) -> Ledger:
    """Budget 2.0 at delta 1e-5."""
    return Ledger.open(tmp_path / "ledger.sqlite", identity_key=key, organization="clinic", delta=1e-5, budget=2.0)
