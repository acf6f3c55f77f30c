"""``--engine ray``: the same ServerApp and ClientApps on Flower's Ray simulation, through ``flwr run``.

A SuperLink of our own on a free port of this machine, in a temporary FLWR_HOME, stopped when the run is over. The app
bundle holds two lines that import the installed apps: Flower leaves weights out of bundles.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from experiments.engines import OnRound, Outcome, read_outcome
from experiments.simulation_setup import FederationFolders
from gradtf_fl.config import SimulationConfig
from gradtf_fl.errors import ConfigError, GradtfError
from gradtf_fl.reports.simulation_report import State

START_SECONDS = 60.0
POLL_SECONDS = 0.5
LOG_TAIL = 15
OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
APP = """[project]
name = "gradtf-simulation"
version = "0.1.0"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>=1.41,<1.42"]

[tool.flwr.app]
publisher = "gradtf"
fab-format-version = 1
flwr-version-target = "1.41.0"

[tool.flwr.app.components]
serverapp = "gradtf_simulation.server:app"
clientapp = "gradtf_simulation.client:app"

[tool.flwr.app.config]
{config}
"""


def run_on_ray(config: SimulationConfig, folders: FederationFolders, on_round: OnRound) -> Outcome:
    """Run the federation on Ray, one CPU for each client.

    Raises:
        ConfigError: Ray is not installed. GradtfError: the run ended without a reason on disk (with the log's end).
    """
    try:
        import ray  # noqa: F401
    except ImportError:
        raise ConfigError('--engine ray: Ray is not installed; pip install "gradtf-fl[ray]"') from None
    with tempfile.TemporaryDirectory(prefix="gradtf-flwr-") as name:
        home = Path(name)
        app = _write_app(config, folders, home)
        environment = _environment(home)
        with (home / "superlink.log").open("w+") as log, _superlink(environment, log) as address:
            (home / "config.toml").write_text(
                f'[superlink]\ndefault = "sim"\n\n[superlink.sim]\naddress = "{address}"\ninsecure = true\n'
            )
            output = _run(app, config, folders, environment, on_round)
            state, reason = _ending(config, folders, f"{output} | {_tail(log)}")
    return read_outcome(folders, state, reason)


def _write_app(config: SimulationConfig, folders: FederationFolders, home: Path) -> Path:
    app = home / "app"
    package = app / "gradtf_simulation"
    package.mkdir(parents=True)
    run_config = config.plan(folders.out, folders.organizations_dir, folders.provider_key).to_run_config()
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in run_config.items())
    (app / "pyproject.toml").write_text(APP.format(config=lines))
    (app / "LICENSE").write_text("Apache-2.0\n")
    (package / "__init__.py").write_text("")
    (package / "server.py").write_text("from strategies.server_app import app\n\n__all__ = ['app']\n")
    (package / "client.py").write_text("from clients.client_app import app\n\n__all__ = ['app']\n")
    return app


def _environment(home: Path) -> dict[str, str]:
    """This environment, offline, with our interpreter's programs and packages first."""
    programs = str(Path(sys.executable).parent)
    packages = str(Path(__file__).resolve().parents[1])
    return (
        os.environ
        | OFFLINE
        | {
            "FLWR_HOME": str(home),
            "PATH": os.pathsep.join([programs, os.environ.get("PATH", "")]),
            "PYTHONPATH": os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH", "")])),
        }
    )


@contextmanager
def _superlink(environment: dict[str, str], log: IO[str]) -> Iterator[str]:
    """A SuperLink in simulation mode on a free port; yields its address and stops all it started."""
    address = f"127.0.0.1:{_free_port()}"
    host, port = address.split(":")
    command = ["flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--host", host, "--port", port, "--disable-runtime-dependency-installation"]
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + START_SECONDS
        while not _listens(host, int(port)):
            if process.poll() is not None or time.monotonic() > end:
                raise GradtfError(f"Flower's SuperLink did not start: {_tail(log)}")
            time.sleep(POLL_SECONDS)
        yield address
    finally:
        _stop_group(process)


def _stop_group(process: subprocess.Popen[bytes]) -> None:
    """End the SuperLink and everything it started: its whole session, first politely."""
    for number, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _run(
    app: Path, config: SimulationConfig, folders: FederationFolders, environment: dict[str, str], on_round: OnRound
) -> str:
    """``flwr run``; finished rounds are told as their records appear on disk. Returns the end of its output."""
    resources = f"num-supernodes={config.organizations} client-resources-num-cpus=1"
    command = ["flwr", "run", str(app), "sim", "--stream", "--federation-config", resources]
    output = app.parent / "run.log"
    with output.open("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        told = 0
        try:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                told = _tell(config, folders, told, on_round)
        finally:
            _stop_group(process)
        _tell(config, folders, told, on_round)
        return _tail(log)


def _tell(config: SimulationConfig, folders: FederationFolders, told: int, on_round: OnRound) -> int:
    from strategies.checkpoints import read_records
    from strategies.records import RoundEvent

    records = read_records(folders.out)
    for record in records[told:]:
        on_round(RoundEvent("end", record.round, config.rounds, record=record))
    return len(records)


def _ending(config: SimulationConfig, folders: FederationFolders, log: str) -> tuple[State, str]:
    """How the run ended, by what it left on disk: Flower tells no more than that an app failed."""
    from strategies.checkpoints import read_records

    records = read_records(folders.out)
    if sum(record.state == "completed" for record in records) >= config.rounds:
        return "completed", ""
    if not records or records[-1].state != "aborted":
        raise GradtfError(f"the Ray simulation ended without a result: {log}")
    last = records[-1]
    refused = last.refused.get("budget", 0)
    if refused:
        return "budget", f"round {last.round}: {refused} organizations refuse, their privacy budget is spent"
    return "aborted", f"round {last.round} aborted: {last.joined} joined, lost {dict(last.dropped)}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, port)) == 0


def _tail(log: IO[str]) -> str:
    log.flush()
    log.seek(0)
    return " | ".join(line.strip("─╭╮╰╯│ ") for line in log.read().splitlines()[-LOG_TAIL:] if line.strip("─╭╮╰╯│ "))
