"""The checks behind ``gradtf doctor``. A finding that is not ``ok`` says what to do."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from gradtf_fl.deployment import Finding

OFFLINE_SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": ("0", "Flower reports its use to flower.ai"),
    "FLWR_DISABLE_UPDATE_CHECK": ("1", "Flower asks flower.ai for newer versions"),
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": (
        "1",
        "every Flower run installs packages from the network",
    ),
    "HF_HUB_OFFLINE": ("1", "a hub id in a configuration is looked up on the network"),
}
MIN_FREE_BYTES = 2 * 10**9
MIN_MEMORY_BYTES = 3 * 10**9
MAX_CLOCK_ERROR_S = 1.0
TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised


def diagnose(organizations: Iterable[Path] = ()) -> list[Finding]:
    """All findings, in the order in which they are shown: the machine's, then those of each organization's folder.

    The server of an organization is not asked: ``gradtf org check`` does.
    """
    findings = [*_python(), *_packages(), *_devices(), *_machine(), *_clock(), *_sqlite(), *_assets()]
    findings += _offline(os.environ)
    for folder in organizations:
        from clients import check_organization

        findings += check_organization(folder, offline=True)
    return findings


def _python() -> Iterator[Finding]:
    yield Finding("ok", "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _packages() -> Iterator[Finding]:
    """Every dependency of the installed distribution against its version range."""
    try:
        wanted = metadata.requires("gradtf-fl") or []
    except metadata.PackageNotFoundError:
        yield Finding("warn", "gradtf-fl", "not installed, run from a checkout", "pip install -e .")
        return
    from packaging.requirements import Requirement

    for text in wanted:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        remedy = f'pip install "{requirement.name}{requirement.specifier}"'
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Finding("fail", requirement.name, "missing", remedy)
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        yield (
            Finding("ok", requirement.name, version)
            if fits
            else Finding("fail", requirement.name, f"{version}, outside {requirement.specifier}", remedy)
        )


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:
        yield Finding("fail", "torch", f"cannot be imported ({error})", "reinstall torch for this machine")
        return
    threads = torch.get_num_threads()
    yield Finding("ok", "CPU", f"{os.cpu_count()} cores, torch uses {threads}")
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            memory = properties.total_memory / 2**30
            yield Finding("ok", f"GPU {number}", f"{properties.name}, {memory:.0f} GiB")
    else:
        yield Finding("ok", "GPU", "none (the embedded models need none)")


def _machine() -> Iterator[Finding]:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        flags = ""
    if flags:
        quick = re.search(r"\b(aes)\b", flags) is not None
        yield (
            Finding("ok", "AES instructions", "present")
            if quick
            else Finding(
                "warn",
                "AES instructions",
                "absent",
                "masking will be 10 times slower: choose another machine type",
            )
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    enough = memory >= MIN_MEMORY_BYTES
    remedy = "" if enough else f"gradtf simulate wants {MIN_MEMORY_BYTES / 1e9:.0f} GB"
    yield Finding("ok" if enough else "warn", "memory", f"{memory / 1e9:.1f} GB", remedy)
    place = tempfile.gettempdir()
    free = shutil.disk_usage(place).free
    enough = free >= MIN_FREE_BYTES
    remedy = "" if enough else f"free {(MIN_FREE_BYTES - free) / 1e9:.1f} GB or set TMPDIR"
    yield Finding("ok" if enough else "warn", f"free space in {place}", f"{free / 1e9:.1f} GB", remedy)


def _clock() -> Iterator[Finding]:
    """Certificates and deadlines need a clock that is right: ask the kernel whether somebody keeps it."""
    remedy = "start chrony or systemd-timesyncd on the host: TLS and deadlines depend on the clock"
    try:
        buffer = ctypes.create_string_buffer(256)  # struct timex, modes = 0: read only
        state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    except (OSError, AttributeError):
        yield Finding("warn", "clock", "cannot ask this system whether the clock is synchronised", remedy)
        return
    if state < 0:
        yield Finding("warn", "clock", "the kernel does not say whether the clock is synchronised", remedy)
        return
    worst_s = struct.unpack_from("q", buffer.raw, 24)[0] / 1e6  # maxerror, microseconds
    if state == TIME_ERROR:
        yield Finding("warn", "clock", "not synchronised", remedy)
    elif worst_s > MAX_CLOCK_ERROR_S:
        yield Finding("warn", "clock", f"may be off by {worst_s:.1f} s", remedy)
    else:
        yield Finding("ok", "clock", f"synchronised within {worst_s * 1000:.0f} ms")


def _sqlite() -> Iterator[Finding]:
    """The ledger needs write-ahead logging, which some network file systems lack."""
    from gradtf_fl.privacy import keeps_log

    with tempfile.TemporaryDirectory() as folder:
        logged = keeps_log(Path(folder))
    if logged:
        yield Finding("ok", "SQLite", f"{sqlite3.sqlite_version}, write-ahead log works")
    else:
        remedy = "ledgers work without, and wait longer for the disk; put TMPDIR and ledgers on a local file system"
        yield Finding("warn", "SQLite", f"no write-ahead log in {tempfile.gettempdir()}", remedy)


def _assets() -> Iterator[Finding]:
    """The embedded models and their Grad-Transformer, loaded as a run would load them."""
    from gradtf_fl.adapters import EMBEDDED, load_model
    from gradtf_fl.errors import GradtfError

    remedy = "reinstall gradtf-fl: its embedded files are incomplete"
    for name in EMBEDDED:
        try:
            model, _ = load_model(name)
            parameters = sum(p.numel() for p in model.parameters())
            yield Finding("ok", name, f"{parameters:,} parameters")
        except GradtfError as error:
            yield Finding("fail", name, str(error), remedy)
    try:
        from gradtf_fl.transformer import GradTransformer, embedded_checkpoint

        yield Finding("ok", "Grad-Transformer", GradTransformer.load(embedded_checkpoint()).sha256)
    except GradtfError as error:
        yield Finding("fail", "Grad-Transformer", str(error), remedy)


def _offline(environment: os._Environ[str] | dict[str, str]) -> Iterator[Finding]:
    for name, (value, otherwise) in OFFLINE_SWITCHES.items():
        found = environment.get(name)
        if found == value:
            yield Finding("ok", name, value)
        else:
            shown = "not set" if found is None else repr(found)
            yield Finding("warn", name, f"{shown}: {otherwise}", f"export {name}={value}")
