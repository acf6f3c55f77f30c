"""Private training of one round: the ledger is charged, then DP-SGD runs from the global adapter.

The charge covers the update vector that leaves through the secure aggregation. Losses, clip rates, batch
sizes and the number of rows do not leave.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clients.node_store import RoundKey
from clients.organization import Organization
from clients.refusals import Refused
from gradtf_fl.adapters import (
    AdaptedModel,
    AdapterSpec,
    Place,
    adapter_state,
    model_hash,
    update_vector,
)
from gradtf_fl.config import ComputeSection
from gradtf_fl.errors import ConfigError
from gradtf_fl.file_names import OWN_UPDATE
from gradtf_fl.privacy import DpEvent, Ledger, SkellamEvent, Unit, noise_multiplier
from gradtf_fl.round_messages import BeginRound, Refusal, TrainingPlan, global_model_hash
from gradtf_fl.secagg import RoundConfig, distributed_noise, group_members
from gradtf_fl.tasks import Persons, count_rows, longest_row, read_tokens
from gradtf_fl.training import check_rows, check_trainable, rehearse, train_dp

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gradtf_fl.tasks import TokenRows


@dataclass(frozen=True)
class LocalUpdate:
    """The clipped update, float32 [blocks * block_dim], rows (persons) trained on, and the ledger's head (32 bytes)."""

    vector: NDArray[np.float32]
    rows: int
    ledger_head: bytes


def train_update(
    organization: Organization,
    message: BeginRound,
    config: RoundConfig,
    plan: TrainingPlan,
    claim: Callable[[], None],
) -> LocalUpdate:
    """Charge, train, clip.

    Args:
        claim: uses up (round, attempt) on disk; called after the charge is known to fit and before any training.

    Raises:
        Refused: ``model_hash``, ``policy`` (an adapter that DP-SGD can't train) or ``data``.
        BudgetExhausted: the charge does not fit; rows were counted, none was looked at.
    """
    compute, privacy = organization.config.compute, organization.config.privacy
    unit = Unit(privacy.person)
    _same_llm(organization, message.llm_hash)
    tiny = load_tiny(organization, message.spec, message.initial_hash)
    start, start_hash = start_of(tiny, message.update)
    if start_hash != config.model_hash or tiny.space.layout.size != config.dim:
        raise Refused(Refusal.MODEL_HASH, "the server's global model is not the one in this round's configuration")
    model = tiny.attach(start)
    try:
        longest = longest_row(tiny.model, organization.config.data.max_tokens)
        check_trainable(model, compute.sampler, tokenizer=tiny.tokenizer, max_tokens=longest)
    except ConfigError as error:
        raise Refused(Refusal.POLICY, f"the round's adapter cannot be trained privately: {error}") from error
    try:
        rows = count_rows(organization.train_path, organization.config.data, privacy.person)
    except ConfigError as error:
        raise Refused(Refusal.DATA, str(error)) from error
    if plan.batch > rows:
        raise Refused(Refusal.DATA, f"the plan's batch of {plan.batch} is larger than our {rows} {unit.plural}")
    q = plan.batch / rows
    event = DpEvent(noise_multiplier(plan.epsilon, plan.delta, q, plan.rounds * plan.steps), q, plan.steps)
    ledger = Ledger.open(
        organization.ledger_path,
        identity_key=organization.identity.private,
        organization=organization.config.name,
        delta=privacy.delta,
        budget={privacy.dataset: privacy.budget},
        unit=unit,
    )
    key = RoundKey(config.run_id, config.round, config.attempt)
    reservation = ledger.reserve(
        key.run_id,
        key.round,
        key.attempt,
        event,
        "train.begin",
        dataset=privacy.dataset,
        client_level=client_level(organization, config),
    )
    try:
        claim()
        form, config_of_tiny = organization.config.data, tiny.model.config
        read = read_tokens(organization.train_path, tiny.tokenizer, form, config_of_tiny, person=privacy.person)
        data = read.tokens
        persons = None if privacy.person is None else Persons.of(read.rows, privacy.rows_per_person)
        if (len(data) if persons is None else len(persons)) != rows:
            raise Refused(Refusal.DATA, "the training file changed while it was read")
        check_rows(model, data)
        physical_batch = _rehearsed(model, data, persons, plan.batch, compute)
    except BaseException as error:  # nothing was trained: the charge is given back
        ledger.abort(reservation, released=False)
        if isinstance(error, ConfigError):
            raise Refused(Refusal.DATA, str(error)) from error
        raise
    outcome = train_dp(
        model,
        data,
        sigma=event.sigma,
        clip=plan.clip,
        batch=plan.batch,
        steps=plan.steps,
        rate=plan.rate,
        seed=organization.training_seed(key),
        physical_batch=physical_batch,
        sampler=compute.sampler,
        gradient_checkpointing=compute.gradient_checkpointing,
        persons=persons,
    )
    ledger.settle(reservation, outcome.event, noise=outcome.noise)
    moved = update_vector(tiny.space.layout, adapter_state(model), start)
    vector = clip_update(moved.reshape(-1), config.clip)
    if organization.config.simulation is not None and organization.config.simulation.keep_updates:
        _keep(organization.round_folder(key.round), vector)
    return LocalUpdate(vector, rows, ledger.head)


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


def _rehearsed(model: nn.Module, data: TokenRows, persons: Persons | None, batch: int, compute: ComputeSection) -> int:
    """How many rows go through the model at once.

    Raises:
        Refused: ``policy`` where a step on made-up rows does not work here.
    """
    try:
        most = 1 if persons is None else min(persons.most, max(persons.sizes))
        return rehearse(model, data, batch, compute, most)
    except ConfigError as error:
        raise Refused(Refusal.POLICY, f"a training step does not work here: {error}") from error


def client_level(organization: Organization, config: RoundConfig) -> SkellamEvent | None:
    """What the sum of this round tells of one whole organization, where it carries Skellam noise."""
    if config.noise_multiplier == 0:
        return None
    members = group_members(organization.roster, config.groups, config.group)
    noise = distributed_noise(config, len(members))
    return SkellamEvent(noise.honest_variance, noise.l2, noise.l1, releases=1, noisers=noise.noisers)


def load_tiny(organization: Organization, spec_json: str, initial_hash: bytes) -> AdaptedModel:
    """Our own TinyLM with the shared initial adapter.

    Raises:
        Refused: ``protocol`` for a spec that is none, ``model_hash`` when the initial adapter is not ours.
        ConfigError: the model can't be had, or ``[compute]`` asks for what this machine can't do.
    """
    try:
        spec = AdapterSpec.from_json(json.loads(spec_json))
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(Refusal.PROTOCOL, f"adapter spec: {error!r}") from error
    place = Place.of(organization.config.compute)
    tiny = AdaptedModel.load(organization.config.models.tiny, spec, place, kept=True)
    if tiny.space.initial_hash != initial_hash:
        raise Refused(Refusal.MODEL_HASH, "the shared initial adapter differs from ours")
    return tiny


def start_of(tiny: AdaptedModel, update: bytes) -> tuple[dict[str, torch.Tensor], bytes]:
    """The adapter's state at the global update (float32 little endian bytes), and the start's hash (32 bytes).

    Raises:
        Refused: ``model_hash`` when the update's size is not ours.
    """
    values, space = np.frombuffer(update, dtype="<f4"), tiny.space
    if values.size != space.layout.size or not np.isfinite(values).all():
        raise Refused(Refusal.MODEL_HASH, f"the global update has {values.size} values, wanted {space.layout.size}")
    start = tiny.state_at(values.reshape(space.shape))
    return start, global_model_hash(space.model_sha256, space.initial_hash, update)


def clip_update(vector: NDArray[np.float32], clip: float) -> NDArray[np.float32]:
    """``vector`` scaled to an L2 norm of at most ``clip``. Refused when it is not finite."""
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    if not np.isfinite(norm):
        raise Refused(Refusal.INTERNAL, "the trained update is not finite")
    scaled: NDArray[np.float32] = (vector * min(1.0, clip / norm)).astype(np.float32) if norm > 0 else vector
    return scaled


def _keep(folder: Path, vector: NDArray[np.float32]) -> None:
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({"update": vector}, folder / OWN_UPDATE)
