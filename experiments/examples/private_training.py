"""DP-SGD on the embedded TinyLM's LoRA adapter, and the epsilon that it costs with all that gives it a meaning.

The noise multiplier comes from the target epsilon before training. What is reported afterwards comes from the event
that was observed: sigma, the sampling probability q and the number of steps.

Run it (about 15 seconds, no download):

    python -W ignore -m experiments.examples.private_training
"""

from __future__ import annotations

from gradtf_fl import AdapterSpec, attach, encode_rows, epsilons, load_model, noise_multiplier, train_dp
from gradtf_fl.privacy import ADJACENCY, SAMPLER, UNIT
from gradtf_fl.tasks import exact_match, house_rules_federation

EPSILON, DELTA = 8.0, 1e-5
ROWS, BATCH, STEPS = 1024, 64, 150


def main() -> None:
    """Train once, and print accuracy on fresh rows and a whole epsilon report."""
    (organization,) = house_rules_federation("same", organizations=1, rows=ROWS, test_rows=256, seed=0)
    base, tokenizer = load_model("embedded:tiny")
    rows, test = encode_rows(organization.train, tokenizer), encode_rows(organization.test, tokenizer)
    before = exact_match(base, test)
    model = attach(base, AdapterSpec())

    sigma = noise_multiplier(EPSILON, DELTA, BATCH / ROWS, STEPS)
    outcome = train_dp(model, rows, sigma=sigma, clip=0.5, batch=BATCH, steps=STEPS, rate=0.01)

    spent = epsilons([outcome.event], DELTA)
    print(f"accuracy on fresh rows: {before:.3f} before, {exact_match(model, test):.3f} after")
    print(f"epsilon {spent.prv:.3f} (PRV); cross-checks: {spent.pld:.3f} (PLD), {spent.rdp:.3f} (RDP)")
    print(f"delta: {DELTA:g}")
    print(f"unit: {UNIT}")
    print(f"adjacency: {ADJACENCY}")
    print(f"sampler: {SAMPLER}; q = {outcome.event.q:g}, {outcome.event.steps} steps, sigma {outcome.event.sigma:g}")
    print(f"noise: {outcome.noise}")


if __name__ == "__main__":
    main()
