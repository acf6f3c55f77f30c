"""Private training of one round: the ledger is charged, then DP-SGD runs from the global adapter.

The charge covers the update vector that leaves through the secure aggregation. Losses, clip rates, batch
sizes and the number of rows do not leave.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from clients.bounds import require_noise, require_rows, spec_reasons
from clients.charging import OpenCharge, client_level, open_ledger, planned_event, training_id
from clients.kept_update import keep_update, take_kept_update
from clients.node_store import NodeStore
from clients.organization import Organization
from gradtf_fl.adapters import (
    AdaptedModel,
    AdapterSpec,
    Place,
    SharedModel,
    adapter_state,
    model_hash,
    update_vector,
)
from gradtf_fl.config import ComputeSection
from gradtf_fl.errors import ConfigError, CorruptFile
from gradtf_fl.flower import Refused, RoundKey, keep_cause
from gradtf_fl.privacy import DpEvent, Unit
from gradtf_fl.round_messages import MAX_CLIP, BeginRound, Refusal, TrainingPlan, global_model_hash
from gradtf_fl.secagg import RoundConfig
from gradtf_fl.tasks import IGNORED, Persons, longest_row, read_tokens
from gradtf_fl.training import AnotherRun, DpCheckpoint, check_rows, check_trainable, rehearse, train_dp

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gradtf_fl.tasks import TokenRows
    from gradtf_fl.training import DpOutcome

T = TypeVar("T")


@dataclass(frozen=True)
class LocalUpdate:
    """What an organization masks.

    Attributes:
        vector: the clipped update, float32 [blocks * block_dim]; None for that of an earlier attempt, in the store.
        training: SHA-256 of what it was trained by (`training_id`).
        ledger_head: of the ledger that was charged for it (32 bytes).
    """

    vector: NDArray[np.float32] | None
    training: bytes
    ledger_head: bytes


def train_update(
    organization: Organization, message: BeginRound, config: RoundConfig, plan: TrainingPlan, store: NodeStore
) -> LocalUpdate:
    """Charge, train, clip; or take the update of an earlier attempt at this round that was never masked.

    The file of rows is not opened before (round, attempt) is used up and the charge is written.

    Raises:
        Refused: ``model_hash``, ``stale``, or ``policy``: the plan, an adapter that DP-SGD can't train, or rows that
            can't be used.
        BudgetExhausted: the charge does not fit.
    """
    policy, privacy = organization.config.policy, organization.config.privacy
    require_rows(policy, privacy)
    event = planned_event(organization, plan)
    require_noise(policy, event, privacy.delta)
    _same_llm(organization, bytes.fromhex(plan.llm_sha256))
    tiny = load_tiny(organization, plan.spec, bytes.fromhex(plan.initial_sha256))
    start, start_hash = start_of(tiny, message.update)
    if start_hash != config.model_hash or tiny.space.layout.size != config.dim:
        raise Refused(Refusal.MODEL_HASH, "the server's global model is not the one in this round's configuration")
    model = tiny.attach(start)
    try:
        longest = longest_row(tiny.model, organization.config.data.max_tokens)
        sampler = organization.config.compute.sampler
        _once(
            tiny,
            ("trainable", sampler, longest),
            lambda: check_trainable(model, sampler, tokenizer=tiny.tokenizer, max_tokens=longest),
        )
    except ConfigError as error:
        raise Refused(Refusal.POLICY, f"the round's adapter cannot be trained privately: {error}") from error
    key = RoundKey(config.run_id, config.round, config.attempt)
    training = training_id(organization, config, event)
    kept = store.claim(key, config.dp, training, policy.attempts, config.model_hash)
    vector = None if kept else take_kept_update(organization, store, key, training)
    if kept or vector is not None:
        return LocalUpdate(vector, training, open_ledger(organization).head)
    try:
        charge = OpenCharge.reserve(organization, store, key, event, client_level(organization, config))
        outcome = _train(organization, tiny, model, plan, event, charge)
        try:
            moved = update_vector(tiny.space.layout, adapter_state(model), start)
            vector = clip_update(moved.reshape(-1), config.clip)
            keep_update(organization, key, training, outcome.noise, vector)
        finally:
            charge.settle(outcome.event, outcome.noise)
    except BaseException:
        store.give_up(key)
        raise
    return LocalUpdate(vector, training, charge.ledger.head)


def _train(
    organization: Organization,
    tiny: AdaptedModel,
    model: nn.Module,
    plan: TrainingPlan,
    event: DpEvent,
    charge: OpenCharge,
) -> DpOutcome:
    """Train ``model``'s adapter in place, or say what becomes of the charge.

    Raises:
        Refused: ``policy`` where the rows, or this machine, can't be used.
    """
    compute, privacy = organization.config.compute, organization.config.privacy
    form, person, declared = organization.config.data, privacy.person, privacy.declared
    try:
        read = read_tokens(organization.train_path, tiny.tokenizer, form, tiny.model.config, person=person)
        data = read.tokens
        persons = None if person is None else Persons.of(read.rows, privacy.rows_per_person)
        check_rows(model, data)
        units, unit = len(data) if persons is None else len(persons), Unit(person)
        if units < declared:  # what is charged holds all the same: each unit that is there enters with q
            fewer = ConfigError(f"[privacy] declared is {declared}, the training file has {units} {unit.plural}")
            keep_cause(fewer, f"trained with fewer {unit.plural} than declared", organization.folder)
        outcome = train_dp(
            model,
            data,
            sigma=event.sigma,
            clip=plan.clip,
            batch=plan.batch,
            steps=plan.steps,
            rate=plan.rate,
            seed=organization.training_seed(charge.key),
            physical_batch=_rehearsed(tiny, model, data, persons, max(1, round(event.q * units)), compute),
            checkpoint=DpCheckpoint(charge.state),
            sampler=compute.sampler,
            gradient_checkpointing=compute.gradient_checkpointing,
            declared=declared,
            on_noise=charge.note_noise,
            persons=persons,
        )
    except BaseException as error:
        charge.failed(state_is_useless=isinstance(error, AnotherRun | CorruptFile))
        if isinstance(error, ConfigError):
            raise Refused(Refusal.POLICY, str(error)) from error
        raise
    return outcome


def _same_llm(organization: Organization, llm_hash: bytes) -> None:
    """Whether the adapter that this round ends with can be used here.

    Raises:
        Refused: ``model_hash`` where our LLM is another one than the provider's, or is not here.
    """
    name = organization.config.models.llm
    try:
        ours = model_hash(name)
    except ConfigError as error:
        raise Refused(Refusal.MODEL_HASH, f"our LLM can't be compared with the provider's: {error}") from error
    if bytes.fromhex(ours) != llm_hash:
        raise Refused(
            Refusal.MODEL_HASH,
            f"our LLM ({name}, {ours[:16]}) is another one than the provider's ({llm_hash.hex()[:16]}): provider and "
            "organizations need the same files, tokenizer included",
        )


def _once(tiny: AdaptedModel, what: tuple[object, ...], find: Callable[[], T]) -> T:
    """What ``find`` returns; of a model that organizations share it is asked once for each ``what``."""
    return tiny.once(what, find) if isinstance(tiny, SharedModel) else find()


def _rehearsed(
    tiny: AdaptedModel,
    model: nn.Module,
    data: TokenRows,
    persons: Persons | None,
    batch: int,
    compute: ComputeSection,
) -> int:
    """How many rows go through the model at once.

    Raises:
        Refused: ``policy`` where a step on made-up rows does not work here.
    """
    try:
        most = 1 if persons is None else min(persons.most, max(persons.sizes))
        width, first = data.attention_mask.sum(1).max(), (data.labels != IGNORED).int().argmax(1).min()
        what = ("physical batch", int(width), int(first), batch, most, compute.model_dump_json())
        return _once(tiny, what, lambda: rehearse(model, data, batch, compute, most))
    except ConfigError as error:
        raise Refused(Refusal.POLICY, f"a training step does not work here: {error}") from error


def load_tiny(organization: Organization, spec_json: str, initial_hash: bytes) -> AdaptedModel:
    """Our own TinyLM with the shared initial adapter, which is not built before ``[policy]`` permits its size.

    Raises:
        Refused: ``protocol`` for a malformed spec, ``policy`` for one out of bounds, ``model_hash`` when the initial
            adapter is not ours.
        ConfigError: the model can't be had, or ``[compute]`` asks for what this machine can't do.
    """
    try:
        spec = AdapterSpec.from_canonical(spec_json)
    except ValueError as error:
        raise Refused(Refusal.PROTOCOL, str(error)) from error
    if reasons := spec_reasons(organization.config.policy, spec):
        raise Refused(Refusal.POLICY, "; ".join(reasons))
    tiny = base_model(organization, organization.config.models.tiny, spec, "TinyLM")
    if tiny.space.initial_hash != initial_hash:
        raise Refused(Refusal.MODEL_HASH, "the shared initial adapter differs from ours")
    return tiny


def base_model(organization: Organization, name: str, spec: AdapterSpec, role: str) -> AdaptedModel:
    """A base model with its adapter; in a simulation the one that all organizations of this process share.

    Raises:
        ConfigError: as `AdaptedModel.load`.
    """
    place = Place.of(organization.config.compute)
    if organization.simulation is not None and not place.is_spread:
        return AdaptedModel.shared(name, spec, place, role)
    return AdaptedModel.load(name, spec, place, kept=role == "TinyLM")


def start_of(tiny: AdaptedModel, update: bytes) -> tuple[dict[str, torch.Tensor], bytes]:
    """The adapter's state at the global update (float32 little endian bytes), and the start's hash (32 bytes).

    Raises:
        Refused: ``model_hash`` when the update's size is not ours, or when no training could start from it.
    """
    space = tiny.space
    values = np.frombuffer(update, dtype="<f4") if len(update) == 4 * space.layout.size else np.array(np.nan)
    if not float(np.abs(values).max()) <= MAX_CLIP:  # NaN is not either
        raise Refused(Refusal.MODEL_HASH, f"the global update is not {space.layout.size} values up to {MAX_CLIP:g}")
    start = tiny.state_at(values.reshape(space.shape))
    return start, global_model_hash(space.model_sha256, space.initial_hash, update)


def clip_update(vector: NDArray[np.float32], clip: float) -> NDArray[np.float32]:
    """``vector`` scaled to an L2 norm of at most ``clip``. Refused when it is not finite."""
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    if not np.isfinite(norm):
        raise Refused(Refusal.INTERNAL, "the trained update is not finite")
    scaled: NDArray[np.float32] = (vector * min(1.0, clip / norm)).astype(np.float32) if norm > 0 else vector
    return scaled
