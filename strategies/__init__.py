"""The server's side in Flower: the strategy, the ServerApp, round checkpoints, and the in-process grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from strategies import checkpoints
    from strategies.checkpoints import write_roster
    from strategies.engines.flower_processes import flwr, superlink_command, write_connection
    from strategies.engines.in_process import InProcessGrid
    from strategies.engines.ray_engine import RayShares, run_on_ray, simulation_connection
    from strategies.engines.worker_grid import WorkerGrid
    from strategies.engines.worker_pool import WorkerDied, WorkerPool, share_of_threads
    from strategies.federation import FederationResult, SecureFederation
    from strategies.provider import Provider, load_transformer, tiny_spec
    from strategies.server.run import ServerRun, progress
    from strategies.server.setup import make_server
    from strategies.server_app import run_server
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "FederationResult",
    "InProcessGrid",
    "Provider",
    "RayShares",
    "SecureFederation",
    "ServerRun",
    "WorkerDied",
    "WorkerGrid",
    "WorkerPool",
    "checkpoints",
    "flwr",
    "load_transformer",
    "make_server",
    "progress",
    "run_on_ray",
    "run_server",
    "share_of_threads",
    "simulation_connection",
    "superlink_command",
    "tiny_spec",
    "write_connection",
    "write_roster",
]
