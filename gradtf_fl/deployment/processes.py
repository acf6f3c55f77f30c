"""Child processes: Flower's programs and ours, started offline, in a home of their own, stopped by their id."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Self

from gradtf_fl.errors import GradtfError

WITH_PARENT = Path(__file__).with_name("with_parent.py")
PACKAGES = Path(__file__).resolve().parents[2]
OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
TRUST = re.compile(r"FORWARDED_ALLOW_IPS|PROXY_HEADERS|ROOT_PATH|WEB_CONCURRENCY|(UVICORN|GUNICORN|HYPERCORN)_.*", re.I)
"""With FORWARDED_ALLOW_IPS=* a SuperLink takes the address in X-Forwarded-For for its caller's: 127.0.0.1, say."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
STOP_SECONDS = 10.0
MAX_LOG_BYTES = 10_000_000  # a longer log is put aside (one generation)


class FlowerFailed(GradtfError):
    """One of Flower's programs did not start, or ended with an error. Names its log file."""


class FlowerSilent(FlowerFailed):
    """A ``flwr`` command gave no answer in time, as on a busy machine: it may be asked again."""


def environment(home: Path, direct: Sequence[str] = ()) -> dict[str, str]:
    """Environment of Flower's programs: offline, state under ``home``, these packages importable.

    What this process inherited must not say who a caller is (`TRUST`), nor send calls to this machine by a proxy.

    Args:
        direct: further hosts that are called without a proxy.
    """
    # a model that is not on this disk is an error, not a download
    inherited = {"HF_HUB_OFFLINE": "1"} | trusting_nobody(os.environ) | direct_to(os.environ, direct)
    paths = [str(PACKAGES), *filter(None, [inherited.get("PYTHONPATH")])]
    programs = [str(Path(sys.executable).parent), *filter(None, [inherited.get("PATH")])]
    return (
        inherited
        | OFFLINE
        | {
            "FLWR_HOME": str(home),
            "PYTHONPATH": os.pathsep.join(paths),
            "PATH": os.pathsep.join(programs),
        }
    )


def trusting_nobody(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` without what makes a web server believe its callers' headers, or takes options for it."""
    return {name: value for name, value in environ.items() if not TRUST.fullmatch(name)}


def direct_to(environ: Mapping[str, str], hosts: Sequence[str] = ()) -> dict[str, str]:
    """The variables that take calls to loopback and to ``hosts`` past every proxy that ``environ`` names."""
    known = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    listed = [name.strip() for name in known.split(",") if name.strip()]
    value = ",".join(dict.fromkeys([*listed, *LOOPBACK, *hosts]))
    return {"no_proxy": value, "NO_PROXY": value}


@contextlib.contextmanager
def going_direct(host: str) -> Iterator[None]:
    """In this process: clients that are made inside call ``host`` and loopback past every proxy."""
    before = {name: os.environ.get(name) for name in ("no_proxy", "NO_PROXY")}
    os.environ.update(direct_to(os.environ, [host]))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def end_with_parent() -> None:
    """In a process that multiprocessing started: end at once when the process that started it does, however it ends.

    It would continue its work for minutes and at full load, with nobody to hand it to.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def free_port() -> int:
    """A TCP port on loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ChildProcess:
    """A long-running program (SuperLink, SuperNode, worker) in a process group of its own, stopped on exit.

    Where Linux allows it the program gets SIGTERM when this process dies, however it dies.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.command, self.log = list(command), log
        log.parent.mkdir(parents=True, exist_ok=True)
        self.trim_log()
        with open(log, "ab", opener=_private) as out:
            self._process = subprocess.Popen(
                [sys.executable, "-S", str(WITH_PARENT), str(os.getpid()), *self.command],
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id, also of its group."""
        return self._process.pid

    @property
    def ended(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def trim_log(self) -> None:
        """Put a long log aside. The program keeps writing at the end of the emptied file, as it appends."""
        with contextlib.suppress(OSError):
            if self.log.stat().st_size > MAX_LOG_BYTES:
                shutil.copyfile(self.log, self.log.with_name(self.log.name + ".1"))
                self.log.with_name(self.log.name + ".1").chmod(0o600)
                os.truncate(self.log, 0)

    def check(self) -> None:
        """FlowerFailed when the program has ended."""
        if (code := self.ended) is not None:
            raise FlowerFailed(f"{self.command[0]} ended with {code}; see {self.log}: {last_line(self.log)}")

    def wait_for_port(self, port: int, seconds: float) -> None:
        """Until something listens on loopback ``port``; FlowerFailed after ``seconds``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.check()
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1.0):
                    return
            except OSError:
                time.sleep(0.2)
        raise FlowerFailed(f"{self.command[0]} does not listen after {seconds:g} s; see {self.log}")

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after a while, to this process group only."""
        if self._process.returncode is not None:
            return  # its id may be another's by now
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                break
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        self._process.wait(STOP_SECONDS)


def last_line(log: Path) -> str:
    """The last non-empty line of a log file."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
