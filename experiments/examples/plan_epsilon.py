"""What a planned run will cost, before a single row is read.

A plan is a number of rounds, steps for each, and the probability q with which a row enters a step. From an epsilon
follows the noise, and from a noise the epsilon. All rounds are composed jointly: epsilons of rounds do not add up.

Run it (about 10 seconds, most of them for the accountants' libraries):

    python -m experiments.examples.plan_epsilon
"""

from __future__ import annotations

from gradtf_fl import DpEvent, epsilons, noise_multiplier

ROWS, BATCH, STEPS, ROUNDS = 1024, 64, 50, 3
DELTA = 1e-5


def main() -> None:
    """Print the noise for three budgets, and how epsilon grows from round to round."""
    q = BATCH / ROWS
    print(f"{ROWS} rows, expected batch {BATCH} (q = {q:g}), {ROUNDS} rounds of {STEPS} steps, delta {DELTA:g}")
    for target in (1.0, 4.0, 8.0):
        sigma = noise_multiplier(target, DELTA, q, ROUNDS * STEPS)
        print(f"epsilon {target:g} needs sigma {sigma:.4f}")

    sigma = noise_multiplier(8.0, DELTA, q, ROUNDS * STEPS)
    alone = epsilons([DpEvent(sigma, q, STEPS)], DELTA).prv
    for rounds in range(1, ROUNDS + 1):
        joint = epsilons([DpEvent(sigma, q, STEPS)] * rounds, DELTA).prv
        print(f"after {rounds} rounds: epsilon {joint:.3f}; summed it would be {rounds * alone:.3f}")


if __name__ == "__main__":
    main()
