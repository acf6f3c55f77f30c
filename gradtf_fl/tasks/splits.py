"""The paper's split (section 6): a training set in two parts, public (the provider's) and private (organizations')."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks.text_tasks import Example

_SPLIT_KEY = 0x53504C54


def split_public_private(
    examples: Sequence[Example], seed: int, public: float = 0.5
) -> tuple[list[Example], list[Example]]:
    """(public, private) examples, disjoint, each in the order of ``examples``; a function of the seed alone.

    Whole groups go to one side: all questions on a DROP passage, all rows with one dialogue or question. So no
    private text is in the public part. The public part misses its share by at most one group.

    Raises:
        ConfigError: ``public`` is not between 0 and 1, or there are fewer than two groups.
    """
    if not 0 < public < 1:
        raise ConfigError(f"public share {public}: not between 0 and 1")
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(example.group, []).append(index)
    if len(groups) < 2:
        raise ConfigError(f"{len(examples)} rows share {len(groups)} text(s): nothing to split")
    names = sorted(groups)
    order = np.random.default_rng([seed, _SPLIT_KEY]).permutation(len(names))
    sides: tuple[list[int], list[int]] = ([], [])
    for number in order:
        members = groups[names[number]]
        behind = len(sides[0]) * (1 - public) <= len(sides[1]) * public
        sides[0 if behind else 1].extend(members)
    chosen, rest = ([examples[i] for i in sorted(side)] for side in sides)
    return chosen, rest
