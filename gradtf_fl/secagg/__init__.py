"""Secure aggregation: the server learns a weighted mean of the clients' vectors, nothing about any of them.

SecAgg+ (Bell et al., CCS 2020; Bonawitz et al., CCS 2017) hardened against an active server, as pure state
machines: bytes in, bytes out; no sockets, clocks or files. `run_secure_sum` shows the whole protocol.
"""

from gradtf_fl.secagg.client import SecAggClient
from gradtf_fl.secagg.degree import Topology, certain_noisers, topology
from gradtf_fl.secagg.graph import group_members
from gradtf_fl.secagg.messages import STAGES, commitment_of
from gradtf_fl.secagg.policy import ClientPolicy
from gradtf_fl.secagg.primitives import Randomness, ReplayRandomness
from gradtf_fl.secagg.quantization import Quantizer
from gradtf_fl.secagg.roster import Identity, Roster
from gradtf_fl.secagg.round_config import (
    PROTOCOL_VERSION,
    RoundConfig,
    decode_configs,
    default_threshold,
    encode_configs,
    smallest_threshold,
)
from gradtf_fl.secagg.run import run_secure_sum
from gradtf_fl.secagg.server import SecAggServer, SecureSum
from gradtf_fl.secagg.vectors import distributed_noise
from gradtf_fl.secagg.violations import (
    AdvertMismatch,
    BadKey,
    BadSignature,
    DuplicateKey,
    DuplicateMessage,
    IncompleteShares,
    InconsistentViews,
    LateMessage,
    MalformedMessage,
    OwnKeyMissing,
    PolicyViolation,
    ProtocolViolation,
    ReconstructionMismatch,
    RosterMismatch,
    StageOrder,
    StaleRound,
    SurvivorsNotSubset,
    TooFewMembers,
    TooFewNeighbours,
    UndecryptableShare,
    UnknownIdentity,
    UpdateRejected,
    WrongRound,
)

__all__ = [
    "PROTOCOL_VERSION",
    "STAGES",
    "AdvertMismatch",
    "BadKey",
    "BadSignature",
    "ClientPolicy",
    "DuplicateKey",
    "DuplicateMessage",
    "Identity",
    "IncompleteShares",
    "InconsistentViews",
    "LateMessage",
    "MalformedMessage",
    "OwnKeyMissing",
    "PolicyViolation",
    "ProtocolViolation",
    "Quantizer",
    "Randomness",
    "ReconstructionMismatch",
    "ReplayRandomness",
    "Roster",
    "RosterMismatch",
    "RoundConfig",
    "SecAggClient",
    "SecAggServer",
    "SecureSum",
    "StageOrder",
    "StaleRound",
    "SurvivorsNotSubset",
    "TooFewMembers",
    "TooFewNeighbours",
    "Topology",
    "UndecryptableShare",
    "UnknownIdentity",
    "UpdateRejected",
    "WrongRound",
    "certain_noisers",
    "commitment_of",
    "decode_configs",
    "default_threshold",
    "distributed_noise",
    "encode_configs",
    "group_members",
    "run_secure_sum",
    "smallest_threshold",
    "topology",
]
