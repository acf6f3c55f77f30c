"""Secure aggregation: the server learns a weighted mean of the clients' vectors, nothing about any of them.

SecAgg+ (Bell et al., CCS 2020; Bonawitz et al., CCS 2017) hardened against an active server, as pure state
machines: bytes in, bytes out; no sockets, clocks or files. `run_secure_sum` shows the whole protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from gradtf_fl.secagg.beacon import BeaconProof, SamplePlan, check_draw, draw_config
    from gradtf_fl.secagg.client import SecAggClient
    from gradtf_fl.secagg.crypto.masks import CHUNK_BYTES, MaskStreams
    from gradtf_fl.secagg.crypto.primitives import Randomness, ReplayRandomness
    from gradtf_fl.secagg.crypto.shamir import combine, element_bytes, lagrange_weights
    from gradtf_fl.secagg.degree import Topology, certain_noisers, colluders_in_sample, topology
    from gradtf_fl.secagg.differencing import Identifiability, TakenSum, check_difference, identifiability
    from gradtf_fl.secagg.evidence import Evidence
    from gradtf_fl.secagg.graph import point
    from gradtf_fl.secagg.members import group_size, round_members, sampled
    from gradtf_fl.secagg.noise.distributed_noise import DistributedNoise
    from gradtf_fl.secagg.packing import packed_size
    from gradtf_fl.secagg.policy import ClientPolicy
    from gradtf_fl.secagg.quantization import Floats, Quantizer, Vector, chunks_of
    from gradtf_fl.secagg.roster import Identity, Roster
    from gradtf_fl.secagg.round_config import (
        RoundConfig,
        decode_configs,
        default_threshold,
        encode_configs,
        smallest_threshold,
    )
    from gradtf_fl.secagg.run import PlayedRound, new_identities, played_config, roster_of, run_secure_sum
    from gradtf_fl.secagg.server import SecAggServer, SecureSum
    from gradtf_fl.secagg.vectors import distributed_noise
    from gradtf_fl.secagg.violations import (
        AdvertMismatch,
        BadKey,
        BadProof,
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
        TooSmallDifference,
        UndecryptableShare,
        UnjustEvidence,
        UnknownIdentity,
        UpdateRejected,
        WrongBeacon,
        WrongRound,
    )
    from gradtf_fl.secagg.wire.messages import commitment_of
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "CHUNK_BYTES",
    "AdvertMismatch",
    "BadKey",
    "BadProof",
    "BadSignature",
    "BeaconProof",
    "ClientPolicy",
    "DistributedNoise",
    "DuplicateKey",
    "DuplicateMessage",
    "Evidence",
    "Floats",
    "Identifiability",
    "Identity",
    "IncompleteShares",
    "InconsistentViews",
    "LateMessage",
    "MalformedMessage",
    "MaskStreams",
    "OwnKeyMissing",
    "PlayedRound",
    "PolicyViolation",
    "ProtocolViolation",
    "Quantizer",
    "Randomness",
    "ReconstructionMismatch",
    "ReplayRandomness",
    "Roster",
    "RosterMismatch",
    "RoundConfig",
    "SamplePlan",
    "SecAggClient",
    "SecAggServer",
    "SecureSum",
    "StageOrder",
    "StaleRound",
    "SurvivorsNotSubset",
    "TakenSum",
    "TooFewMembers",
    "TooFewNeighbours",
    "TooSmallDifference",
    "Topology",
    "UndecryptableShare",
    "UnjustEvidence",
    "UnknownIdentity",
    "UpdateRejected",
    "Vector",
    "WrongBeacon",
    "WrongRound",
    "certain_noisers",
    "check_difference",
    "check_draw",
    "chunks_of",
    "colluders_in_sample",
    "combine",
    "commitment_of",
    "decode_configs",
    "default_threshold",
    "distributed_noise",
    "draw_config",
    "element_bytes",
    "encode_configs",
    "group_size",
    "identifiability",
    "lagrange_weights",
    "new_identities",
    "packed_size",
    "played_config",
    "point",
    "roster_of",
    "round_members",
    "run_secure_sum",
    "sampled",
    "smallest_threshold",
    "topology",
]
