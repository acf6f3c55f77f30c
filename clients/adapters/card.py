"""What an organization's card says of a delivered adapter: the plan it trained by, the roster, what was signed.

No figure of its own ledger stands there: see `gradtf_fl.reports.adapter_card`. Scores do where it shares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clients.adapters.statements import AdapterStatement
from clients.organization import Organization
from gradtf_fl.adapters import ModelCard, add_results, code
from gradtf_fl.reports import federation_card, result_rows, signed_rows

SCORES = {
    "llm_generated": "Exact match, LLM with this adapter",
    "tiny_global": "Exact match, TinyLM of the federation",
    "llm_loss": "Loss (nats per character), LLM with this adapter",
    "tiny_loss": "Loss (nats per character), TinyLM of the federation",
    "llm_rouge1": "ROUGE-1 F, LLM with this adapter",
    "tiny_rouge1": "ROUGE-1 F, TinyLM of the federation",
}


def delivered_card(organization: Organization, statement: AdapterStatement, llm_sha256: str) -> ModelCard:
    """The card of the adapter that ``statement`` is about, for the LLM with that `model_hash`."""
    plan = organization.store().plan_of(statement.run_id)
    about = [
        ("Organizations", f"{len(organization.roster)} on the roster"),
        ("Base model's files (SHA-256)", code(llm_sha256)),
    ]
    signed = signed_rows(statement.llm_adapter_sha256, statement.signature, statement.provider_key)
    simulated = organization.simulation is not None
    return federation_card(statement.run_id, statement.round, plan, simulated=simulated, about=about, signed=signed)


def share_results(folder: Path, scores: Mapping[str, Any]) -> None:
    """Put an `Evaluation`'s fields into the card in ``folder``, where an organization shares them."""
    named = {label: scores[name] for name, label in SCORES.items()}
    add_results(folder, [("Measured on", "this organization's own test rows"), *result_rows(named)])
