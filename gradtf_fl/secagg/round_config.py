"""What one round is: its public configuration, to which every key, signature and message is bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

from gradtf_fl.errors import ConfigError
from gradtf_fl.secagg.crypto.primitives import KEY_BYTES, USAGE_CONFIG, digest
from gradtf_fl.secagg.packing import BIT_WIDTHS
from gradtf_fl.secagg.violations import MalformedMessage
from gradtf_fl.secagg.wire.encoding import MAX_INDEX, MAX_U64, Reader, Writer

PROTOCOL_VERSION = 3
WeightRule = Literal["uniform", "examples"]
WEIGHT_RULES: tuple[WeightRule, ...] = ("uniform", "examples")
_MAGIC = b"GSAC"
_MAX_TEXT = 1 << 16
_MAX_DIM = 2**31 - 1
_MAX_MEMBERS = 1 << 16


def default_threshold(n: int) -> int:
    """floor(2n/3) + 1: 2t > n + c holds against an active server with up to c = floor(n/3) colluders."""
    return 2 * n // 3 + 1


def smallest_threshold(n: int) -> int:
    """The least t with 2t > n + 1: below, the server and ONE member could have two sets each open one half."""
    return (n + 1) // 2 + 1


@dataclass(frozen=True, kw_only=True)
class RoundConfig:
    """One attempt at one round. C = `commitment` binds all of it.

    >>> import secrets
    >>> from gradtf_fl import Identity, RoundConfig, Roster
    >>> identities = [Identity.generate() for _ in range(3)]
    >>> roster = Roster(tuple(identity.public for identity in identities))
    >>> config = RoundConfig(
    ...     run_id="demo", round=1, attempt=0, nonce=secrets.token_bytes(32), model_hash=bytes(32), dim=4, bits=24,
    ...     clip=1.0, roster_hash=roster.hash, degree=2, threshold=3, quorum=3,
    ... )
    >>> RoundConfig.decode(config.encode()) == config
    True
    >>> len(config.commitment)
    32

    Attributes:
        run_id: the federation run, any text.
        round, attempt: counters; an organization never takes part at or below a pair it has seen.
        nonce: 32 bytes, fresh for EVERY attempt: a retry under old keys would be a two-time pad.
        model_hash: SHA-256 of the global model that the round starts from (inconsistent models leak).
        dim: coordinates d of the update vector, without the weight's.
        bits: width b of a residue: 16, 20, 24 or 32.
        clip: L2 norm bound of an update vector before encoding.
        max_weight: largest weight of one organization; 1 under the rule "uniform".
        weight_rule: "uniform" (weight 1) or "examples" (number of rows, never sent in clear).
        dp: what a client computes, as canonical JSON (`TrainingPlan`); opaque here, but bound.
        roster_hash: `Roster.hash`.
        groups, group: how many groups the roster, or the sample, is split into, and which of them this round sums; 1
            and 0 for all. Members of a round are those of `round_members`; n is their number.
        sample: organizations of the roster that the round is for, drawn by ``beacon``; 0 for the whole roster.
        beacon: 32 bytes that a `BeaconProof` of the same run proves; zeros without a sample.
        degree: neighbours k of a member; n - 1 on the complete graph.
        threshold: members of a neighbourhood (its centre included) that must reach every stage.
        quorum: members of the whole round that must reach every stage but the last; the threshold on a complete graph.
        noise_multiplier: distributed DP: standard deviation of the Skellam noise on the sum, in units of clip, that
            ``noisers`` honest members add together; 0 for none.
        noisers: honest members counted on to add noise, at most quorum - colluders.
        deadline_s: seconds that a stage may take; kept by whoever drives the state machines.
    """

    run_id: str
    round: int
    attempt: int
    nonce: bytes
    model_hash: bytes
    dim: int
    bits: int
    clip: float
    roster_hash: bytes
    degree: int
    threshold: int
    quorum: int
    groups: int = 1
    group: int = 0
    sample: int = 0
    beacon: bytes = bytes(KEY_BYTES)
    noise_multiplier: float = 0.0
    noisers: int = 0
    max_weight: float = 1.0
    weight_rule: WeightRule = "uniform"
    dp: str = "{}"
    deadline_s: float = 600.0
    version: int = PROTOCOL_VERSION

    def __post_init__(self) -> None:
        for field in fields(self):  # 8 and 8.0 must not have two meanings
            if field.type == "float" and isinstance(getattr(self, field.name), int):
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        problems = list(self._problems())
        if problems:
            raise ConfigError(problems)

    def _problems(self) -> list[str]:
        checks = {
            f"version must be {PROTOCOL_VERSION}": self.version == PROTOCOL_VERSION,
            "run_id and dp must be texts below 64 KiB": _is_text(self.run_id) and _is_text(self.dp),
            "round must be in 0..2^64-1": _in(self.round, 0, MAX_U64),
            "attempt must be in 0..2^32-1": _in(self.attempt, 0, MAX_INDEX),
            "nonce must be 32 bytes": _is_hash(self.nonce),
            "model_hash must be 32 bytes": _is_hash(self.model_hash),
            "roster_hash must be 32 bytes": _is_hash(self.roster_hash),
            "beacon must be 32 bytes": _is_hash(self.beacon),
            f"dim must be in 1..{_MAX_DIM}": _in(self.dim, 1, _MAX_DIM),
            f"bits must be one of {BIT_WIDTHS}": _in(self.bits, 16, 32) and self.bits in BIT_WIDTHS,
            "clip must be a positive number": _is_positive(self.clip),
            "noise_multiplier must be 0 or a positive number": (
                self.noise_multiplier == 0 and math.copysign(1, self.noise_multiplier) > 0
            )
            or _is_positive(self.noise_multiplier),
            "max_weight must be a positive number": _is_positive(self.max_weight),
            "deadline_s must be a positive number": _is_positive(self.deadline_s),
            f"weight_rule must be one of {WEIGHT_RULES}": self.weight_rule in WEIGHT_RULES,
            "weight_rule 'uniform' needs max_weight 1": self.weight_rule != "uniform" or self.max_weight == 1.0,
            f"degree must be in 1..{_MAX_MEMBERS}": _in(self.degree, 1, _MAX_MEMBERS),
        }
        problems = [problem for problem, holds in checks.items() if not holds]
        if not problems and not _in(self.threshold, 2, self.degree + 1):
            problems.append(f"threshold must be in 2..{self.degree + 1}")
        if not problems and not _in(self.quorum, self.threshold, _MAX_MEMBERS):
            problems.append(f"quorum must be in {self.threshold}..{_MAX_MEMBERS}")
        if not problems and not (_in(self.groups, 1, _MAX_MEMBERS) and _in(self.group, 0, self.groups - 1)):
            problems.append("group must be in 0..groups-1, and groups at least 1")
        if not problems and not (self.sample == 0 or _in(self.sample, max(2, self.groups), _MAX_MEMBERS)):
            problems.append("sample must be 0, or at least 2 and at least groups")
        if not problems and (self.sample == 0) != (self.beacon == bytes(KEY_BYTES)):
            problems.append("a beacon draws a sample, and only a beacon does: both or none")
        if not problems and self.sample and self.round == 0:
            problems.append("round 0 draws the beacon, so it is for the whole roster")
        noiseless = self.noise_multiplier == 0 and math.copysign(1, self.noise_multiplier) > 0
        if not problems and not _in(self.noisers, 0 if noiseless else 1, 0 if noiseless else self.quorum):
            problems.append("noisers must be in 1..quorum with noise, and 0 without")
        if not (problems or noiseless) and self.weight_rule != "uniform":
            problems.append("noise needs the weight rule 'uniform'")
        return problems

    def encode(self) -> bytes:
        """Canonical bytes."""
        out = Writer().fixed(_MAGIC).u32(self.version).text(self.run_id).u64(self.round).u32(self.attempt)
        out.fixed(self.nonce).fixed(self.model_hash).u64(self.dim).u8(self.bits).f64(self.clip).f64(self.max_weight)
        out.u8(WEIGHT_RULES.index(self.weight_rule)).text(self.dp).fixed(self.roster_hash)
        out.u32(self.groups).u32(self.group).u32(self.sample).fixed(self.beacon).u32(self.degree)
        out.u32(self.threshold).u32(self.quorum)
        return out.f64(self.noise_multiplier).u32(self.noisers).f64(self.deadline_s).done()

    @classmethod
    def decode(cls, data: bytes) -> RoundConfig:
        """Inverse of `encode`; `MalformedMessage` for anything else."""
        reader = Reader(data)
        if reader.fixed(4) != _MAGIC:
            raise MalformedMessage("not a round configuration")
        values: dict[str, object] = {
            "version": reader.u32(),
            "run_id": reader.text(),
            "round": reader.u64(),
            "attempt": reader.u32(),
            "nonce": reader.fixed(32),
            "model_hash": reader.fixed(32),
            "dim": reader.u64(),
            "bits": reader.u8(),
            "clip": reader.f64(),
            "max_weight": reader.f64(),
        }
        rule = reader.u8()
        if rule >= len(WEIGHT_RULES):
            raise MalformedMessage(f"unknown weight rule {rule}")
        values |= {
            "weight_rule": WEIGHT_RULES[rule],
            "dp": reader.text(),
            "roster_hash": reader.fixed(32),
            "groups": reader.u32(),
            "group": reader.u32(),
            "sample": reader.u32(),
            "beacon": reader.fixed(KEY_BYTES),
            "degree": reader.u32(),
            "threshold": reader.u32(),
            "quorum": reader.u32(),
            "noise_multiplier": reader.f64(),
            "noisers": reader.u32(),
            "deadline_s": reader.f64(),
        }
        reader.done()
        try:
            return cls(**values)  # type: ignore[arg-type]
        except ConfigError as error:
            raise MalformedMessage(f"round configuration: {error}") from error

    @cached_property
    def commitment(self) -> bytes:
        """C: SHA-256 of the canonical encoding, 32 bytes."""
        return digest(USAGE_CONFIG, self.encode())


def encode_configs(configs: Sequence[RoundConfig]) -> bytes:
    """What opens a round: a configuration for each group."""
    out = Writer().u32(len(configs))
    for config in configs:
        out.blob(config.encode())
    return out.done()


def decode_configs(data: bytes) -> tuple[RoundConfig, ...]:
    """Inverse of `encode_configs`; `MalformedMessage` for anything else."""
    reader = Reader(data)
    configs = tuple(RoundConfig.decode(reader.blob()) for _ in range(reader.count(4)))
    reader.done()
    return configs


def _in(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_hash(value: object) -> bool:
    return isinstance(value, bytes) and len(value) == KEY_BYTES


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value.encode(errors="replace")) < _MAX_TEXT and _is_unicode(value)


def _is_unicode(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)  # surrogates have no UTF-8


def _is_positive(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value > 0
