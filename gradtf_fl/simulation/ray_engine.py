"""``--engine ray``: the same ServerApp and ClientApps on Flower's Ray simulation (`strategies.engines.ray_engine`)."""

from __future__ import annotations

from gradtf_fl.config import SimulationConfig
from gradtf_fl.errors import BudgetExhausted, RoundAborted
from gradtf_fl.reports import State
from gradtf_fl.simulation.engines import OnRound, Outcome, read_outcome
from gradtf_fl.simulation.setup import FederationFolders


def run_simulation_on_ray(config: SimulationConfig, folders: FederationFolders, on_round: OnRound) -> Outcome:
    """Run the federation on Ray; a round is told when it ended, as its stages are not seen from outside.

    Raises:
        ConfigError: Ray is not installed. FlowerFailed: the run ended without a reason on disk (names its log).
    """
    from strategies import run_on_ray

    plan = config.plan(folders.out, folders.organizations_dir, folders.provider_key, folders.prompts)
    state: State = "completed"
    reason = ""
    try:
        run_on_ray(plan, on_round)
    except BudgetExhausted as error:
        state, reason = "budget", str(error)
    except RoundAborted as error:
        state, reason = "aborted", str(error)
    return read_outcome(folders, state, reason)
