"""Private training of one round: the ledger is charged, then DP-SGD runs from the global adapter.

The charge covers the update vector that leaves through the secure aggregation. Losses, clip rates, batch
sizes and the number of rows do not leave.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.node_store import RoundKey
from clients.organization import Organization
from clients.refusals import Refused
from gradtf_fl.adapters import (
    AdapterSpec,
    adapter_state,
    attach,
    initial_state,
    set_adapter_state,
    state_hash,
)
from gradtf_fl.errors import ConfigError
from gradtf_fl.models import kept_model, model_hash
from gradtf_fl.privacy import DpEvent, Ledger, SkellamEvent, noise_multiplier
from gradtf_fl.round_messages import BeginRound, Refusal, TrainingPlan, global_model_hash
from gradtf_fl.secagg import RoundConfig, distributed_noise, group_members
from gradtf_fl.tasks import encode_rows, read_rows
from gradtf_fl.training.dp_sgd import train_dp
from gradtf_fl.training.preflight import check_trainable
from gradtf_fl.update_vectors import BlockLayout, apply_update, update_vector

OWN_UPDATE = "own_update.safetensors"


@dataclass(frozen=True)
class LocalUpdate:
    """The clipped update, float32 [blocks * block_dim], rows trained on, and the ledger's head (32 bytes)."""

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
        claim: uses up (round, attempt) on disk; called after the charge is known to fit and before any
        training.

    Raises:
        Refused: ``model_hash``, ``policy`` (an adapter that DP-SGD can't train) or ``data``. BudgetExhausted: the
            charge does not fit; no row was parsed.
    """
    tiny = load_global_tiny(organization, message.spec, message.initial_hash, message.update)
    if tiny.start_hash != config.model_hash or tiny.layout.size != config.dim:
        raise Refused(Refusal.MODEL_HASH, "the server's global model is not the one in this round's configuration")
    try:
        check_trainable(tiny.model)
    except ConfigError as error:
        raise Refused(Refusal.POLICY, f"the round's adapter cannot be trained privately: {error}") from error
    rows = count_rows(organization.train_path)
    if plan.batch > rows:
        raise Refused(Refusal.DATA, f"the plan's batch of {plan.batch} is larger than our {rows} rows")
    q = plan.batch / rows
    event = DpEvent(noise_multiplier(plan.epsilon, plan.delta, q, plan.rounds * plan.steps), q, plan.steps)
    privacy = organization.config.privacy
    ledger = Ledger.open(
        organization.ledger_path,
        identity_key=organization.identity.private,
        organization=organization.config.name,
        delta=privacy.delta,
        budget={privacy.dataset: privacy.budget},
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
        data = encode_rows(read_rows(organization.train_path), tiny.tokenizer)
        if len(data) != rows:
            raise Refused(Refusal.DATA, "the training file changed while it was read")
    except BaseException as error:  # nothing was trained: the charge is given back
        ledger.abort(reservation, released=False)
        if isinstance(error, ConfigError):
            raise Refused(Refusal.DATA, str(error)) from error
        raise
    outcome = train_dp(
        tiny.model,
        data,
        sigma=event.sigma,
        clip=plan.clip,
        batch=plan.batch,
        steps=plan.steps,
        rate=plan.rate,
        seed=organization.training_seed(key),
        sampler=organization.config.compute.sampler,
    )
    ledger.settle(reservation, outcome.event, noise=outcome.noise)
    moved = update_vector(tiny.layout, adapter_state(tiny.model), tiny.start)
    vector = clip_update(moved.reshape(-1), config.clip)
    if organization.config.simulation is not None and organization.config.simulation.keep_updates:
        _keep(organization.round_folder(key.round), vector)
    return LocalUpdate(vector, rows, ledger.head)


def client_level(organization: Organization, config: RoundConfig) -> SkellamEvent | None:
    """What the sum of this round tells of one whole organization, where it carries Skellam noise."""
    if config.noise_multiplier == 0:
        return None
    members = group_members(organization.roster, config.groups, config.group)
    noise = distributed_noise(config, len(members))
    return SkellamEvent(noise.honest_variance, noise.l2, noise.l1, releases=1, noisers=noise.noisers)


@dataclass(frozen=True)
class GlobalTiny:
    """The TinyLM at the global update: PEFT model, tokenizer, layout, starting state and hash (32 bytes)."""

    model: Any
    tokenizer: Any
    layout: BlockLayout
    start: dict[str, Any]
    start_hash: bytes


def load_global_tiny(organization: Organization, spec_json: str, initial_hash: bytes, update: bytes) -> GlobalTiny:
    """Our own TinyLM with the shared initial adapter plus the global update.

    Raises:
        Refused: ``model_hash`` when the initial adapter or the update's size is not ours.
    """
    name = organization.config.models.tiny
    try:
        spec = AdapterSpec.from_json(json.loads(spec_json))
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(Refusal.PROTOCOL, f"adapter spec: {error!r}") from error
    model, tokenizer = kept_model(name)
    initial = initial_state(model, spec)
    if state_hash(initial) != initial_hash:
        raise Refused(Refusal.MODEL_HASH, "the shared initial adapter differs from ours")
    layout = BlockLayout.from_state(initial, spec.train_a)
    values = np.frombuffer(update, dtype="<f4")
    if values.size != layout.size or not np.isfinite(values).all():
        raise Refused(Refusal.MODEL_HASH, f"the global update has {values.size} values, wanted {layout.size}")
    start = apply_update(layout, initial, values.reshape(layout.blocks, layout.block_dim))
    peft_model = attach(model, spec)
    set_adapter_state(peft_model, start)
    start_hash = global_model_hash(model_hash(name), initial_hash, update)
    return GlobalTiny(peft_model, tokenizer, layout, dict(start), start_hash)


def count_rows(path: Path) -> int:
    """Rows of a JSONL file (non-blank lines); nothing is parsed. Refused when it cannot be read."""
    try:
        with path.open("rb") as lines:
            rows = sum(1 for line in lines if line.strip())
    except OSError as error:
        raise Refused(Refusal.DATA, f"{path}: {error.strerror}") from error
    if rows == 0:
        raise Refused(Refusal.DATA, f"{path}: no rows")
    return rows


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
