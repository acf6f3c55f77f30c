"""Identities on disk, the canonical roster, canonical bytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from gradtf_fl.errors import ConfigError
from gradtf_fl.secagg import Identity, MalformedMessage, Roster, UnknownIdentity
from gradtf_fl.secagg.crypto.primitives import verify
from gradtf_fl.secagg.wire.encoding import Reader, Writer


def test_identity_round_trip(tmp_path: Path) -> None:
    identity, path = Identity.generate(), tmp_path / "identity.key"
    identity.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["identity.key"]
    loaded = Identity.load(path)
    assert loaded.public == identity.public
    verify(identity.public, loaded.sign(b"m"), b"m")
    with pytest.raises(ConfigError, match="never overwritten"):
        Identity.generate().save(path)
    assert Identity.load(path).public == identity.public
    assert identity.private.private_bytes_raw().hex() not in repr(identity)


def test_bad_identity_files(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    with pytest.raises(ConfigError, match="cannot read"):
        Identity.load(path)
    path.write_bytes(b"junk")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="not an unencrypted PEM"):
        Identity.load(path)
    pem = generate_private_key(SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(pem)
    with pytest.raises(ConfigError, match="not an Ed25519"):
        Identity.load(path)
    path.unlink()
    Identity.generate().save(path)
    path.chmod(0o640)
    if os.name == "posix":
        with pytest.raises(ConfigError, match="chmod 600"):
            Identity.load(path)


def test_roster_does_not_depend_on_the_order_of_its_keys() -> None:
    keys = [Identity.generate().public for _ in range(4)]
    one, two = Roster(tuple(keys)), Roster(tuple(reversed(keys)))
    assert (one, one.hash) == (two, two.hash)
    assert [one.index(key) for key in sorted(keys)] == [0, 1, 2, 3]
    assert Roster(tuple(keys[:3])).hash != one.hash
    with pytest.raises(UnknownIdentity):
        Roster(tuple(keys[:3])).index(keys[3])


@pytest.mark.parametrize("keys", [(), (bytes(32),), (bytes(32), bytes(32)), (bytes(31), bytes([1]) * 32)])
def test_bad_rosters(keys: tuple[bytes, ...]) -> None:
    with pytest.raises(ConfigError, match="roster"):
        Roster(keys)


def test_fields_round_trip() -> None:
    data = Writer().u8(7).u32(8).u64(9).f64(-0.5).blob(b"ab").text("é").indices((1, 5, 6)).done()
    assert data[:5] == b"\x07\0\0\0\x08"
    reader = Reader(data)
    assert (reader.u8(), reader.u32(), reader.u64(), reader.f64()) == (7, 8, 9, -0.5)
    assert (reader.blob(), reader.text(), reader.indices()) == (b"ab", "é", (1, 5, 6))
    reader.done()
    with pytest.raises(MalformedMessage):
        reader.u8()


@pytest.mark.parametrize("values", [(1, 1), (2, 1)])
def test_sets_are_strictly_increasing(values: tuple[int, ...]) -> None:
    with pytest.raises(MalformedMessage):
        Reader(Writer().indices(values).done()).indices()


def test_trailing_bytes_and_bad_text() -> None:
    with pytest.raises(MalformedMessage, match="too many"):
        Reader(b"x").done()
    with pytest.raises(MalformedMessage, match="UTF-8"):
        Reader(Writer().blob(b"\xff").done()).text()
