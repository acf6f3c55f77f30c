"""``gradtf org check``: everything that could stop a node, and what to do about each."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from clients.node.run import LOCK_FILE, NODE_KEY
from clients.organization import CONFIG_FILE, Organization, load_organization
from gradtf_fl.deployment import Finding, held, public_of
from gradtf_fl.errors import ConfigError, GradtfError

SECONDS = 5.0  # for the server to answer
MAX_CLOCK_S = 60.0  # Flower refuses signatures that are 5 minutes old
MIN_FREE_BYTES = 10**9
WARN_DAYS = 30
PRIVATE_FILES = ("identity.key", NODE_KEY, "ledger.sqlite", "ledger.head", "state.sqlite", "client.log", CONFIG_FILE)


def check_node(folder: Path, offline: bool = False) -> list[Finding]:
    """All findings about an organization's folder and its way to the server.

    Args:
        offline: leave out what asks the server.
    """
    findings = [*_modes(folder)]
    try:
        organization = load_organization(folder.absolute())
    except (GradtfError, OSError) as error:
        problems = error.problems if isinstance(error, ConfigError) else (str(error),)
        joined = "" if (folder / "invitation.json").exists() else "; join first: gradtf org join DIR invitation.json"
        return [
            *findings,
            *(Finding("fail", "configuration", text, f"correct {CONFIG_FILE}{joined}") for text in problems),
        ]
    findings += [*_policy(organization), *_models(organization), *_data(organization), *_budget(organization)]
    findings += _disk(folder)
    running = _is_running(folder)
    if not offline:
        findings += _server(organization, running)
    state = "running" if running else "not running"
    return [*findings, Finding("ok", "node", state, "" if running else f"start it: gradtf org run {folder}")]


def _modes(folder: Path) -> Iterator[Finding]:
    for name in PRIVATE_FILES:
        path = folder / name
        if path.exists() and (mode := path.stat().st_mode & 0o777) & 0o077:
            yield Finding("fail", str(path), f"mode {mode:04o}: others can read it", f"chmod 600 {path}")


def _policy(organization: Organization) -> Iterator[Finding]:
    config, limits = organization.config, organization.config.secagg
    if organization.identity.public.hex() not in limits.roster:
        yield Finding("fail", "roster", "this organization is not in it", "join an invitation that lists it")
    else:
        yield Finding("ok", "roster", f"{len(limits.roster)} organizations, this one among them")
    if config.simulation is not None:
        yield Finding("fail", "policy", "a [simulation] table: noise is not private", "remove the table")
    text = f"at least {limits.n_min} in a sum, update clip up to {limits.max_clip:g}"
    yield Finding("ok", "policy", text + (", metrics are shared" if config.share_metrics else ", metrics stay here"))
    try:
        public_of(organization.folder / NODE_KEY)
        yield Finding("ok", "node key", f"{organization.folder / NODE_KEY}")
    except ConfigError as error:
        yield Finding("fail", "node key", str(error), "restore it from the backup, or enrol anew")


def _models(organization: Organization) -> Iterator[Finding]:
    from gradtf_fl.adapters import model_folder

    for what, name in (("TinyLM", organization.config.models.tiny), ("LLM", organization.config.models.llm)):
        try:
            folder = model_folder(name, what)
        except ConfigError as error:
            yield Finding("fail", what, str(error), "correct [models], or copy the folder")
            continue
        local = Path(folder).is_dir()
        remedy = "" if local else "a hub id: download it beforehand and name the folder"
        yield Finding("ok" if local else "warn", what, name, remedy)


def _data(organization: Organization) -> Iterator[Finding]:
    from gradtf_fl.tasks import read_rows

    for what, path in (("training rows", organization.train_path), ("test rows", organization.test_path)):
        if path is None:
            yield Finding("ok", what, "none: rounds are not scored here")
            continue
        try:
            yield Finding("ok", what, f"{len(read_rows(path)):,} in {path}")
            if path.stat().st_mode & 0o077:
                found = f"{path}: other accounts of this machine can read them"
                yield Finding("warn", what, found, f"chmod 600 {path}, unless its folder is closed to them")
        except ConfigError as error:
            yield Finding("fail", what, error.problems[0], "correct the file or [data]")


def _budget(organization: Organization) -> Iterator[Finding]:
    from gradtf_fl.privacy import Ledger, head_path, read_ledger

    privacy, path = organization.config.privacy, organization.ledger_path
    if not path.exists() and not head_path(path).exists():
        return (yield Finding("ok", "budget", f"epsilon {privacy.budget:g} at delta {privacy.delta:g}, nothing spent"))
    try:
        problems = read_ledger(path).problems
        if problems:
            remedy = "the node refuses every round; an old backup forgets what was spent: see docs/operator-guide.md"
            return (yield Finding("fail", "ledger", str(problems[0]), remedy))
        ledger = Ledger.open(
            path,
            identity_key=organization.identity.private,
            organization=organization.config.name,
            delta=privacy.delta,
            budget={privacy.dataset: privacy.budget},
        )
        left = ledger.remaining(privacy.dataset)
    except GradtfError as error:
        return (yield Finding("fail", "ledger", str(error).splitlines()[0], "gradtf audit verify tells more"))
    if left <= 0:
        return (
            yield Finding("fail", "budget", "nothing left", "fresh rows under a new [privacy] dataset, or stop here")
        )
    yield Finding(
        "ok", "budget", f"epsilon {left:.3g} of {privacy.budget:g} left at delta {privacy.delta:g}; ledger holds"
    )


def _disk(folder: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(folder).free
    level, remedy = (
        ("ok", "") if free >= MIN_FREE_BYTES else ("fail", "a round that cannot write its ledger is refused")
    )
    yield Finding(level, "free disk", f"{free / 1e9:.1f} GB", remedy)  # type: ignore[arg-type]
    if not os.access(folder, os.W_OK):
        yield Finding("fail", str(folder), "not writable", "run as its owner")


def _is_running(folder: Path) -> bool:
    try:
        with held(folder / LOCK_FILE, "running"):
            return False
    except ConfigError:
        return True


def _server(organization: Organization, running: bool) -> Iterator[Finding]:
    server = organization.config.server
    if server is None:
        return (yield Finding("fail", "server", "none", "gradtf org join DIR invitation.json"))
    host, _, port = server.address.rpartition(":")
    ca = organization.folder / server.ca
    try:
        context = ssl.create_default_context(cafile=str(ca))
        started = time.time()
        with (
            socket.create_connection((host.strip("[]"), int(port)), SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host.strip("[]")) as connection,
        ):
            yield _certificate(connection)
            yield _clock(connection, host, started)
    except ssl.SSLCertVerificationError as error:
        remedy = "compare the authority's fingerprint with the server's operator; check this clock: " + time.ctime()
        return (yield Finding("fail", "server's certificate", error.verify_message, remedy))
    except (ssl.SSLError, ValueError) as error:
        return (yield Finding("fail", "TLS", str(error), f"is {server.address} a gradtf server? is {ca} a PEM file?"))
    except OSError as error:
        remedy = "is the server running? do firewalls let this port through?"
        return (yield Finding("fail", "server", f"{server.address}: {error.strerror or error}", remedy))
    if running:
        return (yield Finding("ok", "registration", "the node is running: see its own messages"))
    from clients.node.flower_fleet import registration

    found = registration(server.address, ca, organization.folder / NODE_KEY)
    yield {
        "registered": Finding("ok", "registration", "the server knows this node's key"),
        "refused": Finding(
            "fail",
            "registration",
            "the server does not know this node's key, or counts it as online",
            "ask its operator to enrol it; after a crash wait 90 s; is a copy of this folder in use elsewhere?",
        ),
        "clock": Finding("fail", "registration", "the server refuses our signature's time", "set this machine's clock"),
    }.get(found, Finding("fail", "registration", "the server does not answer", "is it a gradtf server?"))


def _certificate(connection: ssl.SSLSocket) -> Finding:
    found = connection.getpeercert() or {}
    end = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(found["notAfter"])), UTC)
    days = (end - datetime.now(UTC)).days
    text = f"accepted, {days} days left"
    if days < WARN_DAYS:
        return Finding("warn", "server's certificate", text, "its operator should renew it")
    return Finding("ok", "server's certificate", text)


def _clock(connection: ssl.SSLSocket, host: str, started: float) -> Finding:
    """Our clock against the server's ``Date`` (RFC 9110, section 6.6.1)."""
    connection.settimeout(SECONDS)
    connection.sendall(f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer and len(answer) < 65536 and (part := connection.recv(4096)):
        answer += part
    for line in answer.decode("latin-1").splitlines():
        name, _, value = line.partition(":")
        if name.lower() == "date":
            ours = (started + time.time()) / 2
            off = ours - parsedate_to_datetime(value.strip()).timestamp()
            if abs(off) > MAX_CLOCK_S:
                return Finding("fail", "clock", f"{off:+.0f} s from the server's", "set it, and keep it with NTP")
            return Finding("ok", "clock", f"within {abs(off) + 1:.0f} s of the server's")
    return Finding("warn", "clock", "the server did not tell its time", "compare by hand")
