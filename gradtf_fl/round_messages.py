"""What the two sides of a round say to each other: plain field dictionaries, no Flower in here.

`strategies` and `clients` share nothing but this file. A message is a flat dictionary of numbers, strings
and bytes; each dataclass has ``to_fields`` and a checked ``from_fields``, because fields come from the
other side.

message type      | to the organization                 | back
----------------- | ----------------------------------- | ---------------------------------------------------------
train.begin       | `BeginRound`, with the last adapter | `StagePayload` (advert) or a refusal
train.share       | `StagePayload`                      | `StagePayload`
train.accept      | `StagePayload`                      | `StagePayload`
train.mask        | `PieceRequest`                      | `StagePayload`, once for each piece of the masked vector
train.consistency | `StagePayload`                      | `StagePayload`
train.unmask      | `StagePayload`                      | `StagePayload`
evaluate.adapter  | `AdapterDelivery`                   | ``{"status": "stored"}``, and metrics that are shared
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any, Literal, TypeVar, get_args

from gradtf_fl.errors import GradtfError

FieldValue = int | float | str | bytes
Fields = dict[str, FieldValue]

SECTION = "gradtf"  # name of the one record in every message
REFUSAL = "refusal"  # name of the field that carries a `Refusal`
# fields of a secure average's messages, besides a payload's
STAGE, CONFIGS, METRICS, BEACON = "stage", "configs", "metrics", "beacon"
RUN_START = re.compile(r"[0-9]{8}T[0-9]{6}Z(?=-)")  # of a deployed run's name: when it began (UTC), signed with it
MIN_EPSILON, MAX_EPSILON = 0.01, 1000.0  # of a plan; an accountant's own error leaves nothing to calibrate below
MIN_DELTA = 1e-12  # of a plan; below, the accountants' floating-point sums have no digits left
MIN_CLIP, MAX_CLIP = 1e-6, 1e6  # of a plan; see gradtf_fl/training/clipping.py
MIN_RATE, MAX_RATE = 1e-9, 10.0  # of a plan
MAX_STEPS = 10_000_000  # of a plan; beyond, an organization's accountant would only burn time
MIN_ALPHA, MAX_ALPHA, MAX_RANK = 1e-3, 1e6, 4096  # of an adapter
MAX_CONFIGS = 1 << 20  # bytes of a round's configurations: 200 groups take a quarter

Stage = Literal["advertise", "share", "accept", "mask", "consistency", "unmask"]
STAGES: tuple[Stage, ...] = get_args(Stage)  # of the secure aggregation, in their order

#: stage -> Flower message type
MESSAGE_TYPES: dict[Stage, str] = {
    "advertise": "train.begin",
    "share": "train.share",
    "accept": "train.accept",
    "mask": "train.mask",
    "consistency": "train.consistency",
    "unmask": "train.unmask",
}
DELIVER_TYPE = "evaluate.adapter"


class Refusal(StrEnum):
    """All that an organization ever says about a failure. The cause stays in its own log file."""

    POLICY = "policy"  #: the round is outside the organization's own limits, its budget included, or rows are unusable
    MODEL_HASH = "model_hash"  #: the two sides do not start from the same TinyLM, or have different LLMs
    STALE = "stale"  #: this (round, attempt) or a later one was answered before, or another one is open
    PROTOCOL = "protocol"  #: a secure-aggregation message was wrong
    ADAPTER = "adapter"  #: the delivered adapter's hash, signature or shape is wrong
    INTERNAL = "internal"  #: anything else


class MalformedFields(GradtfError, ValueError):
    """A message lacks a field, or a field has the wrong type, length or range."""


@dataclass(frozen=True)
class TrainingPlan:
    """What each organization of a round computes. ``RoundConfig.dp`` is its canonical JSON, so C binds all of it.

    Attributes:
        epsilon: what all ``rounds * steps`` steps together may spend (unit: one row or one person, as each organization
            counts; add or remove).
        delta: of that epsilon.
        rounds: rounds of the run.
        steps: DP-SGD steps in each round.
        batch: expected Poisson batch, in rows (persons).
        clip: L2 bound of one row's (person's) gradient.
        rate: learning rate.
        spec: `AdapterSpec.canonical` of the TinyLM's adapter: kind, targets, rank, alpha and seed.
        initial_sha256: `state_hash` of its shared initial adapter (hex).
        llm_sha256: `model_hash` of the LLM that adapters are delivered for (hex); it covers the tokenizer.
    """

    epsilon: float
    delta: float
    rounds: int
    steps: int
    batch: int
    clip: float
    rate: float
    spec: str
    initial_sha256: str
    llm_sha256: str

    def canonical(self) -> str:
        """Canonical JSON: sorted keys, no blanks, floats as Python's shortest form."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_canonical(cls, text: str) -> TrainingPlan:
        """The plan in a round's ``dp`` text. Whether ``spec`` is an adapter's is for `AdapterSpec.from_canonical`.

        Raises:
            MalformedFields: not canonical, or values outside the range that any organization permits; all named.
        """
        try:
            plan = cls(**json.loads(text))
            canonical = plan.canonical()
        except (TypeError, ValueError, RecursionError) as error:
            raise MalformedFields("the training plan cannot be read") from error
        wrong = [name for name, holds in plan._checks().items() if not holds]
        if wrong or canonical != text:
            raise MalformedFields(f"the training plan has a value outside its range: {', '.join(wrong) or 'its form'}")
        return plan

    def goes_on_from(self, earlier: TrainingPlan) -> bool:
        """Whether a run that began with ``earlier`` may continue with this: the same, or the same with more rounds."""
        return self.rounds >= earlier.rounds and replace(self, rounds=earlier.rounds) == earlier

    def _checks(self) -> dict[str, bool]:
        """Whether each field is of its type and within its range."""
        checks = {name: _is_count(getattr(self, name)) for name in ("rounds", "steps", "batch")}
        if checks["rounds"] and checks["steps"]:
            checks["rounds * steps"] = self.rounds * self.steps <= MAX_STEPS
        return checks | {
            "epsilon": _is_real(self.epsilon) and MIN_EPSILON <= self.epsilon <= MAX_EPSILON,
            "delta": _is_real(self.delta) and MIN_DELTA <= self.delta < 1,
            "clip": _is_real(self.clip) and MIN_CLIP <= self.clip <= MAX_CLIP,
            "rate": _is_real(self.rate) and MIN_RATE <= self.rate <= MAX_RATE,
            "spec": type(self.spec) is str,
            "initial_sha256": _is_sha256(self.initial_sha256),
            "llm_sha256": _is_sha256(self.llm_sha256),
        }


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_real(value: object) -> bool:
    return type(value) is float and math.isfinite(value)


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


M = TypeVar("M", bound="_Message")


@dataclass(frozen=True)
class _Message:
    """Flat message whose fields are its dataclass fields."""

    def to_fields(self) -> Fields:
        """The message as a flat dictionary."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_fields(cls: type[M], values: Mapping[str, Any]) -> M:
        """The message in ``values`` (extra keys are ignored).

        Raises:
            MalformedFields: a field is missing or of another type.
        """
        taken: dict[str, Any] = {}
        for field in fields(cls):
            value = values.get(field.name)
            wanted = {"int": int, "str": str, "bytes": bytes}[str(field.type)]
            if type(value) is not wanted:
                raise MalformedFields(f"{cls.__name__}.{field.name} is missing or no {field.type}")
            taken[field.name] = value
        return cls(**taken)


@dataclass(frozen=True)
class BeginRound(_Message):
    """Opens a round. Only ``configs`` says what to compute; C also binds ``update``, by ``RoundConfig.model_hash``.

    Attributes:
        configs: the secure aggregation's RoundConfig for each group (their ``dp`` is the `TrainingPlan`).
        update: global update U, float32 little endian [blocks * block_dim], where this round starts.
        adapter_round: round of the LLM adapter that rides along (see `AdapterDelivery`); 0 without one.
        adapter: that adapter; empty without one.
        signature: the provider's signature of it.
        beacon: `gradtf_fl.secagg.BeaconProof` of the beacon that draws this round's sample; empty without one, and
            for organizations that have verified it.
    """

    configs: bytes
    update: bytes
    adapter_round: int = 0
    adapter: bytes = b""
    signature: bytes = b""
    beacon: bytes = b""

    def delivery(self, run_id: str, plan: TrainingPlan) -> AdapterDelivery | None:
        """The adapter that rides along, which is of this very run; None without one."""
        if not self.adapter:
            return None
        return AdapterDelivery(
            run_id=run_id,
            round=self.adapter_round,
            adapter=self.adapter,
            signature=self.signature,
            spec=plan.spec,
            initial_hash=bytes.fromhex(plan.initial_sha256),
            update=self.update,
        )


@dataclass(frozen=True)
class StagePayload(_Message):
    """One protocol message of ``round``, ``attempt``, in either direction."""

    round: int
    attempt: int
    payload: bytes


@dataclass(frozen=True)
class PieceRequest(StagePayload):
    """Asks for one piece of the masked vector.

    What is masked follows from the first request's payload; every later answer has the bytes that were made then.
    """

    piece: int


def stage_request(stage: Stage, values: Mapping[str, Any]) -> StagePayload:
    """The server's message for a stage after the first; `MalformedFields` as `from_fields`."""
    return (PieceRequest if stage == "mask" else StagePayload).from_fields(values)


@dataclass(frozen=True)
class AdapterDelivery(_Message):
    """The round's LLM adapter and the global TinyLM update it was generated from.

    Attributes:
        adapter: packed PEFT adapter.
        signature: the provider's Ed25519 signature (64 bytes) over `signed_bytes`.
        spec: `AdapterSpec.canonical` of the TinyLM's adapter.
        initial_hash: `state_hash` of its shared initial adapter (32 bytes).
        update: U after this round, as in `BeginRound`.
    """

    run_id: str
    round: int
    adapter: bytes
    signature: bytes
    spec: str
    initial_hash: bytes
    update: bytes

    @property
    def signed_bytes(self) -> bytes:
        """What the provider signs: run, round, and the hashes of all the rest."""
        hashes = hashlib.sha256(self.adapter).digest(), hashlib.sha256(self.update).digest(), self.tiny_hash
        return adapter_statement(self.run_id, self.round, *hashes)

    @property
    def tiny_hash(self) -> bytes:
        """SHA-256 of the TinyLM's adapter as it starts: ``initial_hash``, then ``spec`` (32 bytes)."""
        return hashlib.sha256(self.initial_hash + self.spec.encode(errors="surrogatepass")).digest()


def adapter_statement(
    run_id: str, round_number: int, adapter_sha256: bytes, update_sha256: bytes, tiny_sha256: bytes | None
) -> bytes:
    """The provider's statement about a round's adapter, in fixed-length parts behind a domain tag.

    Args:
        adapter_sha256: of the packed adapter (32 bytes).
        update_sha256: of the update's bytes (32 bytes).
        tiny_sha256: `AdapterDelivery.tiny_hash`; None in what version 0.1 signed.
    """
    return b"".join(
        (
            b"gradtf/llm-adapter/v1\0" if tiny_sha256 is None else b"gradtf/llm-adapter/v2\0",
            hashlib.sha256(run_id.encode()).digest(),
            round_number.to_bytes(8, "big"),
            adapter_sha256,
            update_sha256,
            tiny_sha256 or b"",
        )
    )


def global_model_hash(base_hash: str, initial_hash: bytes, update: bytes) -> bytes:
    """SHA-256 of the model a round starts from: base weights, shared initial adapter, global update U.

    Args:
        base_hash: `gradtf_fl.adapters.model_hash` of the TinyLM.
        initial_hash: `gradtf_fl.adapters.state_hash` (32 bytes).
        update: float32 little endian bytes of U.
    """
    parts = (base_hash.encode(), initial_hash, update)
    digest = hashlib.sha256(b"gradtf/global-model/v1\0")
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()
