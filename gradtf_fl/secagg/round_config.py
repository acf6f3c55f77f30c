"""What one round is: its public configuration, to which every key, signature and message is bound."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

from gradtf_fl.errors import ConfigError
from gradtf_fl.secagg.encoding import MAX_INDEX, MAX_U64, Reader, Writer
from gradtf_fl.secagg.packing import BIT_WIDTHS
from gradtf_fl.secagg.primitives import KEY_BYTES, USAGE_CONFIG, digest
from gradtf_fl.secagg.quantization import Quantizer
from gradtf_fl.secagg.violations import MalformedMessage

PROTOCOL_VERSION = 1
WeightRule = Literal["uniform", "examples"]
WEIGHT_RULES: tuple[WeightRule, ...] = ("uniform", "examples")
_MAGIC = b"GSAC"
_MAX_TEXT = 1 << 16
_MAX_DIM = 2**31 - 1


def default_threshold(n: int) -> int:
    """floor(2n/3) + 1: 2t > n + c holds against an active server with up to c = floor(n/3) colluders."""
    return 2 * n // 3 + 1


def smallest_threshold(n: int) -> int:
    """floor(n/2) + 1: below a majority, a server could have two disjoint sets each open one half."""
    return n // 2 + 1


@dataclass(frozen=True, kw_only=True)
class RoundConfig:
    """One attempt at one round. C = `commitment` binds all of it.

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
        dp: the DP parameters as canonical JSON; opaque here, but bound.
        roster_hash: `Roster.hash`.
        degree: neighbours of a member; n - 1 on the complete graph.
        threshold: members of a neighbourhood (its centre included) that must reach every stage.
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
            f"dim must be in 1..{_MAX_DIM}": _in(self.dim, 1, _MAX_DIM),
            f"bits must be one of {BIT_WIDTHS}": _in(self.bits, 16, 32) and self.bits in BIT_WIDTHS,
            "clip must be a positive number": _is_positive(self.clip),
            "max_weight must be a positive number": _is_positive(self.max_weight),
            "deadline_s must be a positive number": _is_positive(self.deadline_s),
            f"weight_rule must be one of {WEIGHT_RULES}": self.weight_rule in WEIGHT_RULES,
            "weight_rule 'uniform' needs max_weight 1": self.weight_rule != "uniform" or self.max_weight == 1.0,
            "degree must be in 1..2^16": _in(self.degree, 1, 1 << 16),
        }
        problems = [problem for problem, holds in checks.items() if not holds]
        if not problems and not _in(self.threshold, 2, self.degree + 1):
            problems.append(f"threshold must be in 2..{self.degree + 1}")
        if not problems:
            try:
                self.quantizer(self.degree + 1)
            except ValueError as error:
                problems.append(str(error))
        return problems

    def quantizer(self, parties: int) -> Quantizer:
        """The encoding for a sum over at most ``parties`` members; ValueError where it could wrap."""
        return Quantizer(self.bits, parties, self.clip, self.max_weight)

    def encode(self) -> bytes:
        """Canonical bytes."""
        out = Writer().fixed(_MAGIC).u32(self.version).text(self.run_id).u64(self.round).u32(self.attempt)
        out.fixed(self.nonce).fixed(self.model_hash).u64(self.dim).u8(self.bits).f64(self.clip).f64(self.max_weight)
        out.u8(WEIGHT_RULES.index(self.weight_rule)).text(self.dp).fixed(self.roster_hash)
        return out.u32(self.degree).u32(self.threshold).f64(self.deadline_s).done()

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
            "degree": reader.u32(),
            "threshold": reader.u32(),
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
