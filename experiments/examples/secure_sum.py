"""A secure sum of five organizations, one of which vanishes after the others have shared secrets with it.

The server opens the mean of the vectors that were masked. Of a single one it holds the vector plus masks, and masks
cancel only in the sum. The others help to take out the masks of the one that vanished.

Run it (under a second; no model is loaded); it prints:

    $ python -m experiments.examples.secure_sum
    organizations in the sum: 4 of 5
    largest error of the mean: 1.5e-07 (24 bits for each number)
"""

import numpy as np

from gradtf_fl import run_secure_sum

CLIP = 1.0  # largest L2 norm of a vector that the round allows
VANISHES = 3  # position of the organization that is gone before it sends its masked vector


def main() -> None:
    """Print who is in the sum, and how far the opened mean is from the true one."""
    rng = np.random.default_rng(0)
    vectors = [vector * CLIP / np.linalg.norm(vector) for vector in rng.normal(size=(5, 1000))]

    result = run_secure_sum(vectors, clip=CLIP, drop={"mask": [VANISHES]})

    true_mean = np.mean(np.delete(vectors, VANISHES, axis=0), axis=0)
    print(f"organizations in the sum: {result.clients} of {len(vectors)}")
    print(f"largest error of the mean: {np.abs(result.mean - true_mean).max():.1e} (24 bits for each number)")


if __name__ == "__main__":
    main()
