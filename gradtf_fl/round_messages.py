"""What the two sides of a round say to each other: plain field dictionaries, no Flower in here.

`strategies` and `clients` share nothing but this file. A message is a flat dictionary of numbers, strings
and bytes; each dataclass has ``to_fields`` and a checked ``from_fields``, because fields come from the
other side.

message type         | to the organization  | back
-------------------- | -------------------- | -----------------------------------------------------
train.begin          | `BeginRound`, with   | `StagePayload` (advert) or a refusal
                     | the last adapter     |
train.share          | `StagePayload`       | `StagePayload`
train.mask           | `StagePayload`       | `StagePayload`
train.consistency    | `StagePayload`       | `StagePayload`
train.unmask         | `StagePayload`       | `StagePayload`
evaluate.adapter     | `AdapterDelivery`    | ``{"status": "stored"}`` (+ metrics when the organization
                     |                      | shares them)
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Literal, TypeVar, get_args

from gradtf_fl.errors import GradtfError

FieldValue = int | float | str | bytes
Fields = dict[str, FieldValue]

SECTION = "gradtf"  # name of the one record in every message
REFUSAL = "refusal"  # name of the field that carries a `Refusal`
MAX_EPSILON, MAX_STEPS = 1000.0, 10_000_000  # of a plan; beyond, an organization's accountant would only burn time

Stage = Literal["advertise", "share", "mask", "consistency", "unmask"]
STAGES: tuple[Stage, ...] = get_args(Stage)  # of the secure aggregation, in their order

#: stage -> Flower message type
MESSAGE_TYPES: dict[Stage, str] = {
    "advertise": "train.begin",
    "share": "train.share",
    "mask": "train.mask",
    "consistency": "train.consistency",
    "unmask": "train.unmask",
}
DELIVER_TYPE = "evaluate.adapter"


class Refusal(StrEnum):
    """All that an organization ever says about a failure. The cause stays in its own log file."""

    BUDGET = "budget"  #: the round would exceed the organization's privacy budget
    POLICY = "policy"  #: the round's parameters are outside the organization's own limits
    MODEL_HASH = "model_hash"  #: the two sides do not start from the same TinyLM, or have different LLMs
    DATA = "data"  #: the organization's rows cannot be used for this plan
    STALE = "stale"  #: this (round, attempt) or a later one was answered before, or another one is open
    PROTOCOL = "protocol"  #: a secure-aggregation message was wrong
    ADAPTER = "adapter"  #: the delivered adapter's hash, signature or shape is wrong
    INTERNAL = "internal"  #: anything else


class MalformedFields(GradtfError, ValueError):
    """A message lacks a field, or a field has the wrong type, length or range."""


@dataclass(frozen=True)
class TrainingPlan:
    """DP-SGD of a run as every organization commits to it (``RoundConfig.dp`` is its canonical JSON).

    Attributes:
        epsilon, delta: what all ``rounds * steps`` steps together may spend (unit: one row or one person, as each
            organization counts; add or remove).
        rounds: rounds of the run.
        steps: DP-SGD steps in each round.
        batch: expected Poisson batch, in rows (persons).
        clip: L2 bound of one row's (person's) gradient.
        rate: learning rate.
    """

    epsilon: float
    delta: float
    rounds: int
    steps: int
    batch: int
    clip: float
    rate: float

    def canonical(self) -> str:
        """Canonical JSON: sorted keys, no blanks, floats as Python's shortest form."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_canonical(cls, text: str) -> TrainingPlan:
        """The plan in a round's ``dp`` text.

        Raises:
            MalformedFields: not canonical, not finite or not positive.
        """
        try:
            document = json.loads(text)
            plan = cls(**document)
            integers = (plan.rounds, plan.steps, plan.batch)
            reals = (plan.epsilon, plan.delta, plan.clip, plan.rate)
            sound = (
                all(type(value) is int and 0 < value < 2**31 for value in integers)
                and all(type(value) is float and math.isfinite(value) and value > 0 for value in reals)
                and plan.delta < 1
                and plan.epsilon <= MAX_EPSILON
                and plan.rounds * plan.steps <= MAX_STEPS
                and plan.canonical() == text
            )
        except (TypeError, ValueError) as error:
            raise MalformedFields("the training plan cannot be read") from error
        if not sound:
            raise MalformedFields("the training plan has a value outside its range")
        return plan


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
    """Opens a round.

    Attributes:
        configs: the secure aggregation's RoundConfig for each group (their ``dp`` is the `TrainingPlan`).
        spec: adapter spec of the TinyLM as JSON.
        initial_hash: SHA-256 of its shared initial adapter.
        llm_hash: `gradtf_fl.adapters.model_hash` of the model that adapters are delivered for (32 bytes).
        update: global update U, float32 little endian [blocks * block_dim], where this round starts.
        run_id: of the run.
        adapter_round, adapter, signature: the LLM adapter of the round before, which rides along (see
            `AdapterDelivery`); 0 and empty by default.
    """

    configs: bytes
    spec: str
    initial_hash: bytes
    llm_hash: bytes
    update: bytes
    run_id: str = ""
    adapter_round: int = 0
    adapter: bytes = b""
    signature: bytes = b""

    @property
    def delivery(self) -> AdapterDelivery | None:
        """The adapter that rides along."""
        if not self.adapter:
            return None
        return AdapterDelivery(
            run_id=self.run_id,
            round=self.adapter_round,
            adapter=self.adapter,
            signature=self.signature,
            spec=self.spec,
            initial_hash=self.initial_hash,
            update=self.update,
        )


@dataclass(frozen=True)
class StagePayload(_Message):
    """One protocol message of ``round``, ``attempt``, in either direction."""

    round: int
    attempt: int
    payload: bytes


@dataclass(frozen=True)
class AdapterDelivery(_Message):
    """The round's LLM adapter and the global TinyLM update it was generated from.

    Attributes:
        adapter: packed PEFT adapter.
        signature: the provider's Ed25519 signature (64 bytes) over `signed_bytes`.
        spec, initial_hash, update: as in `BeginRound`, after this round.
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
        """What the provider signs: run, round, and the hashes of adapter and update."""
        return adapter_statement(self.run_id, self.round, self.adapter, self.update)


def adapter_statement(run_id: str, round_number: int, adapter: bytes, update: bytes) -> bytes:
    """The provider's statement about a round's adapter, in fixed-length parts behind a domain tag."""
    hashes = hashlib.sha256(adapter).digest(), hashlib.sha256(update).digest()
    return adapter_statement_of_hashes(run_id, round_number, *hashes)


def adapter_statement_of_hashes(run_id: str, round_number: int, adapter_sha256: bytes, update_sha256: bytes) -> bytes:
    """`adapter_statement` from the SHA-256 (32 bytes each) of packed adapter and update."""
    return b"".join(
        (
            b"gradtf/llm-adapter/v1\0",
            hashlib.sha256(run_id.encode()).digest(),
            round_number.to_bytes(8, "big"),
            adapter_sha256,
            update_sha256,
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
