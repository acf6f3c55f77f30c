"""A ledger on a file system without shared memory, as NFS and Lustre are: SQLite refuses its write-ahead log there.

SQLite's own `unix-dotfile` VFS has none either, so it stands for them.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradtf_fl.privacy import Ledger, read_ledger
from gradtf_fl.privacy.ledger import store

from .conftest import EVENT


@pytest.fixture
def no_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = store._connect

    def connect(path: Path, options: str, **more: bool) -> sqlite3.Connection:
        return plain(path, options if "immutable" in options else f"{options}&vfs=unix-dotfile", **more)

    monkeypatch.setattr(store, "_connect", connect)


@pytest.mark.usefixtures("no_shared_memory")
def test_a_ledger_works_without_shared_memory(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    assert not store.keeps_log(tmp_path)
    path = tmp_path / "ledger.sqlite"
    for round in (1, 2):
        with Ledger.open(path, identity_key=key, organization="clinic", delta=1e-5, budget=9.0) as ledger:
            number = ledger.reserve("run", round, 0, EVENT)
            assert not path.with_name("ledger.sqlite-wal").exists()
            ledger.settle(number, EVENT)
            assert ledger._session._file._connection is not None
            (mode,) = ledger._session._file._connection.execute("PRAGMA synchronous").fetchone()
            assert mode == 3  # EXTRA: every commit is on the disk, and so is the end of its journal
    found = read_ledger(path)
    assert not found.problems
    assert [charge.state for charge in found.content.charges] == ["settled"] * 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ledger.head", "ledger.sqlite"]


def test_with_it_the_log_is_kept(tmp_path: Path) -> None:
    assert store.keeps_log(tmp_path)
    assert not list(tmp_path.iterdir())
