"""Where a simulated federation runs: inside this process, or on Flower's Ray simulation. The same apps."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradtf_fl.adapters import Vector
from gradtf_fl.config import SimulationConfig
from gradtf_fl.errors import BudgetExhausted, RoundAborted
from gradtf_fl.reports import State
from gradtf_fl.simulation.setup import FederationFolders

if TYPE_CHECKING:
    from strategies import RoundEvent, RoundRecord

OnRound = Callable[["RoundEvent"], None]


@dataclass(frozen=True)
class Outcome:
    """How a federation ended: records of all attempts, and U after the last finished round, if any."""

    state: State
    reason: str
    records: tuple[RoundRecord, ...]
    global_update: Vector | None


def run_in_process(config: SimulationConfig, folders: FederationFolders, on_round: OnRound) -> Outcome:
    """ServerApp logic and every ClientApp in this process, one organization after the other.

    Raises:
        ConfigError, CorruptFile: a model or checkpoint is missing or wrong; nothing was trained.
    """
    from clients import app
    from strategies import InProcessGrid, run_server

    logging.getLogger("flwr").setLevel(logging.WARNING)
    plan = config.plan(folders.out, folders.organizations_dir, folders.provider_key, folders.prompts)
    count = len(folders.organizations)
    nodes = [{"partition-id": number, "num-partitions": count} for number in range(count)]
    grid = InProcessGrid(app, nodes, plan.to_run_config())
    state: State = "completed"
    reason = ""
    try:
        run_server(grid, plan, on_round)
    except BudgetExhausted as error:
        state, reason = "budget", str(error)
    except RoundAborted as error:
        state, reason = "aborted", str(error)
    return read_outcome(folders, state, reason)


def read_outcome(folders: FederationFolders, state: State, reason: str) -> Outcome:
    """The outcome of a run that has ended, from what it left on disk."""
    from strategies import checkpoints

    last = checkpoints.last_checkpoint(folders.out)
    records = tuple(checkpoints.read_records(folders.out))
    return Outcome(state, reason, records, None if last is None else last.global_update)
