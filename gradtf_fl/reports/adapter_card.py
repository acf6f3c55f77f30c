"""What a federation's LLM adapter says of itself: the same card at the server and at an organization.

It holds what the plan says, which everybody in the federation knows, and no figure of any organization's ledger.
Nothing sends a card away, but people copy adapter folders to other machines and to hubs, and the card goes along.
"""

from __future__ import annotations

from collections.abc import Mapping

from gradtf_fl.adapters import ModelCard, Rows, code
from gradtf_fl.privacy import ACCOUNTANT, NOISE_SEEDED
from gradtf_fl.round_messages import TrainingPlan

MADE_BY = "DP-SGD at each organization, and secure aggregation of what it changed"
UNIT = "one row, or one person with all of their rows: each organization chooses, and its ledger says which"
SAMPLER = "Poisson: every unit is drawn independently with probability q in each step"
NOISE_OF_EACH = "each organization's own; its ledger names it"
LIMITS = (
    "Other runs. Epsilon is this run's alone; earlier and later runs on the same rows add to it. Each organization's "
    "ledger composes them all.",
    "Any organization's ledger. This page states no figure of one, because folders like this one get copied. "
    "`gradtf audit report` shows them at the organization.",
    "People with several rows, where an organization's unit is a row: k rows of one person cost up to k times as much.",
    "Organizations that collude. All other members of a sum together can subtract their updates from it; what is left "
    "has the noise that the epsilon above stands for, and no more.",
    "Attacks on floating-point noise. Gaussian noise of this run is not hardened against them.",
    "The public rows that a Grad-Transformer was trained on, where one made this adapter.",
)
SIMULATED = "Anything: this was a simulation. Its noise, keys and masks come from a seed and protect nobody."


def federation_card(
    run_id: str, round_number: int, plan: TrainingPlan | None, *, simulated: bool, about: Rows = (), signed: Rows = ()
) -> ModelCard:
    """The card of a round's adapter.

    Args:
        run_id: of the federation's run; a stranger's text to an organization.
        round_number: from 1.
        plan: of the run; None where the writer never saw it.
        simulated: whether the noise comes from a seed.
        about: more on where it comes from.
        signed: what was signed (`signed_rows`).
    """
    origin = [
        ("Made by", MADE_BY),
        ("Run", code(run_id)),
    ]
    rounds = f"{round_number} of {plan.rounds}" if plan is not None else str(round_number)
    return ModelCard(
        title=f"LLM adapter of round {round_number} of a federation",
        origin=[*origin, ("Round", rounds), *about],
        privacy=() if plan is None else _privacy(plan, NOISE_SEEDED if simulated else NOISE_OF_EACH),
        limits=[*([SIMULATED] if simulated else []), *LIMITS],
        signed=signed,
    )


def signed_rows(packed_sha256: str, signature: str, provider_key: str) -> Rows:
    """What the provider signed; all hex."""
    return [
        ("Packed adapter (SHA-256)", code(packed_sha256)),
        ("Provider's signature (Ed25519)", code(signature)),
        ("Provider's key", code(provider_key)),
    ]


def result_rows(scores: Mapping[str, float | None]) -> Rows:
    """Scores by what they are of; those that are None are left out."""
    return [(name, f"{value:.4g}") for name, value in scores.items() if value is not None]


def _privacy(plan: TrainingPlan, noise: str) -> Rows:
    return [
        ("Epsilon", f"at most {plan.epsilon:g} in all {plan.rounds} rounds of the run, per organization, by the plan"),
        ("Unit", UNIT),
        ("Adjacency", "add or remove one unit"),
        ("Delta", f"{plan.delta:g}"),
        ("Sampler", SAMPLER),
        ("Accountant", ACCOUNTANT),
        ("Noise generator", noise),
    ]
