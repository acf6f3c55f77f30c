"""What could stop an organization's node, and what to do about each: ``gradtf org check``, ``gradtf doctor``."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import ssl
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from clients.organization import NOT_JOINED, Organization, assemble, how_to_join, is_joined, read_config
from gradtf_fl.config import OrganizationConfig, PrivacySection, RowFormat, declared_of
from gradtf_fl.deployment import Finding, Level, held, public_of
from gradtf_fl.errors import ConfigError, GradtfError
from gradtf_fl.file_names import IDENTITY_KEY, LOCK, NODE_KEY, ORGANIZATION_CONFIG, ORGANIZATION_PRIVATE, STATE
from gradtf_fl.files import exposure
from gradtf_fl.privacy import Unit
from gradtf_fl.secagg import Identity, identifiability
from gradtf_fl.tasks import Persons, count_rows, read_rows, read_tokens, told_form

SECONDS = 5.0  # for the server to answer
MAX_CLOCK_S = 60.0  # Flower refuses signatures that are 5 minutes old
MIN_FREE_BYTES = 10**9
WARN_DAYS = 30
FAR_MORE = 2
"""So many times the declared rows are worth a word."""
MUCH = 0.9  # of an organization's update, if it were the same in all rounds
STEP_ROWS = 64
"""Of the step that is measured: a plan's usual batch. A round's own plan says how many steps it has."""


def check_organization(folder: Path, offline: bool = False) -> list[Finding]:
    """All findings about an organization's folder and its way to the server. The first ones name the folder.

    Args:
        offline: leave out what asks the server.
    """
    findings: list[Finding] = []
    config = _configuration(folder, findings)
    findings += _exposed(folder)
    identity = _keys(folder, findings)
    if config is None or identity is None:
        return findings
    organization = assemble(folder.absolute(), config, identity)
    findings += [*_policy(organization), *_models(organization), *_data(organization), *_budget(organization)]
    findings += _sums(organization)
    findings += _training(organization)
    findings += _disk(folder)
    running = _is_running(folder)
    if not offline and is_joined(config):
        findings += _server(organization, running)
    state = "running" if running else "not running"
    start = "" if running or not is_joined(config) else f"start it: gradtf org run {folder}"
    return [*findings, Finding("ok", "node", state, start)]


def _configuration(folder: Path, findings: list[Finding]) -> OrganizationConfig | None:
    what = f"organization {folder}"
    try:
        config = read_config(folder)
    except ConfigError as error:
        findings += [Finding("fail", what, text, f"correct {ORGANIZATION_CONFIG}") for text in error.problems]
        return None
    findings.append(
        Finding("ok", what, config.name)
        if is_joined(config)
        else Finding("fail", what, f"{config.name} {NOT_JOINED}", how_to_join(folder))
    )
    return config


def _exposed(folder: Path) -> Iterator[Finding]:
    """Whatever somebody else than this process's user may read."""
    for path in (folder, *(folder / name for name in ORGANIZATION_PRIVATE)):
        try:
            found = exposure(path, path.stat())
        except OSError:
            continue  # not there, or told by whoever reads it
        if found is not None:
            yield Finding("fail", str(path), found.found, found.remedy)


def _keys(folder: Path, findings: list[Finding]) -> Identity | None:
    """The identity, or None where it cannot be used. What `_exposed` says is not said again."""
    identity, said = None, {finding.what for finding in findings}
    path = folder / NODE_KEY
    try:
        public_of(path)
        findings.append(Finding("ok", "node key", f"{path.absolute()}"))
    except ConfigError as error:
        if str(path) not in said:
            findings.append(Finding("fail", "node key", str(error), "restore it from the backup, or enrol again"))
    path = folder / IDENTITY_KEY
    try:
        identity = Identity.load(path)
    except ConfigError as error:
        if str(path) not in said:
            findings.append(Finding("fail", "identity key", str(error), "restore it from the backup, or enrol again"))
    return identity


def _policy(organization: Organization) -> Iterator[Finding]:
    config, limits = organization.config, organization.config.secagg
    if not is_joined(config):
        pass  # told by `_configuration`
    elif organization.identity.public.hex() not in limits.roster:
        yield Finding("fail", "roster", "this organization is not in it", "join an invitation that lists it")
    else:
        yield Finding("ok", "roster", f"{len(limits.roster)} organizations, this one among them")
    if config.simulation is not None:
        yield Finding(
            "fail", "policy", "a [simulation] table: noise and masks of a seed are not secret", "remove the table"
        )
    text = f"at least {limits.n_min} in a sum, update clip up to {limits.max_clip:g}"
    yield Finding("ok", "policy", text + (", metrics are shared" if config.share_metrics else ", metrics stay here"))


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


def row_findings(organization: Organization) -> Iterator[Finding]:
    """Whether the training rows can be used, and are (or are of as many persons) as the organization declares."""
    tiny, form = organization.config.models.tiny, organization.config.data
    yield from _rows("training rows", organization.train_path, form, (tiny,), "fail", "correct the file or [data]")
    yield from _persons(organization.train_path, form, organization.config.privacy)
    yield from _declared(organization)


def _data(organization: Organization) -> Iterator[Finding]:
    models, test, form = organization.config.models, organization.test_path, organization.config.data
    yield from row_findings(organization)
    if test is None:
        yield Finding("ok", "test rows", "none: rounds are not scored here")
        return
    remedy = "rounds run, and are not scored here: correct the file or [data]"
    yield from _rows("test rows", test, form, (models.tiny, models.llm), "warn", remedy)


def _persons(train: Path, form: RowFormat, privacy: PrivacySection) -> Iterator[Finding]:
    """Whose the training rows are, where the unit is a person."""
    if privacy.person is None:
        return
    try:
        persons = Persons.of(read_rows(train, None, form, privacy.person), privacy.rows_per_person)
    except ConfigError as error:
        more = f" (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else ""
        return (yield Finding("fail", "unit", error.problems[0] + more, "correct the file, or [privacy] unit"))
    yield Finding("ok", "unit", f"a person, by {privacy.person!r}: {persons}")


def _rows(
    what: str, path: Path, form: RowFormat, models: Sequence[str], level: Level, remedy: str
) -> Iterator[Finding]:
    """Findings of ``level`` about rows that can't be used. Each of ``models`` that is here encodes them."""
    try:
        text, cut = max([_encoded(path, form, name) for name in models], key=lambda said: said[1])
        advice = "a longer row loses the start of its prompt: shorten it, or raise [data] max_tokens" if cut else ""
        yield Finding("warn" if cut else "ok", what, text, advice)
        if exposed := exposure(path, path.stat()):
            yield Finding(
                "warn", what, f"{path}: {exposed.found}", f"{exposed.remedy}, unless its folder is closed to others"
            )
    except ConfigError as error:
        more = f" (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else ""
        yield Finding(level, what, error.problems[0] + more, remedy)


def _declared(organization: Organization) -> Iterator[Finding]:
    """The public number of rows (persons) against the file's."""
    privacy = organization.config.privacy
    declared, units = privacy.declared, Unit(privacy.person).plural
    try:
        rows = count_rows(organization.train_path, organization.config.data, privacy.person)
    except ConfigError:  # told by `_rows` and `_persons`
        return
    text = f"{declared:,} {units} are public, {rows:,} are there"
    if rows < declared:
        remedy = f"lower [privacy] declared to at most {rows}, or add some: plans count on {units} that are not there"
        yield Finding("fail", "declared", text, remedy)
    elif rows >= FAR_MORE * declared:
        remedy = (
            f"rounds cost more epsilon than they need to: [privacy] declared = {declared_of(rows)} changes that, and "
            f"shows the server that there are more {units}"
        )
        yield Finding("warn", "declared", text, remedy)
    else:
        yield Finding("ok", "declared", text)


def _encoded(path: Path, form: RowFormat, model: str) -> tuple[str, int]:
    """What the model's tokenizer makes of the rows, in words, and how many are cut. Without a model at hand they are
    only read."""
    from gradtf_fl.adapters import load_encoder, model_folder

    try:
        at_hand = Path(model_folder(model)).is_dir()
    except ConfigError:  # told by `_models`
        at_hand = False
    if not at_hand:
        rows = read_rows(path, None, form)
        return ", ".join([_in_words(len(rows), path, told_form(path, form)), *_twice(len(rows) - len(set(rows)))]), 0
    config, tokenizer = load_encoder(model)
    read = read_tokens(path, tokenizer, form, config)
    counts, said = read.counts, [_in_words(read.counts.rows, path, read.form)]
    if counts.cut:
        loses = f", {counts.cut_answers:,} of them in their answer" if counts.cut_answers else ""
        said.append(f"{counts.cut:,} cut at {read.max_tokens:,} tokens{loses}")
    if counts.empty and read.form.format != "text":
        said.append(f"{counts.empty:,} with an empty prompt")
    return ", ".join([*said, *_twice(counts.duplicate)]), counts.cut


def _in_words(rows: int, path: Path, form: RowFormat) -> str:
    if form.format == "text":
        return f"{rows:,} windows of {form.window} characters in {path}"
    return f"{rows:,} in {path}" if form.format == "prompt-answer" else f"{rows:,} in {path} ({form.format})"


def _twice(duplicates: int) -> list[str]:
    return [f"{duplicates:,} there twice"] if duplicates else []


def _training(organization: Organization) -> Iterator[Finding]:
    """Device and precision, and what a step costs there: measured on made-up rows as wide as ours."""
    from gradtf_fl.adapters import AdaptedModel, AdapterSpec, Place, model_folder

    config = organization.config
    try:
        place = Place.of(config.compute)
    except ConfigError as error:
        yield from (Finding("fail", "compute", problem, "correct [compute]") for problem in error.problems)
        return
    yield Finding("ok", "compute", str(place))
    try:
        if not Path(model_folder(config.models.tiny)).is_dir():
            return
        from gradtf_fl.training import measure_step

        tiny = AdaptedModel.load(config.models.tiny, AdapterSpec(targets=("auto",)), place, kept=True)
        rows = read_tokens(organization.train_path, tiny.tokenizer, config.data, tiny.model.config).tokens
        cost = measure_step(tiny.attach(), rows, STEP_ROWS, config.compute)
    except ConfigError as error:
        remedy = "the finding above says why, or see [compute] and the model's architecture"
        return (yield Finding("warn", "training step", f"not measured: {error.problems[0]}", remedy))
    text = f"{cost.seconds:.2g} s for {STEP_ROWS} rows ({min(cost.physical_batch, STEP_ROWS)} at once)"
    yield Finding("ok", "training step", f"{text}, peak memory {cost.peak_bytes / 1e9:.2g} GB")


def _budget(organization: Organization) -> Iterator[Finding]:
    from gradtf_fl.privacy import Ledger, Unit, head_path, read_ledger

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
            unit=Unit(privacy.person),
        )
        left = ledger.remaining(privacy.dataset)
    except GradtfError as error:
        return (yield Finding("fail", "ledger", str(error).splitlines()[0], "gradtf audit verify says more"))
    if left <= 0:
        return (
            yield Finding("fail", "budget", "nothing left", "fresh rows under a new [privacy] dataset, or stop here")
        )
    yield Finding(
        "ok", "budget", f"epsilon {left:.3g} of {privacy.budget:g} left at delta {privacy.delta:g}; ledger holds"
    )


def _sums(organization: Organization) -> Iterator[Finding]:
    """What all sums that this organization has signed for reveal about it together."""
    if not (organization.folder / STATE).exists():
        return
    sums = organization.store().sums()
    me = identifiability([taken.members for taken in sums]).shares.get(organization.identity.public)
    if me is None:
        return
    text = f"{len(sums)} signed for; {me:.2f} of its update follows from them"
    remedy = "ask why the members change; [policy] min_difference refuses sums whose members differ by few"
    yield Finding("warn", "sums", text, remedy) if me > MUCH else Finding("ok", "sums", text)


def _disk(folder: Path) -> Iterator[Finding]:
    from gradtf_fl.privacy import keeps_log

    free = shutil.disk_usage(folder).free
    level, remedy = (
        ("ok", "") if free >= MIN_FREE_BYTES else ("fail", "a round that cannot write its ledger is refused")
    )
    yield Finding(level, "free disk", f"{free / 1e9:.1f} GB", remedy)  # type: ignore[arg-type]
    if not os.access(folder, os.W_OK):
        return (yield Finding("fail", str(folder), "not writable", "run as its owner"))
    try:
        logged = keeps_log(folder)
    except (OSError, sqlite3.Error) as error:
        yield Finding(
            "fail", "ledger's disk", f"SQLite cannot write there ({error})", "move the folder to a local disk"
        )
        return
    if not logged:
        remedy = "a charge waits longer for the disk; a local file system is better"
        yield Finding("warn", "ledger's disk", "no shared memory, so no write-ahead log (NFS, Lustre?)", remedy)


def _is_running(folder: Path) -> bool:
    try:
        with held(folder / LOCK, "running"):
            return False
    except ConfigError:
        return True


def _server(organization: Organization, running: bool) -> Iterator[Finding]:
    server = organization.config.server
    if server is None:
        return (yield Finding("fail", "server", "none", how_to_join(organization.folder)))
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

    found = registration(server.address, ca, organization.folder / NODE_KEY, server.proxy)
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
    return Finding("warn", "clock", "the server did not send its time", "compare by hand")
