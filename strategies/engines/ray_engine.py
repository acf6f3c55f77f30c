"""The same apps on Flower's Ray simulation, through ``flwr run``.

Flower's own ``flwr run .`` leaves a SuperLink behind on a fixed port; here the SuperLink belongs to this run: its own
port, its own FLWR_HOME, stopped at the end.
"""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradtf_fl.config import FederationPlan
from gradtf_fl.deployment import ChildProcess, FlowerFailed, FlowerSilent, environment, free_port, last_line
from gradtf_fl.errors import ConfigError, RoundAborted
from gradtf_fl.flower import CONNECT, OnEvent, RoundEvent, RoundRecord, read_records
from gradtf_fl.shown import shown
from strategies.engines.flower_app import absolute, write_app
from strategies.engines.flower_processes import flwr, superlink_command, write_connection

COMPLETED = "finished:completed"
START_SECONDS = 60.0
POLL_SECONDS = 0.5
STATUS_SECONDS = 10.0  # `flwr list` costs a second of CPU: not more often than this


@dataclass(frozen=True)
class RayShares:
    """What of a Ray cluster each organization's app takes, and which cluster.

    Attributes:
        cpus: CPU cores; Flower's default of 2 would halve the parallel clients.
        gpus: GPUs, 0.25 for four organizations on one.
        address: of a running cluster, as `ray.init` takes it ("auto" for the one that RAY_ADDRESS or this machine
            has); None for one of this run's own. Its machines see the same paths.
    """

    cpus: int = 1
    gpus: float = 0.0
    address: str | None = None

    def backend(self) -> dict[str, Any]:
        """Flower's options of the Ray backend."""
        return {"client-resources": {"num-cpus": self.cpus, "num-gpus": self.gpus}}

    def environment(self) -> dict[str, str]:
        """What the simulation's process finds the cluster by. Flower's options have no place for an address."""
        return {} if self.address is None else {"RAY_ADDRESS": self.address}


def run_on_ray(
    plan: FederationPlan,
    on_event: OnEvent | None = None,
    timeout_s: float = 24 * 3600.0,
    shares: RayShares | None = None,
) -> None:
    """Run the plan's rounds on Ray; results lie in ``plan.out`` as after `run_server`.

    Args:
        plan: must name ``organizations_dir``; every folder there needs a ``[simulation]`` table.
        on_event: gets an ``end`` event for each round as it appears on disk (stages are not seen from outside).
        timeout_s: seconds that the run may take.
        shares: what each organization takes of the cluster, and which cluster; default: one core of one's own.

    Raises:
        ConfigError: Ray is not installed, or the plan names no organizations.
        RoundAborted: as `run_server`. FlowerFailed: anything else that fails the run.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError('--engine ray: Ray is not installed; pip install "gradtf-fl[ray]"')
    if plan.organizations_dir is None:
        raise ConfigError("--engine ray: the plan names no organizations_dir")
    plan, shares = absolute(plan), shares or RayShares()
    plan.out.mkdir(parents=True, exist_ok=True)
    log = plan.out / "flower.log"
    with tempfile.TemporaryDirectory(prefix="gradtf-flower-") as scratch:
        home, port = Path(scratch) / "home", free_port()
        app, env = write_app(Path(scratch) / "app", plan), environment(home) | shares.environment()
        write_connection(
            home,
            "simulation",
            simulation_connection(port, plan.organizations, shares),
        )
        command = superlink_command(port, "--insecure", "--simulation", "--isolation", "subprocess")
        with ChildProcess(command, env, log) as superlink:
            superlink.wait_for_port(port, START_SECONDS)
            run_id = str(flwr(["run", str(app), "simulation"], env, START_SECONDS)["run-id"])
            status = wait_for_run("simulation", run_id, env, plan, on_event, timeout_s, superlink)
    raise_failure(status, plan.out, log)


def simulation_connection(port: int, organizations: int, shares: RayShares) -> dict[str, Any]:
    """Settings of Flower's connection to the run's own SuperLink."""
    return {
        "address": f"127.0.0.1:{port}",
        "insecure": True,
        "options": {"num-supernodes": organizations, "backend": shares.backend()},
    }


def wait_for_run(
    connection: str,
    run_id: str,
    env: dict[str, str],
    plan: FederationPlan,
    on_event: OnEvent | None,
    timeout_s: float,
    superlink: ChildProcess,
) -> str:
    """Poll until the run has finished: ``finished:completed``, or another status with what Flower says of it.

    Raises:
        FlowerFailed: at the time limit.
    """
    end, seen, due, status, details = time.monotonic() + timeout_s, 0, 0.0, "", ""
    while time.monotonic() < end:
        superlink.check()
        if time.monotonic() >= due:
            with contextlib.suppress(FlowerSilent):  # a busy machine: ask again
                run = flwr(["list", connection, "--run-id", run_id], env, START_SECONDS)["runs"][0]
                status, details = str(run["status"]), str(run.get("status-details", ""))
            due = time.monotonic() + STATUS_SECONDS
        records = read_records(plan.out)
        for record in records[seen:]:
            due = 0.0  # perhaps the last one
            if on_event is not None:
                on_event(RoundEvent("end", record.round, plan.rounds, record=record))
        seen = len(records)
        if status.startswith("finished"):
            return status if status == COMPLETED else f"{status} ({shown(details)})"
        time.sleep(POLL_SECONDS)
    raise FlowerFailed(f"the run has not finished after {timeout_s:g} s; see {superlink.log}")


def raise_failure(status: str, out: Path, log: Path) -> None:
    """Nothing for a completed run; else the error in the ServerApp's last record."""
    if status == COMPLETED:
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
