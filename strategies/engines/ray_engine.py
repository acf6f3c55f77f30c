"""The same apps on Flower's Ray simulation, through ``flwr run``.

Flower's own ``flwr run .`` leaves a SuperLink behind on a fixed port; here the SuperLink belongs to this run: its own
port, its own FLWR_HOME, stopped at the end.
"""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
import time
from pathlib import Path

from gradtf_fl.config import FederationPlan
from gradtf_fl.deployment import ChildProcess, FlowerFailed, FlowerSilent, environment, free_port, last_line
from gradtf_fl.errors import ConfigError, RoundAborted
from gradtf_fl.flower import CONNECT, OnEvent, RoundEvent, RoundRecord, read_records
from strategies.engines.flower_app import absolute, write_app
from strategies.engines.flower_processes import flwr, superlink_command, write_connection

START_SECONDS = 60.0
POLL_SECONDS = 0.5
STATUS_SECONDS = 10.0  # `flwr list` costs a second of CPU: not more often than this
CLIENT_CPUS = 1  # Flower's default of 2 would halve the parallel clients


def run_on_ray(plan: FederationPlan, on_event: OnEvent | None = None, timeout_s: float = 24 * 3600.0) -> None:
    """Run the plan's rounds on Ray; results lie in ``plan.out`` as after `run_server`.

    Args:
        plan: must name ``organizations_dir``; every folder there needs a ``[simulation]`` table.
        on_event: gets an ``end`` event for each round as it appears on disk (stages are not seen from outside).

    Raises:
        ConfigError: Ray is not installed, or the plan names no organizations.
        RoundAborted: as `run_server`. FlowerFailed: anything else that fails the run.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError('--engine ray: Ray is not installed; pip install "gradtf-fl[ray]"')
    if plan.organizations_dir is None:
        raise ConfigError("--engine ray: the plan names no organizations_dir")
    plan = absolute(plan)
    plan.out.mkdir(parents=True, exist_ok=True)
    log = plan.out / "flower.log"
    with tempfile.TemporaryDirectory(prefix="gradtf-flower-") as scratch:
        home, port = Path(scratch) / "home", free_port()
        app, env = write_app(Path(scratch) / "app", plan), environment(home)
        write_connection(
            home,
            "simulation",
            {
                "address": f"127.0.0.1:{port}",
                "insecure": True,
                "options": {
                    "num-supernodes": plan.organizations,
                    "backend": {"client-resources": {"num-cpus": CLIENT_CPUS}},
                },
            },
        )
        command = superlink_command(port, "--insecure", "--simulation", "--isolation", "subprocess")
        with ChildProcess(command, env, log) as superlink:
            superlink.wait_for_port(port, START_SECONDS)
            run_id = str(flwr(["run", str(app), "simulation"], env, START_SECONDS)["run-id"])
            status = wait_for_run("simulation", run_id, env, plan, on_event, timeout_s, superlink)
    raise_failure(status, plan.out, log)


def wait_for_run(
    connection: str,
    run_id: str,
    env: dict[str, str],
    plan: FederationPlan,
    on_event: OnEvent | None,
    timeout_s: float,
    superlink: ChildProcess,
) -> str:
    """Poll until the run has finished; its status, e.g. ``finished:completed``. FlowerFailed at the time limit."""
    end, seen, due, status = time.monotonic() + timeout_s, 0, 0.0, ""
    while time.monotonic() < end:
        superlink.check()
        if time.monotonic() >= due:
            with contextlib.suppress(FlowerSilent):  # a busy machine: ask again
                runs = flwr(["list", connection, "--run-id", run_id], env, START_SECONDS)["runs"]
                status = str(runs[0]["status"])
            due = time.monotonic() + STATUS_SECONDS
        records = read_records(plan.out)
        for record in records[seen:]:
            due = 0.0  # perhaps the last one
            if on_event is not None:
                on_event(RoundEvent("end", record.round, plan.rounds, record=record))
        seen = len(records)
        if status.startswith("finished"):
            return status
        time.sleep(POLL_SECONDS)
    raise FlowerFailed(f"the run has not finished after {timeout_s:g} s; see {superlink.log}")


def raise_failure(status: str, out: Path, log: Path) -> None:
    """Nothing for a completed run; else the error that the ServerApp's last record tells of."""
    if status == "finished:completed":
        return
    records = read_records(out)
    if records and records[-1].state == "aborted":
        raise failure_of(records[-1])
    raise FlowerFailed(f"the run ended as {status}; see {log}: {last_line(log)}")


def failure_of(record: RoundRecord) -> RoundAborted:
    """The error that an aborted round ended with."""
    if record.aborted_at == CONNECT:
        return RoundAborted(CONNECT, {"connected": record.joined}, "too few organizations are connected")
    counts = {"advertise": record.joined, "mask": record.masked, "unmask": record.unmasked}
    return RoundAborted(record.aborted_at, {stage: count for stage, count in counts.items() if count})
