"""Where a simulated federation runs: in this process, in several, or on Flower's Ray simulation. The same apps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gradtf_fl.adapters import Vector
from gradtf_fl.config import FederationPlan, SimulationConfig
from gradtf_fl.errors import RoundAborted
from gradtf_fl.reports import State
from gradtf_fl.simulation.setup import FederationFolders

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp

    from gradtf_fl.flower import RoundEvent, RoundRecord
    from strategies import WorkerPool

OnRound = Callable[["RoundEvent"], None]


@dataclass(frozen=True)
class Outcome:
    """How a federation ended: records of all attempts, and U after the last finished round, if any."""

    state: State
    reason: str
    records: tuple[RoundRecord, ...]
    global_update: Vector | None


def run_engine(
    config: SimulationConfig, folders: FederationFolders, on_round: OnRound, pool: WorkerPool | None = None
) -> Outcome:
    """Run the federation on the engine that ``config`` names.

    Args:
        on_round: told each event of a round; on Ray only that a round ended, as its stages are not seen from outside.
        pool: processes that organizations run in; None: in this one, one after the other.

    Raises:
        ConfigError, CorruptFile: a model or checkpoint is missing or wrong, or Ray is not installed; nothing was
            trained.
        FlowerFailed: the run on Ray ended without a reason on disk (names its log).
        WorkerDied: a process of ``pool`` has ended; finished rounds are on disk.
    """
    from clients import refused_for_budget
    from gradtf_fl.flower import read_records
    from strategies import checkpoints

    plan = config.plan(folders.out, folders.organizations_dir, folders.provider_key, folders.prompts)
    state: State = "completed"
    reason = ""
    try:
        if config.engine == "ray":
            from strategies import RayShares, run_on_ray

            shares = RayShares(config.ray_cpus, config.ray_gpus, config.ray_address)
            run_on_ray(plan, on_round, shares=shares)
        else:
            _run_here(plan, folders.organizations, on_round, pool)
    except RoundAborted as error:
        poor = sum(map(refused_for_budget, folders.organizations))  # the server is never told
        state, reason = "budget" if poor else "aborted", str(error)
        if poor:
            reason += f"; the privacy budget of {poor} organizations does not allow it"
    last = checkpoints.last_checkpoint(folders.out)
    records = tuple(read_records(folders.out))
    return Outcome(state, reason, records, None if last is None else last.global_update)


def _run_here(plan: FederationPlan, organizations: Sequence[Path], on_round: OnRound, pool: WorkerPool | None) -> None:
    """ServerApp logic in this process; every ClientApp, too, or in the processes of ``pool``."""
    from strategies import InProcessGrid, WorkerGrid, run_server

    logging.getLogger("flwr").setLevel(logging.WARNING)
    nodes = [{"organization-dir": str(folder), "simulated": True} for folder in organizations]
    settings = plan.to_run_config()
    grid = InProcessGrid(load_app(), nodes, settings) if pool is None else WorkerGrid(pool, load_app, nodes, settings)
    run_server(grid, plan, on_round)


def load_app() -> ClientApp:
    """The organizations' app, in this process or a worker."""
    from clients import app

    logging.getLogger("flwr").setLevel(logging.WARNING)
    return app


@contextmanager
def worker_pool(config: SimulationConfig) -> Iterator[WorkerPool | None]:
    """The processes that ``config`` asks for; None where it is this one alone."""
    if config.workers == 1:
        yield None
        return
    from strategies import WorkerPool, share_of_threads

    with WorkerPool(min(config.workers, config.organizations), share_of_threads(config.workers)) as pool:
        yield pool
