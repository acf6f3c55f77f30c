"""The key pair that proves to the SuperLink who a SuperNode is: ECDSA P-384 in OpenSSH's format."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gradtf_fl.errors import ConfigError
from gradtf_fl.file_names import NODE_KEY
from gradtf_fl.files import PRIVATE, PUBLIC, place_new, read_private, replace_file

CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


def write_node_key(folder: Path, name: str = NODE_KEY) -> tuple[Path, Path]:
    """(FOLDER/NAME, FOLDER/NAME.pub): the private key (0600) for ``flower-supernode``, the public one for the provider.

    Raises:
        ConfigError: there is a private key already, which is never overwritten, or the folder can't be written.
    """
    private, public = folder / name, folder / f"{name}.pub"
    taken = ConfigError(f"{private}: a node key already exists there and is never overwritten")
    if private.exists():
        raise taken
    key = ec.generate_private_key(ec.SECP384R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    try:
        place_new(private, pem, PRIVATE)
        replace_file(public, f"{_line(key.public_key())}\n".encode(), PUBLIC)
    except FileExistsError as error:
        raise taken from error
    except OSError as error:
        raise ConfigError(f"{folder}: the node key can't be written there ({error.strerror})") from error
    return private, public


def public_of(private: Path) -> str:
    """The public key as a line of OpenSSH, ``ecdsa-sha2-nistp384 AAAA...``: what ``flwr supernode register`` takes.

    Raises:
        ConfigError: the file is missing, readable by others, encrypted, or no NIST elliptic curve key of OpenSSH.
    """
    pem = read_private(private, "node key")
    try:
        key = serialization.load_ssh_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{private}: not an unencrypted private key in OpenSSH's format") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, CURVES):
        raise ConfigError(
            f"{private}: not a NIST elliptic curve key, which SuperNodes need (ssh-keygen -t ecdsa -b 384)"
        )
    return _line(key.public_key())


def _line(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
