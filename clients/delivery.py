"""The round's LLM adapter arrives: verify, store as a PEFT folder, evaluate at home."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from clients.adapters.kept import follow, next_delivery, set_aside
from clients.adapters.statements import AdapterStatement, read_statement, statement_of, write_statement
from clients.organization import Organization
from clients.refusals import Refused, keep_cause
from gradtf_fl.errors import ConfigError, CorruptFile
from gradtf_fl.file_names import EVALUATIONS, LLM_ADAPTER
from gradtf_fl.round_messages import AdapterDelivery, Fields, Refusal

if TYPE_CHECKING:
    from gradtf_fl.adapters import AdaptedModel

LAST_ROUND = 1_000_000
STORED: Fields = {"status": "stored"}


@dataclass(frozen=True)
class Evaluation:
    """Exact match on the organization's own test rows; stays at home unless metrics are shared."""

    tiny_global: float
    llm_generated: float
    rows: int


def receive_adapter(organization: Organization, delivery: AdapterDelivery) -> Fields:
    """Verify, store, evaluate.

    Raises:
        Refused: ``adapter`` when signature, round or content is wrong (nothing is stored then).
    """
    verify(organization, delivery)
    from gradtf_fl.adapters import AdaptedModel, Place, model_folder, save_adapter, unpack_adapter

    base_name = organization.config.models.llm
    try:
        statement = statement_of(delivery, organization.provider_key, next_delivery(organization.folder))
        if _delivered_before(organization, statement):
            follow(organization.folder, delivery.round)
            return dict(STORED)
        state, spec, _ = unpack_adapter(delivery.adapter)
        llm = AdaptedModel.load(base_name, spec, Place.of(organization.config.compute))
        adapted = _fitted(llm, state)
        set_aside(organization.folder, delivery.round)
        folder = organization.round_folder(delivery.round)
        write_statement(folder, statement)  # first: an adapter that is there has its statement
        save_adapter(folder / LLM_ADAPTER, state, spec, model_folder(base_name))
        follow(organization.folder, delivery.round)
    except ConfigError as error:
        raise Refused(Refusal.ADAPTER, str(error)) from error
    evaluation = _evaluate(organization, delivery, adapted, llm.tokenizer)
    if evaluation is None:
        return dict(STORED)
    _note(organization, delivery, evaluation)
    if not organization.config.share_metrics:
        return dict(STORED)
    return {
        **STORED,
        "tiny_global": evaluation.tiny_global,
        "llm_generated": evaluation.llm_generated,
    }


def _delivered_before(organization: Organization, statement: AdapterStatement) -> bool:
    """Whether this very adapter is stored already, whole and unchanged."""
    folder = organization.round_folder(statement.round)
    try:
        old = read_statement(folder)
    except CorruptFile:
        return False
    if old is None or not old.says_the_same(statement):
        return False
    return not old.problems(folder / LLM_ADAPTER, statement.round, organization.provider_key.hex())


def verify(organization: Organization, delivery: AdapterDelivery) -> None:
    """Check round and the pinned provider's signature over the adapter's and the update's hashes."""
    if not 1 <= delivery.round <= LAST_ROUND:
        raise Refused(Refusal.ADAPTER, f"round {delivery.round} is out of range")
    try:
        Ed25519PublicKey.from_public_bytes(organization.provider_key).verify(delivery.signature, delivery.signed_bytes)
    except InvalidSignature as error:
        raise Refused(Refusal.ADAPTER, "the adapter is not signed by the pinned provider") from error


def _fitted(llm: AdaptedModel, state: Mapping[str, Any]) -> Any:
    """The LLM with the adapter; ConfigError when a name or a shape differs."""
    from gradtf_fl.adapters import adapter_state, set_adapter_state

    adapted = llm.attach()
    for name, tensor in adapter_state(adapted).items():
        if name not in state or state[name].shape != tensor.shape:
            raise ConfigError(f"the adapter does not fit our LLM at {name}")
    set_adapter_state(adapted, state)
    return adapted


def _evaluate(organization: Organization, delivery: AdapterDelivery, llm: Any, llm_tokenizer: Any) -> Evaluation | None:
    """How the round's models score; None where they can't be scored. That never stands before the next round."""
    if organization.test_path is None:
        return None
    try:
        return _scores(organization, organization.test_path, delivery, llm, llm_tokenizer)
    except Exception as error:  # whatever it is, it concerns nobody but us
        keep_cause(error, f"round {delivery.round} is not scored", organization.folder)
        return None


def _scores(
    organization: Organization, path: Path, delivery: AdapterDelivery, llm: Any, llm_tokenizer: Any
) -> Evaluation:
    from clients.local_training import load_tiny, start_of
    from gradtf_fl.tasks import encode_rows, exact_match, read_rows, refuse_unscored

    tiny = load_tiny(organization, delivery.spec, delivery.initial_hash)
    sides = [encode_rows(read_rows(path, tokenizer), tokenizer) for tokenizer in (tiny.tokenizer, llm_tokenizer)]
    for rows in sides:
        refuse_unscored(rows, f"data {path}")
    tiny_model = tiny.attach(start_of(tiny, delivery.update)[0])
    return Evaluation(
        tiny_global=exact_match(tiny_model, sides[0]), llm_generated=exact_match(llm, sides[1]), rows=len(sides[0])
    )


def _note(organization: Organization, delivery: AdapterDelivery, evaluation: Evaluation) -> None:
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "run_id": delivery.run_id,
        "round": delivery.round,
        "llm_adapter_sha256": hashlib.sha256(delivery.adapter).hexdigest(),
        "tiny_global": evaluation.tiny_global,
        "llm_generated": evaluation.llm_generated,
        "rows": evaluation.rows,
    }
    path = organization.folder / EVALUATIONS
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")
