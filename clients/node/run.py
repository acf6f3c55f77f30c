"""A deployed organization: its SuperNode, its worker and the executor between them, kept going until SIGTERM.

Flower lets a node key be online once. A SuperNode that was killed counts as online until its heartbeats are overdue,
and one that comes back before is turned away; so is one whose key is not registered yet, or whose clock is wrong. All
of these pass, so the SuperNode is started again after a while, however often: waiting costs nothing. Of a SuperNode
that we know to be dead, because it ran in this very boot of this machine, the server is told at once instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from clients.node.executor import Executor
from clients.node.flower_fleet import deactivate
from clients.node.flower_tasks import TaskSource
from clients.node.metrics import Answers
from clients.node.worker_link import WorkerLink
from clients.organization import Organization
from gradtf_fl.deployment import ChildProcess, JsonLog, direct_to, environment, free_port, held, last_line
from gradtf_fl.errors import ConfigError
from gradtf_fl.file_names import (
    EVENTS,
    FLOWER_HOME,
    LOCK,
    NODE_KEY,
    ONLINE,
    ORGANIZATION_CONFIG,
    RUNTIME_SECRET,
    SUPERNODE_LOG,
)
from gradtf_fl.files import PRIVATE, alive, replace_file
from gradtf_fl.round_messages import DELIVER_TYPE, MESSAGE_TYPES

POLL_SECONDS = 0.2
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 30.0  # before the SuperNode is started again
STEADY_SECONDS = 120.0  # a SuperNode that lived so long was well: the next pause is short again
STAGE_SECONDS = 120.0  # what a stage in hand gets to finish after SIGTERM
REPLY_SECONDS = 3.0  # the SuperNode looks twice a second for a reply to send


@dataclass(frozen=True)
class NodeState:
    """What `NodeRun` is doing, for the health endpoint. Nothing in it is private to a row."""

    supernode: str
    worker: str
    stage: str
    served: int
    restarts: int
    cause: str


class NodeRun:
    """One ``gradtf org run``.

    Args:
        tell: gets a line for the operator whenever something changes.
        stage_seconds: what a stage in hand gets to finish after SIGTERM.
    """

    def __init__(
        self, organization: Organization, tell: Callable[[str], None], stage_seconds: float = STAGE_SECONDS
    ) -> None:
        if organization.config.server is None:
            raise ConfigError(
                f"{organization.folder / ORGANIZATION_CONFIG}: server: missing; `gradtf org join` writes it"
            )
        self._server = organization.config.server
        self.organization, self._tell, self._stage_seconds = organization, tell, stage_seconds
        self.home = organization.folder / FLOWER_HOME
        self.link = WorkerLink(organization.folder)
        self.answers = Answers()
        self._port = free_port()
        self._supernode: ChildProcess | None = None
        self._executor: Executor | None = None
        self._leave = threading.Event()
        self._restarts, self._cause, self._known = 0, "", 0
        self._log = JsonLog(organization.folder / EVENTS, "organization", [*MESSAGE_TYPES.values(), DELIVER_TYPE])

    def run(self) -> None:
        """Until SIGTERM or SIGINT.

        Raises:
            ConfigError: another ``org run`` serves this folder. WorkerGone: the worker cannot be started at all.
        """
        folder = self.organization.folder
        with held(folder / LOCK, f"{folder}: another `gradtf org run` serves this organization"):
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._asked_to_leave)
            self.home.mkdir(mode=0o700, exist_ok=True)
            secret = secrets.token_bytes(32)
            replace_file(self.home / RUNTIME_SECRET, secret, PRIVATE)
            try:
                self.link.start()
                self._note("started")
                os.environ.update(direct_to(os.environ))  # for the calls of this process to its own SuperNode
                source = TaskSource(f"127.0.0.1:{self._port}", secret)
                self._executor = Executor(source, self.link, self._answered)
                self._executor.start()
                self._keep_going()
            finally:
                self._end()

    def state(self) -> NodeState:
        """What is going on now."""
        executor = self._executor
        return NodeState(
            supernode=self._connection(),
            worker="up" if self.link.pid is not None else "down",
            stage=(executor.busy or "") if executor else "",
            served=executor.served if executor else 0,
            restarts=self._restarts,
            cause=self._cause,
        )

    def _connection(self) -> str:
        """``up``: connected. ``connecting``: no server yet, or none any more. ``down``: about to be started again."""
        if self._supernode is None or self._supernode.ended is not None:
            return "down"
        connected = self._known == self._supernode.pid and LOST_SIGN not in last_line(self._supernode.log)
        return "up" if connected else "connecting"

    # --------------------------------------------------------------------------------------------------------

    def _keep_going(self) -> None:
        pause, started, due = FIRST_PAUSE, 0.0, 0.0
        while not self._leave.is_set():
            if self._supernode is None and time.monotonic() >= due:
                self._tell_that_it_died()
                self._supernode, started = self._start_supernode(), time.monotonic()
            if self._supernode is not None and self._supernode.ended is not None:
                if time.monotonic() - started > STEADY_SECONDS:
                    pause = FIRST_PAUSE
                self._restarts += 1
                self._note("supernode-ended", restarts=self._restarts)
                self._cause = cause_of(self._supernode.log)
                self._tell(f"the SuperNode ended ({self._cause}); started again in {pause:g} s")
                self._supernode, due = None, time.monotonic() + pause
                pause = min(LONGEST_PAUSE, 2 * pause)
            self._note_online()
            self.link.trim_log()
            if self._supernode is not None:
                self._supernode.trim_log()
            self._leave.wait(POLL_SECONDS)

    def _note_online(self) -> None:
        """Remember under which node id, and in which process, we are online."""
        if self._supernode is None or self._known == self._supernode.pid:
            return
        if found := NODE_ID.search(since_mark(self._supernode.log)):
            self._known = self._supernode.pid
            where = {"boot": boot_id(), "folder": folder_id(self.organization.folder)}
            note = {"node_id": int(found[1]), "pid": self._supernode.pid, **where}
            replace_file(self.home / ONLINE, json.dumps(note).encode(), PRIVATE)
            self._tell(f"connected to {self._server.address}")
            self._note("connected")

    def _tell_that_it_died(self) -> None:
        """Spare the next SuperNode the wait until the server misses the last one, if that was ours and is dead."""
        path = self.home / ONLINE
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            note = json.loads(path.read_text(encoding="utf-8"))
            folder = self.organization.folder
            ours = boot_id() and note["boot"] == boot_id() and note["folder"] == folder_id(folder)
            if ours and not alive(int(note["pid"])):
                ca, key = folder / self._server.ca, folder / NODE_KEY
                if not deactivate(self._server.address, ca, key, int(note["node_id"]), self._server.proxy):
                    return  # the server is away: told before the next start
            path.unlink()

    def _start_supernode(self) -> ChildProcess:
        folder = self.organization.folder
        command = [sys.executable, "-m", "clients.node.supernode", "--superlink", self._server.address]
        command += ["--root-certificates", str((folder / self._server.ca).absolute())]
        command += ["--auth-supernode-private-key", str((folder / NODE_KEY).absolute())]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--isolation", "process", "--superexec-auth-secret-file", str(self.home / RUNTIME_SECRET)]
        log = self.home / SUPERNODE_LOG
        mark(log)
        direct = [] if self._server.proxy else [self._server.host]
        return ChildProcess(command, environment(self.home, direct), log)

    def _answered(self, message_type: str, outcome: str, seconds: float) -> None:
        self.answers.note(message_type, outcome, seconds)
        self._note("message", type=message_type, outcome=outcome, seconds=round(seconds, 3))

    def _note(self, event: str, **fields: object) -> None:
        """A line for machines; one that a full disk refuses stops nothing."""
        with contextlib.suppress(OSError):
            self._log.write(event, **fields)

    def _asked_to_leave(self, number: int, frame: FrameType | None) -> None:
        self._leave.set()

    def _end(self) -> None:
        """Finish the stage in hand, or leave it: every stage is used up on disk, so nothing is said twice."""
        if self._executor is not None:
            if self._executor.busy:
                self._tell(f"finishing {self._executor.busy} (at most {self._stage_seconds:g} s)")
            if self._executor.stop(self._stage_seconds) and time.time() - self._executor.last < REPLY_SECONDS:
                time.sleep(REPLY_SECONDS)
        if self._supernode is not None:
            self._supernode.stop()
            (self.home / ONLINE).unlink(missing_ok=True)
        self.link.stop()
        self._note("stopped")


# What the SuperNode's log says before it ends -> what that means
CAUSES = (
    (
        "CERTIFICATE_VERIFY_FAILED",
        "TLS: the server's certificate is expired or not from our authority, or our clock is wrong",
    ),
    ("Invalid SuperNode authentication", "the server refuses our signature: our clock or its clock is wrong"),
    ("Failed to activate SuperNode", "the server does not know our node key, or counts it as online still"),
    ("in send_node_heartbeat", "the server could not take our heartbeat"),
    ("Giving up reconnection", "the connection to the server broke"),
    ("Connection refused", "the server is not reachable"),
    ("ConnectError", "the server is not reachable"),
    # Flower's own answer to a refused signature (401) is a signal to itself, and no word about it
    ("terminated gracefully", "the server refuses our signature, as when our clock or its clock is wrong"),
)
NODE_ID = re.compile(r"SuperNode ID: ([0-9]+)")
LOST_SIGN = "Connection attempt failed"
MARK = "--- gradtf: the SuperNode is started"


def mark(log: Path) -> None:
    """Separate this start from earlier ones in the log."""
    with open(log, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(f"{MARK} {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n")


def cause_of(log: Path) -> str:
    """Why the SuperNode ended, from what it logged since it was started."""
    text = since_mark(log)
    for sign, meaning in CAUSES:
        if sign in text:
            return meaning
    return f"see {log}"


def since_mark(log: Path) -> str:
    """What was logged since the last start."""
    try:
        return log.read_text(errors="replace").rpartition(MARK)[2]
    except OSError:
        return ""


def boot_id() -> str:
    """Identifies this boot of this machine; empty where the system has no such thing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def folder_id(folder: Path) -> list[int]:
    """Tells a folder from its copies, whose notes are about another node that may well be alive."""
    status = folder.stat()
    return [status.st_dev, status.st_ino]


def describe(state: NodeState) -> dict[str, Any]:
    """``state`` as JSON."""
    return {**state.__dict__, "status": "ok" if state.supernode == "up" else "degraded"}
