"""Files of external CAs in the checks: chains, sloppy signers, wrong uses, wrong keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gradtf_fl.deployment.certificates import check, init_authority, issue_server
from tests.deployment.tls import handshake

NOW = datetime.now(UTC)
HOST = "superlink.example.org"
NAMES = x509.SubjectAlternativeName([x509.DNSName(HOST), x509.DNSName("localhost")])
SERVER = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])


def proper_chain(folder: Path) -> tuple[Path, Path, Path]:
    """RSA root, RSA intermediate, RSA server, each with the extensions that RFC 5280 wants."""
    keys = [rsa.generate_private_key(65537, 2048) for _ in range(3)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in ("root", "between", "server")]
    hosts = [x509.DNSName(HOST), x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    pems = []
    for number, signer in enumerate((0, 0, 1)):
        authority = number < 2
        identifier = x509.SubjectKeyIdentifier.from_public_key(keys[number].public_key())
        usage = x509.KeyUsage(not authority, False, False, False, False, authority, authority, False, False)
        builder = (
            x509.CertificateBuilder(
                names[signer], names[number], keys[number].public_key(), x509.random_serial_number()
            )
            .not_valid_before(NOW - timedelta(days=1))
            .not_valid_after(NOW + timedelta(days=99))
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(identifier, critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[signer].public_key()), critical=False
            )
        )
        if not authority:
            builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
            builder = builder.add_extension(SERVER, critical=False)
        pems.append(builder.sign(keys[signer], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    paths = folder / "root.pem", folder / "chain.pem", folder / "key.pem"
    paths[0].write_bytes(pems[0])
    paths[1].write_bytes(pems[2] + pems[1])
    form = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    paths[2].write_bytes(keys[2].private_bytes(*form))
    paths[2].chmod(0o600)
    return paths


def written(folder: Path, root: trustme.CA, leaf: trustme.LeafCert, chain: bool = True) -> tuple[Path, Path, Path]:
    """(CA, certificate with or without its intermediates, key)."""
    paths = folder / "root.pem", folder / "chain.pem", folder / "key.pem"
    root.cert_pem.write_to_path(paths[0])
    pems = leaf.cert_chain_pems if chain else leaf.cert_chain_pems[:1]
    paths[1].write_bytes(b"".join(pem.bytes() for pem in pems))
    leaf.private_key_pem.write_to_path(paths[2])
    paths[2].chmod(0o600)
    return paths


@pytest.mark.parametrize("kind", [trustme.KeyType.RSA, trustme.KeyType.ECDSA])
def test_a_chain_with_an_intermediate(tmp_path: Path, kind: trustme.KeyType) -> None:
    """trustme marks the alternative names critical, which public CAs may not; TLS comes about all the same."""
    root = trustme.CA(key_type=kind)
    leaf = root.create_child_ca(key_type=kind).issue_cert(HOST, "localhost", "127.0.0.1", key_type=kind)
    files = written(tmp_path, root, leaf)
    (finding,) = [f for f in check(*files, [HOST], NOW) if f.level != "ok"]
    assert (finding.level, finding.what) == ("warn", "chain")
    assert "subjectAltName MUST NOT be critical" in finding.found
    assert handshake(*files, HOST) == ""


def test_a_chain_after_the_rules_is_ok(tmp_path: Path) -> None:
    files = proper_chain(tmp_path)
    found = check(*files, [HOST], NOW)
    assert [f for f in found if f.level != "ok"] == []
    assert found[0].found == "3 certificates, up to the CA"
    assert [f.what for f in found if f.what.startswith("dates")] == [
        "dates of the certificate",
        "dates of the intermediate 1",
        "dates of the CA",
    ]
    assert handshake(*files, HOST) == ""


def test_only_the_roots_in_use_are_dated(tmp_path: Path) -> None:
    """A bundle with an expired root that signed nothing here is fine; chains take valid certificates first."""
    files = proper_chain(tmp_path)
    stale = init_authority(tmp_path / "stale", days=1, now=NOW - timedelta(days=9))
    files[0].write_bytes(stale.pem + files[0].read_bytes())
    assert [f for f in check(*files, [HOST], NOW) if f.level != "ok"] == []
    later = check(*files, [HOST], NOW + timedelta(days=200))
    assert [(f.level, f.what) for f in later if f.level != "ok"] == [
        ("fail", "dates of the certificate"),
        ("fail", "dates of the intermediate 1"),
        ("fail", "dates of the CA"),
    ]


def test_a_missing_intermediate_breaks_the_chain(tmp_path: Path) -> None:
    root = trustme.CA()
    leaf = root.create_child_ca().issue_cert(HOST, "localhost", "127.0.0.1")
    files = written(tmp_path, root, leaf, chain=False)
    assert [f.what for f in check(*files, [HOST], NOW) if f.level == "fail"] == ["chain"]
    assert handshake(*files, HOST) != ""


def test_loopback_missing_is_a_warning(tmp_path: Path) -> None:
    root = trustme.CA()
    files = written(tmp_path, root, root.issue_cert(HOST))
    assert ("loopback", "warn") in [(f.what, f.level) for f in check(*files, [HOST], NOW)]


def signed(
    folder: Path,
    *extensions: x509.ExtensionType,
    authority: tuple[x509.ExtensionType, ...] = (x509.BasicConstraints(True, None),),
) -> tuple[Path, Path, Path]:
    """A sloppy CA's files: only these extensions."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in ("sloppy CA", "server")]
    paths = folder / "sloppy.pem", folder / "leaf.pem", folder / "leaf.key"
    for number, held in enumerate((authority, extensions)):
        builder = x509.CertificateBuilder(
            names[0], names[number], keys[number].public_key(), x509.random_serial_number()
        )
        builder = builder.not_valid_before(NOW - timedelta(days=1)).not_valid_after(NOW + timedelta(days=99))
        for extension in held:
            builder = builder.add_extension(extension, critical=False)
        certificate = builder.sign(keys[0], hashes.SHA256())
        paths[number].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    paths[2].write_bytes(pem)
    paths[2].chmod(0o600)
    return paths


def levels(files: tuple[Path, Path, Path]) -> dict[str, str]:
    return {f.what: f.level for f in check(*files, [HOST], NOW) if f.level != "ok" and f.what != "loopback"}


def test_sloppy_but_sound_chains_are_a_warning(tmp_path: Path) -> None:
    assert levels(signed(tmp_path, NAMES, SERVER)) == {"chain": "warn"}
    assert levels(signed(tmp_path, NAMES)) == {"chain": "warn", "use": "warn"}


def test_a_certificate_that_clients_trust_itself_is_a_warning(tmp_path: Path) -> None:
    """OpenSSL takes it: a trusted certificate needs no signer."""
    files = signed(tmp_path, NAMES, SERVER)
    assert levels((files[1], *files[1:])) == {"chain": "warn"}
    assert handshake(files[1], files[1], files[2], HOST) == ""


def test_a_certificate_for_clients_is_none_for_servers(tmp_path: Path) -> None:
    files = signed(tmp_path, NAMES, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]))
    assert levels(files)["use"] == "fail"


def test_a_certificate_without_hosts_fails(tmp_path: Path) -> None:
    assert levels(signed(tmp_path, SERVER)) == {"hosts": "fail"}


def test_a_signer_that_is_no_authority_signs_nothing(tmp_path: Path) -> None:
    assert levels(signed(tmp_path, NAMES, SERVER, authority=()))["chain"] == "fail"
    assert levels(signed(tmp_path, NAMES, SERVER, authority=(x509.BasicConstraints(False, None),)))["chain"] == "fail"


def test_findings_about_the_key(tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    init_authority(ca)
    issued = issue_server(ca, [HOST], tmp_path / "tls")
    other = issue_server(ca, [HOST], tmp_path / "other")
    key = serialization.load_pem_private_key(other.key_path.read_bytes(), None)
    sealed = serialization.BestAvailableEncryption(b"secret")
    cases = {
        "belongs to another": other.key_path.read_bytes(),
        "is encrypted": key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, sealed),
        "no PEM private key": b"nothing",
    }
    for words, content in cases.items():
        path = tmp_path / "a.key"
        path.write_bytes(content)
        path.chmod(0o600)
        (finding,) = [
            f for f in check(ca / "ca.crt", issued.certificate_path, path, [], datetime.now(UTC)) if f.level != "ok"
        ]
        assert (finding.level, finding.what) == ("fail", "key")
        assert words in finding.found
    issued.key_path.chmod(0o604)
    found = check(ca / "ca.crt", issued.certificate_path, issued.key_path, [], datetime.now(UTC))
    (finding,) = [f for f in found if f.level != "ok"]
    assert finding.remedy == f"chmod 600 {issued.key_path}"
