"""Whether a server's certificate, its key and a CA work together: chain, hosts, dates, key, use, file mode.

The files may come from anywhere: chains with intermediates, RSA keys, several roots in one file. A chain is built by
`cryptography.x509.verification` (the rules of public CAs); where only those rules stand against it, and all signatures
hold, that is a warning: OpenSSL, which Flower uses, takes such a chain.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from gradtf_fl.deployment.findings import Finding
from gradtf_fl.deployment.host_names import address_of, covers, host_problem, shown_names
from gradtf_fl.errors import ConfigError

WARN_BEFORE = timedelta(days=30)
RENEW = "issue it again (`gradtf certs issue`, or your CA) and restart the SuperLink"
MAX_CHAIN = 8

E = TypeVar("E", bound=x509.ExtensionType)


def check(ca: Path, cert: Path, key: Path, hosts: Iterable[str], now: datetime) -> list[Finding]:
    """All findings about a server's files, good ones too.

    Args:
        ca: PEM with the root or roots that clients are given.
        cert: PEM of the server's certificate, then its
            intermediates. hosts: names and addresses that clients use. now: moment to check for (with a time zone).

    Raises:
        ConfigError: every file that can't be read or holds no certificate, and every malformed host.
    """
    problems: list[str] = []
    loaded: list[list[x509.Certificate]] = []
    for option, path in (("--ca", ca), ("--cert", cert)):
        try:
            loaded.append(_certificates(option, path))
        except ConfigError as error:
            problems += error.problems
    hosts = list(hosts)
    problems += [f"--host {host}: {why}" for host in hosts if (why := host_problem(host))]
    if not key.is_file():
        problems.append(f"--key {key}: no such file")
    if problems:
        raise ConfigError(problems)
    roots, (leaf, *between) = loaded
    chain = _best_path(roots, leaf, between, now)
    findings = [*_chain(roots, leaf, between, chain, now), *_hosts(leaf, hosts)]
    last = len(chain) - 1
    for number, certificate in enumerate(chain or [leaf]):
        name = "certificate" if number == 0 else "CA" if number == last else f"intermediate {number}"
        findings += _dates(name, certificate, now)
    return [*findings, *_use(leaf), *_key(leaf, key), *_mode(key)]


def _certificates(option: str, path: Path) -> list[x509.Certificate]:
    try:
        certificates = x509.load_pem_x509_certificates(path.read_bytes())
        for certificate in certificates:
            _ = certificate.extensions  # parsed here, so that damage is found here
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be read ({error.strerror})") from error
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ConfigError(f"{option} {path}: no PEM certificate in it, or a damaged one") from error
    return certificates


def _chain(
    roots: Sequence[x509.Certificate],
    leaf: x509.Certificate,
    between: Sequence[x509.Certificate],
    path: Sequence[x509.Certificate],
    now: datetime,
) -> Iterator[Finding]:
    """Dates have findings of their own: the chain is checked for a moment at which all of ``path`` was valid."""
    if not path:
        remedy = "give clients the CA that signed it as --root-certificates; an intermediate belongs into --cert"
        issuer = leaf.issuer.rfc4514_string() or "a CA without a name"
        yield Finding("fail", "chain", f"no signatures lead from the certificate (by {issuer}) to the CA", remedy)
        return
    names = _names(leaf)
    subjects = [] if names is None else [name for name in names if isinstance(name, x509.DNSName | x509.IPAddress)]
    if not subjects:
        yield Finding("ok", "chain", "the CA's signature holds")
        return
    moment = max(min(now, *(c.not_valid_after_utc for c in path)), *(c.not_valid_before_utc for c in path))
    verifier = PolicyBuilder().store(Store(list(roots))).time(moment).build_server_verifier(_anyone_of(subjects[0]))
    try:
        length = len(verifier.verify(leaf, list(between)))
    except VerificationError as error:
        why = str(error).removeprefix("validation failed: ").partition(" (encountered")[0]
        remedy = "OpenSSL, which Flower uses, takes it all the same; tell the CA"
        yield Finding("warn", "chain", f"signatures hold, but not every rule for public CAs: {why}", remedy)
    else:
        yield Finding("ok", "chain", f"{length} certificates, up to the CA")


def _anyone_of(name: x509.DNSName | x509.IPAddress) -> x509.DNSName | x509.IPAddress:
    """A host that ``name`` covers: hosts are matched elsewhere."""
    if isinstance(name, x509.DNSName) and name.value.startswith("*."):
        return x509.DNSName("any" + name.value[1:])
    return name


def _best_path(
    roots: Sequence[x509.Certificate], leaf: x509.Certificate, between: Sequence[x509.Certificate], now: datetime
) -> list[x509.Certificate]:
    """From the leaf to a root, over certificates that are valid now where there is such a path; [] without any."""
    valid = [
        [c for c in certificates if c.not_valid_before_utc <= now <= c.not_valid_after_utc]
        for certificates in (roots, between)
    ]
    return _path(valid[0], leaf, valid[1]) or _path(roots, leaf, between)


def _path(
    roots: Sequence[x509.Certificate], below: x509.Certificate, between: Sequence[x509.Certificate], depth: int = 0
) -> list[x509.Certificate]:
    """Signatures of certificates that may sign, up to a root (RFC 5280, 6.1, less the dates)."""
    for root in roots:
        if below == root:
            return [below]
        if _signed(below, root, depth):
            return [below, root]
    if depth < MAX_CHAIN:
        for issuer in between:
            if _signed(below, issuer, depth):
                above = _path(roots, issuer, [c for c in between if c != issuer], depth + 1)
                if above:
                    return [below, *above]
    return []


def _signed(below: x509.Certificate, issuer: x509.Certificate, between: int) -> bool:
    """Whether ``issuer`` is a CA that may have this many CAs below it, and signed ``below``."""
    constraints = _extension(issuer, x509.BasicConstraints)
    usage = _extension(issuer, x509.KeyUsage)
    if constraints is None or not constraints.ca or (usage is not None and not usage.key_cert_sign):
        return False
    if constraints.path_length is not None and constraints.path_length < between:
        return False
    try:
        below.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _hosts(leaf: x509.Certificate, hosts: Sequence[str]) -> Iterator[Finding]:
    names = _names(leaf)
    if names is None or not shown_names(names):
        yield Finding("fail", "hosts", "no subject alternative names: no client accepts it for any host", RENEW)
        return
    listed = ", ".join(shown_names(names))
    missing = [host for host in hosts if not covers(names, host)]
    for host in missing:
        kind = "name" if address_of(host) is None else "address"
        remedy = f"connect by one of its hosts, or issue it with --host {host}"
        yield Finding("fail", f"host {host}", f"the {kind} is not in the certificate, which holds {listed}", remedy)
    if not missing:
        checked = f"{', '.join(hosts)}: among {listed}" if hosts else f"{listed} (none asked for)"
        yield Finding("ok", "hosts", checked)
    if not (covers(names, "localhost") and covers(names, "127.0.0.1")):
        remedy = "issue it with --host localhost --host 127.0.0.1, or start the SuperLink's parts by another host"
        yield Finding("warn", "loopback", "is not among its hosts: Flower's own parts connect over loopback", remedy)


def _dates(what: str, certificate: x509.Certificate, now: datetime) -> Iterator[Finding]:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    place = f"dates of the {what}"
    if now < start:
        ahead = _length(start - now)
        found = f"not valid before {_shown(start)}, {ahead} from now by this machine's clock ({_shown(now)})"
        remedy = f"if it was issued lately, this clock is wrong, behind by {ahead} or more: set it (NTP)"
        yield Finding("fail", place, found, remedy)
    elif now > end:
        found = f"expired on {_shown(end)}, {_length(now - end)} ago by this machine's clock ({_shown(now)})"
        yield Finding("fail", place, found, f"{RENEW}; if the clock is wrong, set it (NTP)")
    elif end - now < WARN_BEFORE:
        yield Finding("warn", place, f"{_length(end - now)} left, expires on {_shown(end)}", RENEW)
    else:
        yield Finding("ok", place, f"until {_shown(end)}, {_length(end - now)} left")


def _use(leaf: x509.Certificate) -> Iterator[Finding]:
    use = _extension(leaf, x509.ExtendedKeyUsage)
    if use is None:
        yield Finding("warn", "use", "extendedKeyUsage is missing: some clients refuse it", RENEW)
    elif ExtendedKeyUsageOID.SERVER_AUTH in use or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in use:
        yield Finding("ok", "use", "server authentication")
    else:
        yield Finding("fail", "use", "is not for servers (extendedKeyUsage lacks serverAuth)", RENEW)


def _key(leaf: x509.Certificate, path: Path) -> Iterator[Finding]:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        yield Finding("fail", "key", f"cannot be read ({error.strerror})", f"run as the owner of {path}")
    except TypeError:
        remedy = f"store it without: openssl pkey -in {path} -out FILE, mode 0600"
        yield Finding("fail", "key", "is encrypted: the SuperLink could not start unattended", remedy)
    except (ValueError, UnsupportedAlgorithm):
        yield Finding("fail", "key", "no PEM private key", "give the key that the certificate was issued for")
    else:
        if key.public_key() == leaf.public_key():
            yield Finding("ok", "key", "belongs to the certificate")
        else:
            remedy = "give the key that it was issued for, or issue both again"
            yield Finding("fail", "key", "belongs to another certificate", remedy)


def _mode(path: Path) -> Iterator[Finding]:
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        yield Finding("fail", "key file", f"mode {mode:04o} lets others at the key", f"chmod 600 {path}")
    else:
        yield Finding("ok", "key file", f"mode {mode:04o}")


def _names(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    return _extension(certificate, x509.SubjectAlternativeName)


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _shown(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _length(span: timedelta) -> str:
    """A time span for people, rounded down: days from two days on, else hours or minutes."""
    minutes = int(span.total_seconds() // 60)
    if minutes >= 2 * 1440:
        return f"{minutes // 1440} days"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
