"""Real processes of one deployment: started with the CLI, found, killed and always cleaned up by their process id.

Every process that a member starts inherits a mark in its environment, so that what a kill left behind is found too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from gradtf_fl.deployment.processes import environment
from gradtf_fl.files import alive

MARK = "GRADTF_TEST_MEMBER"
STARTING = "with_parent.py"  # a program on its way to becoming another
ROLES = {
    "run": "gradtf_fl.cli.main",
    "supernode": "clients.node.supernode",
    "worker": "clients.node.worker",
    "superlink": "strategies.server.superlink_gate",
    "superexec": "flower-superexec",
    "serverapp": "flwr-serverapp",
}
T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float, what: str, pause: float = 0.05) -> T:
    """What ``condition`` gives as soon as it is true; AssertionError naming ``what`` after ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        if found := condition():
            return found
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(pause)


def cli(
    *arguments: str, env: Mapping[str, str] | None = None, seconds: float = 300.0
) -> subprocess.CompletedProcess[str]:
    """``gradtf ARGUMENTS``, to its end."""
    command = [sys.executable, "-m", "gradtf_fl.cli.main", *arguments]
    return subprocess.run(
        command,
        env=environment(Path(os.devnull)) | dict(env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
    )


class Member:
    """The server or an organization: a folder and the CLI process that serves it.

    Args:
        arguments: of ``gradtf``, as ``org run DIR``. wrapper: a command that runs the one given behind it.
    """

    def __init__(self, name: str, folder: Path, arguments: list[str]) -> None:
        self.name, self.folder, self._arguments = name, folder, arguments
        self.log = folder.with_name(f"{folder.name}.log")
        self._mark = f"{MARK}={folder}"
        self._process: subprocess.Popen[bytes] | None = None
        self._from = 0

    def start(self, *more: str, env: Mapping[str, str] | None = None, wrapper: tuple[str, ...] = ()) -> None:
        """Start the CLI; what runs already is ended first."""
        self.stop()
        command = [*wrapper, sys.executable, "-m", "gradtf_fl.cli.main", *self._arguments, *more]
        own = environment(self.folder / "flower") | {MARK: str(self.folder), "OMP_NUM_THREADS": "1"} | dict(env or {})
        self._from = self.log.stat().st_size if self.log.exists() else 0
        self._process = subprocess.Popen(  # a pipe, as to a journal, which is not on the member's own disk
            command,
            env=own,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        threading.Thread(target=self._keep, args=(self._process,), daemon=True).start()

    def _keep(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with self.log.open("ab") as out:
                out.write(line)

    @property
    def ended(self) -> int | None:
        """Exit status of the CLI process, None while it runs (or was never started)."""
        return None if self._process is None else self._process.poll()

    @property
    def running(self) -> bool:
        """Whether the CLI process runs."""
        return self._process is not None and self._process.poll() is None

    def said(self) -> str:
        """What the CLI process wrote since its last start."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(self._from)
            return file.read().decode(errors="replace")

    def pids(self, role: str = "") -> list[int]:
        """Process ids of this member, of one role or of all."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                marked = self._mark.encode() in (entry / "environ").read_bytes().split(b"\0")
                command = (entry / "cmdline").read_bytes().decode(errors="replace") if marked else ""
            except OSError:
                continue
            if marked and (not role or (ROLES[role] in command and STARTING not in command)) and alive(int(entry.name)):
                found.append(int(entry.name))
        return found

    def pid(self, role: str, seconds: float = 60.0) -> int:
        """The process of ``role``, waited for."""
        return until(lambda: self.pids(role), seconds, f"{self.name} has no {role}")[0]

    def send(self, number: int, *roles: str) -> None:
        """A signal to the processes of these roles; to all of this member without any."""
        for role in roles or ("",):
            for pid in self.pids(role):
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue

    def kill(self, *roles: str) -> None:
        """SIGKILL; returns when they are gone."""
        pids = [pid for role in roles or ("",) for pid in self.pids(role)]
        assert pids, f"{self.name} has no {roles}"
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        until(lambda: self.ended is not None or not any(map(alive, pids)), 10.0, f"{self.name}: {roles} killed")

    def stop(self, seconds: float = 45.0) -> None:
        """SIGTERM to the CLI process, then SIGKILL to whatever of this member is left."""
        if self._process is not None:
            self.send(signal.SIGCONT)
            if self._process.poll() is None:
                self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        end = time.monotonic() + 5.0
        while (left := self.pids()) and time.monotonic() < end + 5.0:
            if time.monotonic() > end or self._process is None or self._process.poll() is None:
                for pid in left:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
            if self._process is not None:
                self._process.poll()
            time.sleep(0.1)
        self._process = None
