"""``python -m experiments.demos.flower_nodes APP.py [--ray]``: a Flower app on real nodes, all on this machine.

A SuperLink, a SuperNode for each of three members, and a process of Flower's for each message, until the run ends; with
``--ray`` Flower's simulation on Ray in their place. Everything stays on loopback.
APP.py holds the ``client`` and the ``server`` app. It runs in a folder of its own with ``members/N/`` (a key and a
policy for each node, which is also its partition-id) and ``members/roster.txt``. Prints what the server app prints.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import tomlkit

from gradtf_fl.deployment import ChildProcess, FlowerFailed, environment, free_port
from gradtf_fl.flower import new_member
from gradtf_fl.flower_versions import REQUIREMENT, TARGET
from strategies import RayShares, flwr, simulation_connection, superlink_command, write_connection

NODES = 3
LOGGED = re.compile(r"\s*$|\x1b|\s|[A-Z]+ ?:|[0-9]{4}-")
"""A line of a log of Flower's, or of its progress; what an app prints is neither."""
START_S, RUN_S, PAUSE_S = 120.0, 1800.0, 3.0


def main() -> None:
    """Run the app that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("app", type=Path)
    parser.add_argument("--ray", action="store_true", help="on Flower's simulation engine")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gradtf-nodes-") as scratch:
        make_members(Path(scratch), NODES)
        log = run_app(given.app, Path(scratch), NODES, ray=given.ray)
    print("\n".join(line for line in log.splitlines() if not LOGGED.match(line)))


def make_members(folder: Path, count: int) -> None:
    """``members/N/`` and ``members/roster.txt`` in ``folder``."""
    keys = [new_member(folder / "members" / str(number)) for number in range(count)]
    for place in (folder / "members", *(folder / "members" / str(number) for number in range(count))):
        (place / "roster.txt").write_text("\n".join(keys) + "\n")


def run_app(
    app: Path, folder: Path, nodes: int, config: Mapping[str, str | int] | None = None, *, ray: bool = False
) -> str:
    """The run's log.

    Args:
        app: the file; a copy of it is bundled as Flower does it.
        folder: where every process works.
        nodes: how many; their partition-ids are 0, 1, ...
        config: the app's run config.
        ray: on Flower's simulation engine.

    Raises:
        FlowerFailed: a process died, or the run did not complete; the logs stay in ``folder``.
    """
    home, port, log = folder / "flower", free_port(), folder / "superlink.log"
    env = environment(home) | {"PYTHONUNBUFFERED": "1"}  # else what an app prints may come after the run's end
    bundle = write_bundle(app, folder / "app", config or {})
    connection = simulation_connection(port, nodes, RayShares()) if ray else node_connection(port)
    write_connection(home, "nodes", connection)
    with contextlib.chdir(folder), ExitStack() as running:
        command = superlink_command(port, "--insecure", *(["--simulation"] if ray else []))
        superlink = running.enter_context(ChildProcess(command, env, log))
        superlink.wait_for_port(port, START_S)
        for number in range(0 if ray else nodes):
            command = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}"]
            command += ["--host", "127.0.0.1", "--port", str(free_port()), "--node-config", f"partition-id={number}"]
            running.enter_context(ChildProcess(command, env, folder / f"node-{number}.log"))
        run_id = str(flwr(["run", str(bundle), "nodes"], env, START_S)["run-id"])
        end, status = time.monotonic() + RUN_S, ""
        while not status.startswith("finished") and time.monotonic() < end:
            time.sleep(PAUSE_S)
            superlink.check()
            status = str(flwr(["list", "nodes", "--run-id", run_id], env, START_S)["runs"][0]["status"])
        text = log.read_text(errors="replace")
        if status != "finished:completed":
            raise FlowerFailed(f"the run ended as {status or 'nothing'}:\n{text[-4000:]}")
        return text


def node_connection(port: int) -> dict[str, object]:
    """Settings of Flower's connection to a SuperLink on loopback."""
    return {"address": f"127.0.0.1:{port}", "insecure": True}


def write_bundle(app: Path, folder: Path, config: Mapping[str, str | int]) -> Path:
    """Flower's app folder: the file, and what `flwr run` needs to know of it."""
    folder.mkdir()
    shutil.copyfile(app, folder / "app.py")
    (folder / "LICENSE").write_text("Apache-2.0\n")
    project = {"name": "app", "version": "1.0.0", "description": "An app", "license": {"file": "LICENSE"}}
    parts = {"serverapp": "app:server", "clientapp": "app:client"}
    flower = {"publisher": "gradtf", "fab-format-version": 1, "flwr-version-target": TARGET, "components": parts}
    document = {
        "project": project | {"dependencies": [REQUIREMENT]},
        "tool": {"flwr": {"app": flower | {"config": dict(config)}}},
    }
    (folder / "pyproject.toml").write_text(tomlkit.dumps(document))
    return folder


if __name__ == "__main__":
    main()
