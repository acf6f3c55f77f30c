"""Names and addresses of a server: which may stand in a certificate, and which a certificate covers (RFC 6125)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from cryptography import x509

from gradtf_fl.errors import ConfigError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""In every server's certificate: Flower's own parts connect to each other over loopback."""
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def address_of(host: str) -> Address | None:
    """The IP address that ``host`` is, None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def alternative_names(hosts: Iterable[str]) -> list[x509.GeneralName]:
    """``hosts``, then loopback, each once: DNSName for names (lower case), IPAddress for addresses.

    Raises:
        ConfigError: every host that no client could connect to, and why.
    """
    names: list[x509.GeneralName] = []
    problems = []
    for host in [*hosts, *LOOPBACK]:
        problem = host_problem(host)
        if problem:
            problems.append(f"--host {host}: {problem}")
            continue
        address = address_of(host)
        name = x509.DNSName(host.lower()) if address is None else x509.IPAddress(address)
        if name not in names:
            names.append(name)
    if problems:
        raise ConfigError(problems)
    return names


def host_problem(host: str) -> str:
    """What is wrong with a host of ``--host``, in words; empty when nothing is."""
    address = address_of(host)
    if address is not None:
        return _address_problem(address)
    if not host or host != host.strip() or any(letter.isspace() for letter in host):
        return "is empty or holds blanks"
    if "://" in host or "/" in host:
        return "is a URL or path, not a host: give the name alone"
    if host.startswith("[") or host.count(":") > 1:
        return "is not an IPv6 address; write one without brackets, port and zone"
    if ":" in host:
        return "has a port: give the name alone, a certificate holds for every port"
    if not host.isascii():
        return "has letters outside ASCII: give the form that begins with xn--"
    name = host.removeprefix("*.")
    if name != host and "." not in name:
        return "is a wildcard for a whole top-level domain"
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        return "is not a host name: expected labels of at most 63 letters, digits and inner hyphens, joined by dots"
    if name.rpartition(".")[2].isdigit():
        return "is neither an IPv4 address nor a name (names do not end in a number)"
    return ""


def _address_problem(address: Address) -> str:
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id:
        return "has a zone, which a certificate cannot hold"
    if address.is_unspecified:
        return "is where a server listens, not where anybody connects to: give the address that clients use"
    if address.is_multicast:
        return "is a multicast address"
    return ""


def covers(names: x509.SubjectAlternativeName, host: str) -> bool:
    """Whether a certificate with these names is one for ``host``; ``*`` stands for one whole first label."""
    address = address_of(host)
    if address is not None:
        return address in names.get_values_for_type(x509.IPAddress)
    wanted = host.lower().rstrip(".")
    first, _, rest = wanted.partition(".")
    for name in names.get_values_for_type(x509.DNSName):
        name = name.lower()
        if name == wanted or (name.startswith("*.") and first and rest == name[2:]):
            return True
    return False


def shown_names(names: Iterable[x509.GeneralName]) -> list[str]:
    """Names and addresses as text; other kinds, which no server is reached by, are left out."""
    return [str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress)]
