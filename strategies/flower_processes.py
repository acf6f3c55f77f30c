"""Flower's own programs as child processes: started here, offline, in a home of their own, stopped by their id."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gradtf_fl.errors import GradtfError

PACKAGES = Path(__file__).resolve().parents[1]
OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
STOP_SECONDS = 10.0


class FlowerFailed(GradtfError):
    """One of Flower's programs did not start, or ended with an error. Names its log file."""


class FlowerSilent(FlowerFailed):
    """A ``flwr`` command gave no answer in time, as on a busy machine: it may be asked again."""


def environment(home: Path) -> dict[str, str]:
    """Environment of Flower's programs: offline, state under ``home``, these packages importable."""
    inherited = dict(os.environ)
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


def free_port() -> int:
    """A TCP port on loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class FlowerProcess:
    """A long-running program (SuperLink, SuperNode) in a process group of its own, stopped on exit."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.command, self.log = list(command), log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                self.command,
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

    def check(self) -> None:
        """FlowerFailed when the program has ended."""
        if (code := self._process.poll()) is not None:
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


def superlink_command(port: int, *options: str) -> list[str]:
    """``flower-superlink`` on loopback."""
    fixed = ["--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation"]
    return ["flower-superlink", *fixed, *options]


def write_connection(home: Path, name: str, settings: Mapping[str, Any], options: str = "") -> None:
    """``$FLWR_HOME/config.toml`` with one SuperLink connection. ``options``: further TOML lines."""
    home.mkdir(parents=True, exist_ok=True)
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    text = f'[superlink]\ndefault = "{name}"\n\n[superlink.{name}]\n' + "\n".join(lines) + f"\n{options}\n"
    (home / "config.toml").write_text(text, encoding="utf-8")


def flwr(arguments: Sequence[str], env: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """``flwr ARGUMENTS --format json``: its JSON answer; FlowerSilent after ``seconds``, else FlowerFailed."""
    try:
        done = subprocess.run(
            ["flwr", *arguments, "--format", "json"],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise FlowerSilent(f"flwr {arguments[0]} gave no answer in {seconds:g} s") from None
    try:
        answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError:
        words = (done.stderr or done.stdout).strip()[-300:]
        raise FlowerFailed(f"flwr {arguments[0]} ended with {done.returncode}: {words}") from None
    if done.returncode != 0 or answer.get("success") is False:
        raise FlowerFailed(f"flwr {arguments[0]}: {answer.get('error-message', done.stderr.strip()[-300:])}")
    return answer
