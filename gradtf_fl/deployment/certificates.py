"""A federation's own certificate authority (RFC 5280), and server certificates for Flower's SuperLink.

DIR/ca.crt            the authority: every organization gets it (PEM, ECDSA P-256)
DIR/ca.key            its key, 0600; stays off the server
OUT/server.crt        link to .issued/server.crt
OUT/server.key        link to .issued/server.key, 0600
OUT/.issued           link to .issued-SERIAL, the one folder that holds the pair

Certificate and key are renewed together by replacing the link .issued: whoever is killed on the way leaves the old
pair or the new one, never a key with another key's certificate.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gradtf_fl.deployment.certificate_checks import check
from gradtf_fl.deployment.host_names import alternative_names, shown_names
from gradtf_fl.errors import ConfigError
from gradtf_fl.file_names import CA_CERTIFICATE
from gradtf_fl.files import PRIVATE, PUBLIC, place_new, read_private, refuse_shared, replace_link, write_synced

__all__ = ["Authority", "Issued", "check", "fingerprint", "init_authority", "issue_server", "load_authority"]

CA_KEY = "ca.key"
SERVER_CERTIFICATE, SERVER_KEY = "server.crt", "server.key"
ISSUED = ".issued"
SUBJECT = "Flower SuperLink"  # for people; hosts are matched with the alternative names alone
BACKDATED = timedelta(minutes=5)  # for clocks that differ
MAX_DAYS = 36_500


@dataclass(frozen=True)
class Authority:
    """A certificate authority on disk: its two files and what they hold."""

    certificate_path: Path
    key_path: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True)
class Issued:
    """A server's new certificate.

    Attributes:
        hosts: every name and address in it, loopback included.
        not_after: its last moment (UTC).
        shortened: it was asked for longer than the authority itself is valid.
    """

    certificate_path: Path
    key_path: Path
    hosts: tuple[str, ...]
    not_after: datetime
    fingerprint: str
    shortened: bool


def fingerprint(pem: bytes | str) -> str:
    """SHA-256 of the first certificate in ``pem``, colon-separated upper-case hex, as ``openssl x509`` prints it.

    Raises:
        ConfigError: it holds no certificate.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode() if isinstance(pem, str) else pem)
    except ValueError as error:
        raise ConfigError("no PEM certificate") from error
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def init_authority(
    folder: Path, name: str = "gradtf federation", days: int = 3650, now: datetime | None = None
) -> Authority:
    """A new authority in ``folder`` (made, 0700, where it is missing).

    Args:
        name: common name, 1 to 64 characters.
        days: validity.
        now: issuing time (default: the clock's).

    Raises:
        ConfigError: there is one already, which is never overwritten, or name or days are of no use; all told.
    """
    certificate_path, key_path = folder / CA_CERTIFICATE, folder / CA_KEY
    problems = _days_problem(days)
    if not 1 <= len(name) <= 64 or not name.isprintable() or not name.strip():
        problems.append("--name: expected 1 to 64 printable characters")
    if os.path.lexists(certificate_path):
        problems.append(f"{certificate_path}: exists, and an authority is never overwritten; choose another folder")
    elif os.path.lexists(key_path):
        problems.append(f"{key_path}: a key without {CA_CERTIFICATE}, of an init that was cut off? Move it away first")
    if problems:
        raise ConfigError(problems)

    key = ec.generate_private_key(ec.SECP256R1())
    issued = now or datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(issued - BACKDATED)
        .not_valid_after(issued + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    authority = Authority(certificate_path, key_path, certificate, key)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        refuse_shared(folder)
        place_new(key_path, _key_pem(key), PRIVATE)
        try:
            place_new(certificate_path, authority.pem, PUBLIC)
        except BaseException:
            key_path.unlink()
            raise
    except OSError as error:
        raise ConfigError(f"{folder}: the authority can't be written there ({error.strerror})") from error
    return authority


def load_authority(folder: Path) -> Authority:
    """The authority in ``folder``.

    Raises:
        ConfigError: a file is missing, damaged or readable by others, or the two do not belong together.
    """
    certificate_path, key_path = folder / CA_CERTIFICATE, folder / CA_KEY
    problems = []
    try:
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
    except OSError as error:
        problems.append(f"{certificate_path}: cannot be read ({error.strerror}); `gradtf certs init` makes it")
    except ValueError:
        problems.append(f"{certificate_path}: no PEM certificate")
    try:
        key = serialization.load_pem_private_key(read_private(key_path, "authority's key"), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            problems.append(f"{key_path}: not a key that `gradtf certs init` made")
    except ConfigError as error:
        problems += error.problems
    except (ValueError, TypeError, UnsupportedAlgorithm):
        problems.append(f"{key_path}: not an unencrypted PEM private key")
    if problems:
        raise ConfigError(problems)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    if certificate.public_key() != key.public_key():
        raise ConfigError(f"{folder}: {CA_KEY} is not the key of {CA_CERTIFICATE}")
    return Authority(certificate_path, key_path, certificate, key)


def issue_server(folder: Path, hosts: Iterable[str], out: Path, days: int = 365, now: datetime | None = None) -> Issued:
    """A new key and a certificate for a server that clients reach as ``hosts``; an earlier pair in ``out`` is replaced.

    Args:
        folder: the authority's.
        hosts: names and IP addresses; loopback is always added.
        days: validity, which ends
            with the authority's in any case.

    Raises:
        ConfigError: all that is wrong with hosts, days, the authority's files and ``out``.
    """
    moment = now or datetime.now(UTC)
    problems = _days_problem(days) + _occupied(out)
    authority, names = None, []
    try:
        names = alternative_names(hosts)
    except ConfigError as error:
        problems += error.problems
    try:
        authority = load_authority(folder)
        problems += _not_now(authority, moment)
    except ConfigError as error:
        problems += error.problems
    if problems or authority is None:
        raise ConfigError(problems)

    key = ec.generate_private_key(ec.SECP256R1())
    wanted = moment + timedelta(days=days)
    end = min(wanted, authority.certificate.not_valid_after_utc)
    certificate = _server_certificate(authority, key, names, moment - BACKDATED, end)
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    try:
        _install(out, f"{certificate.serial_number:x}", pem, _key_pem(key))
    except OSError as error:
        raise ConfigError(f"--out {out}: can't be written ({error.strerror})") from error
    shown = tuple(shown_names(names))
    paths = out / SERVER_CERTIFICATE, out / SERVER_KEY
    return Issued(*paths, shown, certificate.not_valid_after_utc, fingerprint(pem), end < wanted)


def _server_certificate(
    authority: Authority, key: ec.EllipticCurvePrivateKey, names: list[x509.GeneralName], start: datetime, end: datetime
) -> x509.Certificate:
    """A certificate for ``key``, signed by the authority, never valid outside the authority's own time."""
    issuer = authority.certificate
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    authority_key = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SUBJECT)])
    return (
        x509.CertificateBuilder(issuer.subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(max(start, issuer.not_valid_before_utc))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(authority_key, critical=False)
        .sign(authority.key, hashes.SHA256())
    )


def _not_now(authority: Authority, moment: datetime) -> list[str]:
    """Why the authority may not sign at ``moment``."""
    path, certificate = authority.certificate_path, authority.certificate
    if moment >= certificate.not_valid_after_utc:
        return [f"{path}: expired on {certificate.not_valid_after_utc:%Y-%m-%d}; make a new authority"]
    if moment < certificate.not_valid_before_utc:
        return [
            f"{path}: not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC, and this machine's clock "
            f"says {moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC; set the clock (NTP)"
        ]
    return []


def _occupied(out: Path) -> list[str]:
    """Files that another tool put where ours would go; our own are links into ``.issued`` and may be replaced."""
    if os.path.lexists(out) and not out.is_dir():
        return [f"--out {out}: not a folder"]
    return [
        f"{path}: was not written by `gradtf certs issue` and is not overwritten; move it away or choose another folder"
        for path in (out / SERVER_CERTIFICATE, out / SERVER_KEY, out / ISSUED)
        if os.path.lexists(path) and not (path.is_symlink() and os.readlink(path).startswith(ISSUED))
    ]


def _install(out: Path, serial: str, certificate: bytes, key: bytes) -> None:
    """Put a new pair in place; the last step that matters is one rename, of the link ``.issued``."""
    out.mkdir(mode=0o755, parents=True, exist_ok=True)
    refuse_shared(out)
    pair = out / f"{ISSUED}-{serial}"
    pair.mkdir(mode=0o755)
    write_synced(pair / SERVER_KEY, key, PRIVATE)
    write_synced(pair / SERVER_CERTIFICATE, certificate, PUBLIC)
    if os.geteuid() == 0:  # the folder's owner runs the SuperLink, and has to read a key that root renews
        owner = out.stat()
        for path in (pair, pair / SERVER_KEY, pair / SERVER_CERTIFICATE):
            os.chown(path, owner.st_uid, owner.st_gid)
    replace_link(out / ISSUED, pair.name)
    for name in (SERVER_CERTIFICATE, SERVER_KEY):
        if not (out / name).is_symlink() or os.readlink(out / name) != f"{ISSUED}/{name}":
            replace_link(out / name, f"{ISSUED}/{name}")
    for old in out.glob(f"{ISSUED}-*"):
        if old != pair:
            shutil.rmtree(old)


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _days_problem(days: int) -> list[str]:
    return [] if 1 <= days <= MAX_DAYS else [f"--days {days}: expected 1 to {MAX_DAYS}"]
