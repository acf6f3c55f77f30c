"""The server's side in Flower: the strategy, the ServerApp, round checkpoints, and the in-process grid."""

from strategies.checkpoints import read_records, write_roster
from strategies.federation import SecureFederation
from strategies.in_process import InProcessGrid
from strategies.provider import Generator, Provider
from strategies.records import FederationResult, OnEvent, RoundEvent, RoundRecord
from strategies.server_app import run_server

__all__ = [
    "FederationResult",
    "Generator",
    "InProcessGrid",
    "OnEvent",
    "Provider",
    "RoundEvent",
    "RoundRecord",
    "SecureFederation",
    "read_records",
    "run_server",
    "write_roster",
]
