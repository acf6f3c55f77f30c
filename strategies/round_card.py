"""What the server's card says of a round's adapter: the plan, counts and hashes."""

from __future__ import annotations

from gradtf_fl.adapters import ModelCard, code
from gradtf_fl.config import NO_TRANSFORMER, FederationPlan
from gradtf_fl.flower import RoundRecord
from gradtf_fl.reports import federation_card, signed_rows
from gradtf_fl.round_messages import TrainingPlan
from strategies.provider import GeneratedAdapter, Provider


def round_card(
    plan: FederationPlan,
    provider: Provider,
    training: TrainingPlan,
    run_id: str,
    record: RoundRecord,
    adapter: GeneratedAdapter,
) -> ModelCard:
    """The card of the adapter that ``record``'s round ended with."""
    counts = f"{record.masked} of {plan.organizations} are in this round's sum"
    noise = f"Skellam, {plan.noise_multiplier:g} update clips" if plan.noise_multiplier else "none"
    about = [
        ("Organizations", counts + (f", in {plan.groups} groups" if plan.groups > 1 else "")),
        ("Noise on the sum, for a whole organization", noise),
        ("Base model's files (SHA-256)", code(provider.llm.model_sha256)),
    ]
    if plan.transformer != NO_TRANSFORMER:
        about.append(("Grad-Transformer (SHA-256)", code(provider.generator.sha256)))
    signed = signed_rows(adapter.sha256, adapter.signature.hex(), provider.key.public.hex())
    simulated = plan.organizations_dir is not None
    return federation_card(run_id, record.round, training, simulated=simulated, about=about, signed=signed)
