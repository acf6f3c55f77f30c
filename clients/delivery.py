"""The round's LLM adapter arrives: verify, store as a PEFT folder, evaluate at home."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from clients.adapters.card import delivered_card, share_results
from clients.adapters.kept import follow, next_delivery, runs_kept, set_aside
from clients.adapters.statements import AdapterStatement, read_statement, statement_of, write_statement
from clients.organization import Organization
from gradtf_fl.errors import ConfigError, CorruptFile
from gradtf_fl.file_names import EVALUATIONS, LLM_ADAPTER
from gradtf_fl.flower import Refused, keep_cause
from gradtf_fl.round_messages import AdapterDelivery, Fields, Refusal

if TYPE_CHECKING:
    from gradtf_fl.adapters import AdaptedModel, AdapterSpec

LAST_ROUND = 1_000_000
STORED: Fields = {"status": "stored"}


@dataclass(frozen=True)
class Evaluation:
    """How a round's models do on the organization's own test rows; stays at home unless metrics are shared.

    Attributes:
        tiny_global: exact match of the TinyLM at the global update.
        llm_generated: exact match of the LLM with the delivered adapter.
        tiny_loss: nats per character of the answers, comparable between the two models.
        llm_loss: the same of the LLM.
        tiny_rouge1: ROUGE-1 F of generated text, where answers are free text; None elsewhere.
        llm_rouge1: the same of the LLM.
        rows: all test rows.
        rouge1_rows: rows that text was generated for.
    """

    tiny_global: float
    llm_generated: float
    tiny_loss: float
    llm_loss: float
    rows: int
    tiny_rouge1: float | None = None
    llm_rouge1: float | None = None
    rouge1_rows: int = 0


def receive_adapter(organization: Organization, delivery: AdapterDelivery) -> Fields:
    """Verify, store, evaluate.

    Raises:
        Refused: ``adapter`` when signature, round or content is wrong, or it is an older run's; nothing is stored then.
    """
    verify(organization, delivery)
    organization.store().deliver(delivery.run_id, delivery.round, hashlib.sha256(delivery.update).digest())
    from clients.local_training import base_model
    from gradtf_fl.adapters import model_folder, save_adapter, unpack_adapter

    base_name = organization.config.models.llm
    try:
        statement = statement_of(delivery, organization.provider_key, next_delivery(organization.folder))
        organization.store().take_run(delivery.run_id, runs_kept(organization.folder))
        if _delivered_before(organization, statement):
            follow(organization.folder, delivery.round)
            return dict(STORED)
        packed = unpack_adapter(delivery.adapter)
        state, spec = packed.state, packed.spec
        _refuse_unusable(state, spec)
        llm = base_model(organization, base_name, spec, "LLM")
        if packed.base_sha256 != llm.space.model_sha256:
            raise ConfigError(
                f"the adapter was made for another LLM ({packed.base_model}, {packed.base_sha256[:16] or 'no hash'}) "
                f"than ours ({base_name}, {llm.space.model_sha256[:16]}): provider and organizations need the same "
                "files, tokenizer included"
            )
        adapted = _fitted(llm, state)
        set_aside(organization.folder, delivery.round)
        folder = organization.round_folder(delivery.round)
        write_statement(folder, statement)  # first: an adapter that is there has its statement
        card = delivered_card(organization, statement, llm.space.model_sha256)
        save_adapter(folder / LLM_ADAPTER, state, spec, model_folder(base_name), card)
        follow(organization.folder, delivery.round)
    except ConfigError as error:
        raise Refused(Refusal.ADAPTER, str(error)) from error
    evaluation = _evaluate(organization, delivery, adapted, llm.tokenizer)
    if evaluation is None:
        return dict(STORED)
    _note(organization, delivery, evaluation)
    if not organization.config.share_metrics:
        return dict(STORED)
    share_results(folder / LLM_ADAPTER, asdict(evaluation))
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


def _refuse_unusable(state: Mapping[str, Any], spec: AdapterSpec) -> None:
    """ConfigError for values that are not finite float32, and for a rank that no value has: nothing is built for it."""
    import torch

    for name, tensor in state.items():
        if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
            raise ConfigError(f"the adapter's {name} is not a finite float32")
        if spec.kind != "full" and spec.rank not in tensor.shape:
            raise ConfigError(f"the adapter's {name} is not of rank {spec.rank}")


def _fitted(llm: AdaptedModel, state: Mapping[str, Any]) -> Any:
    """The LLM with the adapter; ConfigError when a name or a shape differs."""
    from gradtf_fl.adapters import adapter_state, set_adapter_state

    adapted = llm.attach()
    own = adapter_state(adapted)
    if strange := sorted(set(state) - set(own)):
        raise ConfigError(f"the adapter holds {strange[0]}, which our LLM does not")
    for name, tensor in own.items():
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
    from gradtf_fl.tasks import answer_rouge1, answer_scores, read_tokens

    tiny = load_tiny(organization, delivery.spec, delivery.initial_hash)
    tiny_model = tiny.attach(start_of(tiny, delivery.update)[0])
    form = organization.config.data
    sides = [(tiny_model, tiny.tokenizer), (llm, llm_tokenizer)]
    read = [read_tokens(path, tokenizer, form, model.config) for model, tokenizer in sides]
    found = [answer_scores(model, one.tokens) for (model, _), one in zip(sides, read, strict=True)]
    characters = sum(len(row.answer) for row in read[0].rows)
    llm_words = answer_rouge1(llm, llm_tokenizer, read[1])
    tiny_words = answer_rouge1(tiny_model, tiny.tokenizer, read[0], llm_words.rows) if llm_words else None
    return Evaluation(
        tiny_global=found[0].exact_match,
        llm_generated=found[1].exact_match,
        tiny_loss=found[0].nats / characters,
        llm_loss=found[1].nats / characters,
        rows=len(read[0].rows),
        tiny_rouge1=tiny_words.value if tiny_words else None,
        llm_rouge1=llm_words.value if llm_words else None,
        rouge1_rows=llm_words.rows if llm_words else 0,
    )


def _note(organization: Organization, delivery: AdapterDelivery, evaluation: Evaluation) -> None:
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "run_id": delivery.run_id,
        "round": delivery.round,
        "llm_adapter_sha256": hashlib.sha256(delivery.adapter).hexdigest(),
        **asdict(evaluation),
    }
    path = organization.folder / EVALUATIONS
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")
