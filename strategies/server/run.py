"""A deployed server: SuperLink, SuperExec and the run, kept going until all rounds are done.

The SuperLink keeps its messages in SQLite and the ServerApp lives in a process of its own (``--isolation process``), so
either may die without the other: a dead SuperLink is restarted and the ServerApp's calls continue; a dead ServerApp is
submitted again and continues from the last checkpoint (`strategies.checkpoints`), under the next attempt's number. When
this process dies, its children get SIGTERM; ``gradtf server run --resume`` starts them again.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gradtf_fl.deployment import ChildProcess, FlowerFailed, FlowerSilent, Server, environment, held, last_line
from gradtf_fl.errors import ConfigError, GradtfError, RoundAborted
from gradtf_fl.file_names import FEDERATION, FLOWER_HOME, LOCK, SUPEREXEC_SECRET
from gradtf_fl.files import PRIVATE, PUBLIC, alive, replace_file
from gradtf_fl.flower import OnEvent, RoundEvent, read_records
from strategies.engines.flower_app import write_app
from strategies.engines.flower_processes import flwr, write_connection
from strategies.engines.ray_engine import COMPLETED, raise_failure
from strategies.failures import take_failure
from strategies.server.setup import located

CONNECTION, DATABASE = "gradtf", "superlink.sqlite"
START_SECONDS, COMMAND_SECONDS = 120.0, 60.0
POLL_SECONDS, STATUS_SECONDS = 0.5, 15.0  # `flwr list` costs a second of CPU
ORPHAN_SECONDS = 10.0  # for a ServerApp to end at SIGTERM
FRUITLESS = 5  # ServerApps that may die in a row without a new record


class ServerRun:
    """One ``gradtf server run``.

    Args:
        on_event: gets an ``end`` event for each attempt as it appears on disk.
        tell: gets a line for the operator when something was started again.
    """

    def __init__(self, server: Server, on_event: OnEvent | None = None, tell: Callable[[str], None] = print) -> None:
        self.server, self._on_event, self._tell = server, on_event, tell
        self.home = server.folder / FLOWER_HOME
        self._env = environment(self.home)
        self._superlink: ChildProcess | None = None
        self._superexec: ChildProcess | None = None
        self._seen, self._last_app, self._restarts = 0, 0, 0

    def run(self) -> None:
        """Until all rounds are done.

        Raises:
            RoundAborted: a round was aborted ``retries`` times in a row. RoundRejected: at once.
            ConfigError: another server runs in this folder; a file or a model of the plan is missing or wrong.
            FlowerFailed.
        """
        problems: list[str] = []
        located(self.server.plan, problems)
        if problems:
            raise ConfigError(problems)
        self.home.mkdir(mode=0o700, exist_ok=True)
        with held(self.home / LOCK, f"{self.server.folder}: another `gradtf server run` is at work there"):
            self._end_orphan()
            self._seen, self._last_app = len(read_records(self.server.plan.out)), self._server_app()
            try:
                self._prepare()
                again = (self.home / DATABASE).exists()
                self._start_superlink()
                if again:
                    self._end_old_runs()
                self._start_superexec()
                self._register()
                self._rounds()
            except OSError as error:  # as a rule, a full disk; nothing is half written
                cause = f"{error.strerror or type(error).__name__} ({error.filename or self.server.folder})"
                raise FlowerFailed(f"{cause}: when that is mended, run `gradtf server run --resume`") from error
            finally:
                self.stop()

    def stop(self) -> None:
        """End the children: the ServerApp first, so that it does not see its SuperLink go."""
        with ExitStack() as stack:
            for process in (self._superlink, self._superexec):
                if process is not None:
                    stack.callback(process.stop)

    # children ---------------------------------------------------------------------------------------------

    def _end_orphan(self) -> None:
        """End the ServerApp of a `server run` that was killed: it is the SuperExec's child and outlives both."""
        end = time.monotonic() + ORPHAN_SECONDS
        for number in (signal.SIGTERM, signal.SIGKILL):
            while (pid := self._holder()) and time.monotonic() < end:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                time.sleep(POLL_SECONDS)
            end = time.monotonic() + ORPHAN_SECONDS

    def _holder(self) -> int:
        """Process id of whoever holds the run's folder now; 0 when nobody does."""
        try:
            with held(self.server.plan.out / LOCK, "held"):
                return 0
        except ConfigError:
            return self._server_app()

    def _prepare(self) -> None:
        _, _, port = self.server.listen.listen.rpartition(":")
        ca = str(self.server.listen.ca.absolute())
        write_connection(self.home, CONNECTION, {"address": f"127.0.0.1:{port}", "root-certificates": ca})
        if not self._secret.exists():
            replace_file(self._secret, secrets.token_bytes(32), PRIVATE)

    @property
    def _secret(self) -> Path:
        return self.home / SUPEREXEC_SECRET

    def _start_superlink(self) -> None:
        listen = self.server.listen
        host, _, port = listen.listen.rpartition(":")
        options = ["--host", host.strip("[]"), "--port", port, "--disable-runtime-dependency-installation"]
        tls = {"--ssl-certfile": listen.certificate, "--ssl-keyfile": listen.key, "--ssl-ca-certfile": listen.ca}
        options += [text for name, path in tls.items() for text in (name, str(path.absolute()))]
        options += ["--enable-supernode-auth", "--database", str(self.home / DATABASE)]
        options += ["--isolation", "process", "--superexec-auth-secret-file", str(self._secret)]
        options += ["--most-bytes", str(listen.message_mb * 1_000_000)]
        command = [sys.executable, "-m", "strategies.server.superlink_gate", *options]
        self._superlink = ChildProcess(command, self._env, self.home / "superlink.log")
        self._superlink.wait_for_port(int(port), START_SECONDS)

    def _start_superexec(self) -> None:
        _, _, port = self.server.listen.listen.rpartition(":")
        command = ["flower-superexec", "--runtime-api-address", f"127.0.0.1:{port}"]
        command += ["--root-certificates", str(self.server.listen.ca.absolute())]
        command += ["--superexec-auth-secret-file", str(self._secret)]
        self._superexec = ChildProcess(command, self._env, self.home / "serverapp.log")

    def _end_old_runs(self) -> None:
        """Stop what an earlier `server run` left: nodes wait for the rest of its messages, up to a minute."""
        for run in self._flwr("list", CONNECTION)["runs"]:
            if not str(run["status"]).startswith("finished"):
                with contextlib.suppress(GradtfError):
                    flwr(["stop", str(run["run-id"]), CONNECTION], self._env, COMMAND_SECONDS)

    def _mend(self) -> None:
        """Start again what has died; keep logs short."""
        for process in (self._superlink, self._superexec):
            if process is not None:
                process.trim_log()
        if self._superlink is not None and self._superlink.ended is not None:
            self._restarts += 1
            self._tell("the SuperLink died and is started again")
            self._start_superlink()
        if self._superexec is not None and self._superexec.ended is not None:
            self._restarts += 1
            self._tell("the SuperExec died and is started again")
            self._start_superexec()

    def _register(self) -> None:
        """Make the SuperLink know the organizations' node keys."""
        record = self.home / "registered.json"  # `flwr` costs a second each: not for those this database knows
        database = str((self.home / DATABASE).stat().st_ino)
        try:
            known = set(json.loads(record.read_text(encoding="utf-8"))[database])
        except (OSError, ValueError, KeyError):
            known = set()
        for organization in self.server.invitation.organizations:
            if organization.fingerprint in known:
                continue
            public = self.home / f"{organization.name}.pub"
            replace_file(public, organization.node_key.encode(), PUBLIC)
            try:
                self._flwr("supernode", "register", str(public), CONNECTION, "--name", organization.name)
            except FlowerFailed as error:
                if "already in use" not in str(error):
                    raise
            known.add(organization.fingerprint)
            replace_file(record, json.dumps({database: sorted(known)}).encode(), PRIVATE)

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                return flwr(arguments, self._env, COMMAND_SECONDS)
            except FlowerSilent:
                if time.monotonic() > end:
                    raise
            self._mend()

    def state(self) -> dict[str, Any]:
        """For the health endpoint."""
        up = [p is not None and p.ended is None for p in (self._superlink, self._superexec)]
        parts = dict(zip(("superlink", "superexec"), ("up" if one else "down" for one in up), strict=True))
        return {"status": "ok" if all(up) else "degraded", **parts, "attempts": self._seen, "restarts": self._restarts}

    # the run ----------------------------------------------------------------------------------------------

    def _rounds(self) -> None:
        fruitless, aborted, cause = 0, 0, ""
        take_failure(self.server.plan.out)  # of an earlier `server run`
        while True:
            before = self._seen
            status = self._watch(self._submit())
            if status == COMPLETED:
                return
            fruitless = 0 if self._seen > before else fruitless + 1
            try:
                if self._seen > before:
                    raise_failure(status, self.server.plan.out, self.home / "serverapp.log")
            except RoundAborted as error:
                records = read_records(self.server.plan.out)
                aborted = 1 if len(records) > 1 and records[-2].state == "completed" else aborted + 1
                if type(error) is not RoundAborted or aborted > self.server.listen.retries:
                    raise
                self._tell(f"{error}; next attempt ({aborted} of {self.server.listen.retries})")
                continue
            except FlowerFailed as error:
                self._tell(str(error))
            failure = take_failure(self.server.plan.out)
            if failure is not None and failure.final:
                raise ConfigError(failure.problems)
            cause = "; ".join(failure.problems) if failure is not None else cause
            if fruitless >= FRUITLESS:
                log = self.home / "serverapp.log"
                why = (
                    cause
                    or f"it left no cause, as when it is killed for its memory: {last_line(log) or 'an empty log'}"
                )
                raise FlowerFailed(f"the ServerApp ended {fruitless} times without a result: {why} (see {log})")
            self._tell(f"the ServerApp ended ({status}) and continues from the last checkpoint")

    def _submit(self) -> str:
        app = write_app(self.home / "app", self.server.plan)
        return str(self._flwr("run", str(app), CONNECTION)["run-id"])

    def _watch(self, run_id: str) -> str:
        """Until the run has ended: Flower's status, or ``died``."""
        due = time.monotonic() + STATUS_SECONDS
        while True:
            self._mend()
            server_app = self._server_app()
            if server_app not in (0, self._last_app) and not alive(server_app):
                self._last_app = server_app
                status = self._status(run_id)  # a proper end looks the same for a moment
                if status.startswith("finished"):
                    return self._reported(status)
                with contextlib.suppress(GradtfError):
                    flwr(["stop", run_id, CONNECTION], self._env, COMMAND_SECONDS)
                return self._reported("died")
            self._report()
            if time.monotonic() > due:
                status = self._status(run_id)
                if status.startswith("finished"):
                    return self._reported(status)
                due = time.monotonic() + STATUS_SECONDS
            time.sleep(POLL_SECONDS)

    def _status(self, run_id: str) -> str:
        try:
            return str(flwr(["list", CONNECTION, "--run-id", run_id], self._env, COMMAND_SECONDS)["runs"][0]["status"])
        except FlowerFailed:
            return "unknown"

    def _server_app(self) -> int:
        """Process id of the ServerApp that holds the run's folder; 0 while there is none."""
        try:
            return int((self.server.plan.out / LOCK).read_text() or 0)
        except (OSError, ValueError):
            return 0

    def _reported(self, status: str) -> str:
        self._report()
        return status

    def _report(self) -> None:
        try:
            records = read_records(self.server.plan.out)
        except ConfigError:
            return
        for record in records[self._seen :]:
            if self._on_event is not None:
                self._on_event(RoundEvent("end", record.round, self.server.plan.rounds, record=record))
        self._seen = len(records)


def progress(out: Path) -> tuple[int, int, int] | None:
    """(rounds done, attempts made, rounds whose adapter went out) of the run in ``out``; None without one."""
    records = read_records(out)
    if not (out / FEDERATION).exists():
        return None
    delivered = int(json.loads((out / FEDERATION).read_text(encoding="utf-8"))["delivered"])
    return len({record.round for record in records if record.state == "completed"}), len(records), delivered
