"""``gradtf bench federation``: what an exchange of server and organizations costs, compared with Flower's processes.

Three organizations and a server on loopback, as deployed (TLS, node authentication, SQLite), twice in one run: with
``gradtf org run`` (resident worker, our executor), and with ``flower-supernode`` as it is, which starts a process for
every message that unpacks the app bundle and imports what its handler needs. Same rows, same models, same plan, same
handlers. Figures are the server's own clock: from the first message of a stage to the last answer that counted.

Then simulations of 10 to 1,000 organizations (`experiments.bench.federation_size`).
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clients import join_federation, make_organization
from experiments.bench.federation_size import TASK, USUAL, SizeBench, bench_sizes, size_rows
from experiments.measuring import Progress, Row, machine
from gradtf_fl.deployment import (
    ChildProcess,
    environment,
    free_port,
    init_authority,
    issue_server,
    load_server,
    read_lines,
)
from gradtf_fl.file_names import ENROLMENT, EVENTS, FLOWER_HOME, NODE_KEY
from gradtf_fl.round_messages import STAGES
from gradtf_fl.tasks import house_rules_federation, write_rows
from strategies import ServerRun, make_server

PACKAGES = ("flwr", "torch", "transformers", "peft")
ORGANIZATIONS = 3
OURS, PEER = "gradtf org run", "flower-supernode (a process per message)"
FLOWER_POLL_S = 3.0


@dataclass(frozen=True)
class FederationBench:
    """What is measured.

    Attributes:
        rounds: of the deployments, after one that warms up.
        steps: of DP-SGD in each.
        sizes: the simulations; None for none.
    """

    rounds: int
    steps: int = 5
    sizes: SizeBench | None = None


FULL_FEDERATION = FederationBench(rounds=4, sizes=SizeBench())
QUICK_FEDERATION = FederationBench(rounds=1, sizes=SizeBench((10, 30), (), ()))


def bench_federation(plan: FederationBench, progress: Progress) -> dict[str, Any]:
    """The document of ``gradtf bench federation --json``."""
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="gradtf-bench-") as scratch:
        for number, who in enumerate((OURS, PEER)):
            progress(who, number, 2)
            found[who] = exchanges(Path(scratch) / str(number), who, plan)
    progress("done", 2, 2)
    size: dict[str, float] = {"organizations": ORGANIZATIONS, "steps": plan.steps, "exchanges a round": len(STAGES)}
    rows = [
        _row(f"an exchange, mean of a round's {len(STAGES)}", size, found, STAGES, plan),
        _row("the exchange that trains", size, found, STAGES[:1], plan),
        _row("an exchange of the secure aggregation", size, found, STAGES[1:], plan),
        _row("a whole round's exchanges", size, found, STAGES, plan, whole=True),
    ]
    runs = [] if plan.sizes is None else bench_sizes(plan.sizes, progress)
    rows += size_rows(runs)
    return {
        "machine": machine(PACKAGES),
        "rows": [row.to_json() for row in rows],
        "task": TASK,
        "usual task": USUAL,
        "runs": [asdict(run) for run in runs],
    }


def _row(
    what: str,
    size: dict[str, float],
    found: dict[str, dict[str, list[float]]],
    stages: tuple[str, ...],
    plan: FederationBench,
    whole: bool = False,
) -> Row:
    def figure(who: str) -> float:
        rounds = zip(*(found[who][stage] for stage in stages), strict=True)
        return float(statistics.median(sum(seconds) / (1 if whole else len(stages)) for seconds in rounds))

    note = "ours looks for messages every .5 s while a round is on; the limit is Flower's own poll interval"
    limit = None if whole else FLOWER_POLL_S
    return Row(what, size, "s", figure(OURS), PEER, figure(PEER), limit, runs=plan.rounds, note=note)


def exchanges(folder: Path, who: str, plan: FederationBench) -> dict[str, list[float]]:
    """Seconds of each stage in each measured round of one deployment."""
    folder.mkdir()
    server, organizations = deployment(folder, plan)
    with nodes(organizations, who, server):
        ServerRun(load_server(server), tell=lambda line: print(line, file=sys.stderr)).run()
    seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for line in read_lines(server / EVENTS):
        if line["event"] == "exchange" and line["round"] > 1:
            seconds[line["stage"]].append(float(line["seconds"]))
    return seconds


def deployment(
    folder: Path,
    plan: FederationBench,
    pair: tuple[str, str] = ("embedded:tiny", "embedded:llm"),
    transformer: str | Path = "embedded",
    score: bool = False,
) -> tuple[Path, list[Path]]:
    """Folders of a server and of its organizations, joined; ``score``: they test each adapter at home."""
    init_authority(folder / "ca", "benchmark", 2)
    issue_server(folder / "ca", ["127.0.0.1"], folder / "tls", 1)
    data = house_rules_federation("same", ORGANIZATIONS, 512, 16, 0)
    organizations = [folder / f"org-{number}" for number in range(ORGANIZATIONS)]
    for path, rows in zip(organizations, data, strict=True):
        train, test = folder / f"{path.name}.jsonl", folder / f"{path.name}-test.jsonl"
        write_rows(train, rows.train)
        write_rows(test, rows.test)
        make_organization(path, path.name, train, test if score else None, 100.0, 1e-5, *pair)
    address = f"127.0.0.1:{free_port()}"
    tls = {"ca": folder / "ca/ca.crt", "certificate": folder / "tls/server.crt", "key": folder / "tls/server.key"}
    enrolments = [path / ENROLMENT for path in organizations]
    values: dict[str, Any] = {"rounds": plan.rounds + 1, "steps": plan.steps, "deadline_s": 300.0, "join_s": 300.0}
    values |= {"tiny": pair[0], "llm": pair[1], "transformer": str(transformer)}
    invitation = make_server(folder / "server", enrolments, address, address, tls, values)
    for path in organizations:
        join_federation(path, invitation)
    return folder / "server", organizations


@contextmanager
def nodes(organizations: list[Path], who: str, server: Path) -> Iterator[None]:
    """The organizations' nodes, ours or Flower's, which are started once their keys are registered."""
    running, leave = ExitStack(), threading.Event()

    def start() -> None:
        while not leave.is_set() and _registered(server) < len(organizations):
            leave.wait(0.5)
        for folder in organizations:
            (folder / FLOWER_HOME).mkdir(mode=0o700, exist_ok=True)  # a folder that others can read is refused
            command = _ours(folder) if who == OURS else _flowers(folder)
            if not leave.is_set():
                running.enter_context(ChildProcess(command, environment(folder / FLOWER_HOME), folder / "node.log"))
        leave.wait()  # the kernel ends children with the thread that started them

    thread = threading.Thread(target=start)
    thread.start()
    try:
        yield
    finally:
        leave.set()
        thread.join()
        running.close()


def _registered(server: Path) -> int:
    try:
        return sum(map(len, json.loads((server / FLOWER_HOME / "registered.json").read_text()).values()))
    except (OSError, ValueError):
        return 0


def _ours(folder: Path) -> list[str]:
    return [sys.executable, "-m", "gradtf_fl.cli.main", "org", "run", str(folder)]


def _flowers(folder: Path) -> list[str]:
    from clients import load_organization

    server = load_organization(folder).config.server
    assert server is not None
    command = ["flower-supernode", "--superlink", server.address, "--root-certificates", str(folder / server.ca)]
    command += ["--auth-supernode-private-key", str(folder / NODE_KEY), "--host", "127.0.0.1"]
    return [*command, "--port", str(free_port()), "--node-config", f'organization-dir="{folder}"']
