"""What a simulated federation costs by its number of organizations, each run in a process of its own.

Every run is a whole `simulate`: folders, ledgers, DP-SGD, secure aggregation, delivery, evaluation. The task is small
(`TASK`), so that a thousand organizations take minutes. What is left is their cost besides training.
`USUAL` is a task of the usual size, for the share that this is of bare training.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.measuring import Progress, Row
from gradtf_fl.reports import SimulationEvent

TASK: dict[str, Any] = {"rounds": 1, "steps": 2, "batch": 8, "rows": 32, "test_rows": 8, "transformer": "none"}
USUAL: dict[str, Any] = {"rounds": 1, "steps": 50, "batch": 64, "rows": 1024, "test_rows": 16, "transformer": "none"}
SMALL_RUN = 50
"""Organizations of the comparison with bare training."""
RAY = "ray"
BARE = "bare train_dp of the same organizations"
SECONDS = 3600.0
"""That one run may take."""


@dataclass(frozen=True)
class SizeBench:
    """Which runs.

    Attributes:
        organizations: of the runs in one process.
        shared: of those in two processes, and of those in one.
        ray: of those on Flower's Ray simulation; none where Ray is not installed.
    """

    organizations: tuple[int, ...] = (10, 30, 100, 300, 1000)
    shared: tuple[int, ...] = (SMALL_RUN,)
    ray: tuple[int, ...] = (10, 30)


@dataclass(frozen=True)
class SizeRun:
    """One run.

    Attributes:
        organizations: how many.
        workers: processes that they run in.
        engine: as ``gradtf simulate --engine``.
        wall_s: seconds of the whole run, imports left out.
        federation_s: seconds of loading, rounds and deliveries.
        federation_cpu_s: CPU seconds of this process in them.
        cpu_s: CPU seconds of this process and all that it started, imports left out.
        peak_mb: most memory that the main process held, MB.
        worker_mb: most that any process which it started held, MB.
        bare_s: CPU seconds of `train_dp` alone for the same organizations, 0 where it was not run.
    """

    organizations: int
    workers: int
    engine: str
    wall_s: float
    federation_s: float
    federation_cpu_s: float
    cpu_s: float
    peak_mb: float
    worker_mb: float
    bare_s: float = 0.0

    @property
    def organization_s(self) -> float:
        """Wall seconds of an organization."""
        return self.wall_s / self.organizations


def bench_sizes(plan: SizeBench, progress: Progress) -> list[SizeRun]:
    """All runs of ``plan``, one after the other; one that fails is told of and left out."""
    asked: list[tuple[int, int, str, bool]] = [(count, 1, "in-process", False) for count in plan.organizations]
    asked += [(count, workers, "in-process", True) for count in plan.shared for workers in (1, 2)]
    asked += [(count, 1, RAY, False) for count in plan.ray]
    found = []
    for number, (count, workers, engine, usual) in enumerate(asked):
        progress(f"{count} organizations, {workers} workers, {engine}", number, len(asked))
        try:
            found.append(_in_a_process(count, workers, engine, usual))
        except (subprocess.SubprocessError, OSError) as error:  # what was measured until then is not lost
            print(f"{count} organizations, {engine}: not measured ({error})", file=sys.stderr)
    return found


def size_rows(runs: Sequence[SizeRun]) -> list[Row]:
    """The runs as a benchmark's rows: Flower's Ray simulation compared with ours of as many organizations."""
    rays = {run.organizations: run for run in runs if run.engine == RAY}
    rows = []
    for run in runs:
        if run.engine == RAY or run.bare_s or run.workers > 1:
            continue
        ray, size = rays.get(run.organizations), {"organizations": float(run.organizations)}
        peer = "the same apps on Flower's Ray simulation" if ray else None
        seconds, memory = (ray.organization_s, ray.peak_mb + ray.worker_mb) if ray else (None, None)
        rows.append(Row("simulation: an organization", size, "s", run.organization_s, peer, seconds))
        rows.append(Row("simulation: CPU of an organization", size, "s", run.cpu_s / run.organizations))
        note = "of the main process; Ray's: and of the largest other one" if ray else ""
        rows.append(Row("simulation: peak memory", size, "MB", run.peak_mb, peer, memory, note=note))
    for run in runs:
        size = {"organizations": float(run.organizations), "workers": float(run.workers)}
        if run.bare_s:
            rows.append(
                Row(
                    "simulation of the usual task: CPU of the federation",
                    size,
                    "s",
                    run.federation_cpu_s,
                    BARE,
                    run.bare_s,
                )
            )
        if run.bare_s or run.workers > 1:
            rows.append(Row("simulation of the usual task: the federation", size, "s", run.federation_s))
    return rows


def _in_a_process(organizations: int, workers: int, engine: str, usual: bool) -> SizeRun:
    arguments = [str(organizations), str(workers), engine, "usual" if usual else "small"]
    command = [sys.executable, "-m", "experiments.bench.federation_size", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=SECONDS, check=True)
    return SizeRun(**json.loads(done.stdout.splitlines()[-1]))


def measured(
    organizations: int, workers: int = 1, engine: str = "in-process", usual: bool = False, bare: bool = False
) -> SizeRun:
    """One run in this process, which should have done nothing before: its peak is the process's."""
    from gradtf_fl.config import SimulationConfig, validate
    from gradtf_fl.simulation import simulate

    _import_all()
    values = (USUAL if usual else TASK) | {"organizations": organizations, "workers": workers, "engine": engine}
    with tempfile.TemporaryDirectory(prefix="gradtf-bench-") as scratch:
        config = validate(SimulationConfig, values | {"out": str(Path(scratch) / "run")}, lambda key: key)
        began, cpu = time.monotonic(), _cpu_seconds()
        stages = StageCpu()
        report = simulate(config, stages.note)
        wall, spent = time.monotonic() - began, _cpu_seconds() - cpu
        own, others = (_peak_mb(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        alone = bare_training(config, Path(scratch) / "run" / "organizations") if bare else 0.0
    if report.state != "completed":
        raise RuntimeError(f"the run of {organizations} organizations ended {report.state}: {report.reason}")
    federation = report.seconds["federation"]
    return SizeRun(organizations, workers, engine, wall, federation, stages.federation_s, spent, own, others, alone)


@dataclass
class StageCpu:
    """CPU seconds of this process in the federation itself, from its first event to the first evaluation's."""

    began: float | None = None
    ended: float | None = None

    def note(self, event: SimulationEvent) -> None:
        """Told each step of the run."""
        if event.stage == "federation":
            self.began = time.process_time()
        elif event.stage == "evaluate TinyLM":
            self.ended = time.process_time()

    @property
    def federation_s(self) -> float:
        """Seconds in between; 0 where either did not come."""
        return 0.0 if self.began is None or self.ended is None else self.ended - self.began


def bare_training(config: Any, folders: Path) -> float:
    """CPU seconds of DP-SGD alone: the same rows, model and noise as one round of ``config``, in a plain loop."""
    from gradtf_fl.adapters import AdaptedModel
    from gradtf_fl.privacy import noise_multiplier
    from gradtf_fl.tasks import encode_rows, read_rows
    from gradtf_fl.training import train_dp
    from strategies import tiny_spec

    adapted = AdaptedModel.load(config.tiny, tiny_spec(config))
    model = AdaptedModel.shared(config.tiny, adapted.space.spec, role="bare")
    sigma = noise_multiplier(config.epsilon, config.delta, config.batch / config.rows, config.rounds * config.steps)
    every = [encode_rows(read_rows(path), adapted.tokenizer) for path in sorted(folders.glob("*/train.jsonl"))]
    began = time.process_time()
    for number, rows in enumerate(every):
        train_dp(
            model.attach(),
            rows,
            sigma=sigma,
            clip=config.clip,
            batch=config.batch,
            steps=config.steps,
            rate=config.rate,
            seed=number,
        )
    return time.process_time() - began


def _import_all() -> None:
    """What every run imports, before the clock starts."""
    import opacus  # noqa: F401
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    from gradtf_fl.simulation import simulate  # noqa: F401
    from gradtf_fl.training import train_dp  # noqa: F401


def _cpu_seconds() -> float:
    found = os.times()
    return found.user + found.system + found.children_user + found.children_system


def _peak_mb(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / 1024


def draw_sizes(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Seconds of an organization and peak memory, by the number of organizations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4))
    small = [run for run in runs if run["workers"] == 1 and not run["bare_s"]]
    names = {"in-process": "one process", RAY: "Flower's Ray simulation"}
    for engine, name in names.items():
        own = sorted(
            (run for run in small if run["engine"] == engine),
            key=lambda run: int(run["organizations"]),
        )
        if own:
            counts = [run["organizations"] for run in own]
            left.plot(counts, [run["wall_s"] / run["organizations"] for run in own], "o-", label=name)
            right.plot(counts, [run["peak_mb"] for run in own], "o-", label=name)
    for axes, said in ((left, "seconds for each organization"), (right, "peak memory of the main process, MB")):
        axes.set_xscale("log")
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        counts = sorted({int(run["organizations"]) for run in small})
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_xlabel("organizations")
        axes.set_title(said, fontsize=10)
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main(arguments: Sequence[str]) -> None:
    """``N WORKERS ENGINE small|usual``: one run, as JSON; or ``draw FILE.json FILE.png``: the figure of a benchmark."""
    if arguments[0] == "draw":
        document = json.loads(Path(arguments[1]).read_text(encoding="utf-8"))
        draw_sizes(document["runs"], Path(arguments[2]))
        return
    count, workers, engine, size = arguments
    usual = size == "usual"
    run = measured(int(count), int(workers), engine, usual, bare=usual and workers == "1")
    print(json.dumps(asdict(run)))


if __name__ == "__main__":
    main(sys.argv[1:])
