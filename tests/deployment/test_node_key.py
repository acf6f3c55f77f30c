"""SuperNode keys: OpenSSH and Flower read them, and nobody else does."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from gradtf_fl.deployment.node_key import public_of, write_node_key
from gradtf_fl.errors import ConfigError


def test_the_pair_belongs_together_and_the_private_half_is_private(tmp_path: Path) -> None:
    private, public = write_node_key(tmp_path)
    assert (private.name, public.name) == ("supernode", "supernode.pub")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert public.read_text() == public_of(private) + "\n"
    key = serialization.load_ssh_private_key(private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP384R1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["supernode", "supernode.pub"]


def test_openssh_reads_it(tmp_path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("OpenSSH is not installed")
    private, _ = write_node_key(tmp_path, "node")
    done = subprocess.run(["ssh-keygen", "-y", "-f", private], capture_output=True, text=True, check=True)
    assert done.stdout.split()[:2] == public_of(private).split()


def test_flower_takes_the_public_half_as_a_supernode_key(tmp_path: Path) -> None:
    """The same steps as ``flwr supernode register``."""
    from clients.flower_private import public_key_to_bytes

    _, public = write_node_key(tmp_path)
    key = serialization.load_ssh_public_key(public.read_bytes())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert public_key_to_bytes(key).startswith(b"-----BEGIN PUBLIC KEY-----")


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    private, _ = write_node_key(tmp_path)
    before = private.read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        write_node_key(tmp_path)
    assert private.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be written"):
        write_node_key(tmp_path / "missing")


def test_bad_private_keys_are_told(tmp_path: Path) -> None:
    private, _ = write_node_key(tmp_path)
    plain = serialization.NoEncryption()
    form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
    key = serialization.load_ssh_private_key(private.read_bytes(), None)
    cases = {
        "not an unencrypted": key.private_bytes(form[0], serialization.PrivateFormat.PKCS8, plain),
        "OpenSSH's format": b"nothing",
        "NIST": ed25519.Ed25519PrivateKey.generate().private_bytes(*form, plain),
    }
    for words, content in cases.items():
        private.write_bytes(content)
        with pytest.raises(ConfigError, match=words):
            public_of(private)
    private.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        public_of(private)
    private.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        public_of(private)
