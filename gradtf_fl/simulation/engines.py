"""Where a simulated federation runs: inside this process, or on Flower's Ray simulation. The same apps."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradtf_fl.adapters import Vector
from gradtf_fl.config import FederationPlan, SimulationConfig
from gradtf_fl.errors import RoundAborted
from gradtf_fl.reports import State
from gradtf_fl.simulation.setup import FederationFolders

if TYPE_CHECKING:
    from gradtf_fl.flower import RoundEvent, RoundRecord

OnRound = Callable[["RoundEvent"], None]


@dataclass(frozen=True)
class Outcome:
    """How a federation ended: records of all attempts, and U after the last finished round, if any."""

    state: State
    reason: str
    records: tuple[RoundRecord, ...]
    global_update: Vector | None


def run_engine(config: SimulationConfig, folders: FederationFolders, on_round: OnRound) -> Outcome:
    """Run the federation on the engine that ``config`` names.

    Args:
        on_round: told each event of a round; on Ray only that a round ended, as its stages are not seen from outside.

    Raises:
        ConfigError, CorruptFile: a model or checkpoint is missing or wrong, or Ray is not installed; nothing was
            trained.
        FlowerFailed: the run on Ray ended without a reason on disk (names its log).
    """
    from clients import refused_for_budget
    from gradtf_fl.flower import read_records
    from strategies import checkpoints

    plan = config.plan(folders.out, folders.organizations_dir, folders.provider_key, folders.prompts)
    state: State = "completed"
    reason = ""
    try:
        if config.engine == "ray":
            from strategies import run_on_ray

            run_on_ray(plan, on_round)
        else:
            _run_in_process(plan, len(folders.organizations), on_round)
    except RoundAborted as error:
        poor = sum(map(refused_for_budget, folders.organizations))  # the server is never told
        state, reason = "budget" if poor else "aborted", str(error)
        if poor:
            reason += f"; the privacy budget of {poor} organizations does not allow it"
    last = checkpoints.last_checkpoint(folders.out)
    records = tuple(read_records(folders.out))
    return Outcome(state, reason, records, None if last is None else last.global_update)


def _run_in_process(plan: FederationPlan, organizations: int, on_round: OnRound) -> None:
    """ServerApp logic and every ClientApp in this process, one organization after the other."""
    from clients import app
    from strategies import InProcessGrid, run_server

    logging.getLogger("flwr").setLevel(logging.WARNING)
    nodes = [{"partition-id": number, "num-partitions": organizations} for number in range(organizations)]
    run_server(InProcessGrid(app, nodes, plan.to_run_config()), plan, on_round)
