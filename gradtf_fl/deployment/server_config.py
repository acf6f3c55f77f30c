"""``server.toml``: where the server listens and computes, what it shows its organizations, and the plan of the run.

SERVER/server.toml        this file
SERVER/provider.key       signs LLM adapters, 0600
SERVER/enrolments/        one `Enrolment` for each organization
SERVER/invitation.json    what the organizations join
SERVER/roster.txt, rounds/, federation.json, ...    the run (`strategies.checkpoints`)
SERVER/flower/            the SuperLink's database and logs, Flower's home
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from gradtf_fl.config import Address, FederationPlan, Location, Section, read_toml, validate
from gradtf_fl.deployment.enrolment import Invitation, read_invitation
from gradtf_fl.errors import ConfigError
from gradtf_fl.file_names import INVITATION, PROVIDER_KEY, SERVER_CONFIG, SERVER_PRIVATE
from gradtf_fl.files import exposed

OURS = ("out", "provider_key", "organizations_dir", "organizations", "seed")  # keys of a plan that the folder decides


class ListenSection(Section):
    """``[server]``: where the server listens, and its certificate.

    Attributes:
        address: HOST:PORT where organizations reach the server.
        listen: HOST:PORT that it binds.
        ca: PEM file of the authority, which every organization pins.
        certificate: PEM file of the server's certificate; anybody's, as long as it comes from ``ca``.
        key: PEM file of the certificate's private key.
        retries: attempts that a round gets after aborted ones, before the run ends.
        message_mb: most megabytes that one message of a registered organization may have; others send 65 kB.
    """

    address: Address
    listen: Address
    ca: Location
    certificate: Location
    key: Location
    retries: int = 3
    message_mb: int = Field(default=1000, ge=1, le=2147)

    @field_validator("listen")
    @classmethod
    def _on_loopback_too(cls, listen: str) -> str:
        """Flower's own parts reach the SuperLink over 127.0.0.1, and the gate believes no other address to be ours."""
        host = listen.rpartition(":")[0]
        if host not in ("0.0.0.0", "127.0.0.1", "localhost"):
            raise ValueError(
                f"{host}: the server's own parts reach it by 127.0.0.1, so it listens on 0.0.0.0 (all IPv4 addresses) "
                "or 127.0.0.1; a firewall closes what should be closed"
            )
        return listen


@dataclass(frozen=True)
class Server:
    """A loaded server folder."""

    folder: Path
    listen: ListenSection
    plan: FederationPlan
    invitation: Invitation


def load_server(folder: Path) -> Server:
    """Read and check a server's folder.

    Raises:
        ConfigError: every problem of ``server.toml``, the invitation and the certificate files' presence; somebody
            else owns or may read what is private.
    """
    path = folder / SERVER_CONFIG
    if problems := exposed([folder, *(folder / name for name in SERVER_PRIVATE)]):
        raise ConfigError(problems)
    document = read_toml(path)
    invitation = read_invitation(folder / INVITATION)
    problems = [f"{path}: {key}: is not a known key" for key in sorted(set(document) - {"server", "plan", "compute"})]
    given = dict(document.get("plan", {}))
    if "compute" in given:
        problems.append(f"{path}: plan.compute: is a table of its own, [compute]")
    problems += [f"{path}: plan.{key}: is decided by the folder; take it out" for key in OURS if key in given]
    decided: dict[str, Any] = {
        "out": folder,
        "provider_key": folder / PROVIDER_KEY,
        "organizations": len(invitation.organizations),
        "compute": document.get("compute", {}),
    }
    parts: dict[str, Section] = {}
    for section, model, values in (
        ("server", ListenSection, document.get("server", {})),
        ("plan", FederationPlan, {k: v for k, v in given.items() if k not in OURS} | decided),
    ):
        try:
            parts[section] = validate(model, values, lambda key, s=section: _named(path, s, key))  # type: ignore[misc]
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    listen, plan = parts["server"], parts["plan"]
    assert isinstance(listen, ListenSection)
    assert isinstance(plan, FederationPlan)
    listen = listen.model_copy(update={key: folder / getattr(listen, key) for key in ("ca", "certificate", "key")})
    missing = [
        f"{path}: server.{k}: {getattr(listen, k)}: no such file"
        for k in ("ca", "certificate", "key")
        if not getattr(listen, k).is_file()
    ]
    if missing:
        raise ConfigError(missing)
    return Server(folder, listen, plan, invitation)


def _named(path: Path, section: str, key: str) -> str:
    """Where a key stands in the file, where ``[compute]`` is a table of its own, outside ``[plan]``."""
    return f"{path}: {key}" if key.startswith("compute") else f"{path}: {section}.{key}".rstrip(".")
