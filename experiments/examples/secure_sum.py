"""A secure sum of five organizations, one of which vanishes in the middle.

The server opens the mean of the vectors that were masked. It never sees a single one: what it holds of an organization
is its vector plus masks, and the masks cancel only in the sum. The organization that vanishes at stage ``mask`` has
shared its secrets before, so the others can help to take its masks out again.

Run it (under a second, no model is loaded):

    python -m experiments.examples.secure_sum
"""

from __future__ import annotations

import numpy as np

from gradtf_fl import run_secure_sum

ORGANIZATIONS = 5
SIZE = 1_000  # numbers in each vector
CLIP = 1.0  # largest L2 norm that the round allows
VANISHES = 3  # position of the organization that is gone before it sends its masked vector


def main() -> None:
    """Print who is in the sum, and how far the opened mean is from the true one."""
    rng = np.random.default_rng(0)
    vectors = []
    for _ in range(ORGANIZATIONS):
        vector = rng.normal(size=SIZE)
        vectors.append((vector * CLIP / np.linalg.norm(vector)).astype(np.float32))

    result = run_secure_sum(vectors, clip=CLIP, drop={"mask": [VANISHES]})

    there = [vector for number, vector in enumerate(vectors) if number != VANISHES]
    error = float(np.abs(result.mean - np.mean(there, axis=0)).max())
    print(f"organizations in the sum: {result.clients} of {ORGANIZATIONS}")
    print(f"largest error of the mean: {error:.1e} (24 bits for each number)")


if __name__ == "__main__":
    main()
