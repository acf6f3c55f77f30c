"""Federations whose organizations train the TinyLM in rounds, as the strategy has it; many of them side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

from torch import Tensor

from experiments.embedded import DELTA, LLM_RECIPE, tune
from experiments.paper.measures.shipped import accuracy, bench
from gradtf_fl.privacy import noise_multiplier
from gradtf_fl.tasks import OrganizationData, TokenRows, encode_rows
from gradtf_fl.training import DpRecipe, dp_fine_tune_stacked

NO_DP = math.inf
"""The epsilon of rounds without noise; each row's gradient is clipped all the same."""


class Trained(NamedTuple):
    """TinyLM updates [K, L1, n1] after the last round, and after the first."""

    last: Tensor
    first: Tensor


@dataclass(frozen=True)
class Federations:
    """F federations of M organizations each, ordered federation by federation.

    Attributes:
        private, test: rows [F * M * R] and [F * M * T], organization by organization.
        recipe: of their rounds.
    """

    members: int
    organizations: int
    private: TokenRows
    test: TokenRows
    recipe: DpRecipe

    @classmethod
    def of(cls, federations: Sequence[Sequence[OrganizationData]], steps: int) -> Federations:
        """Equally large federations of equally many rows; ``steps`` in each of three rounds."""
        everyone = list(chain.from_iterable(federations))
        private, test = (
            encode_rows(list(chain.from_iterable(rows)), bench().pair.tiny.tokenizer)
            for rows in ([one.train for one in everyone], [one.test for one in everyone])
        )
        return cls(len(federations[0]), len(everyone), private, test, DpRecipe(steps=steps))

    @property
    def count(self) -> int:
        """F."""
        return self.organizations // self.members

    def alone(self, epsilon: float, seed: int) -> Trained:
        """Of organizations that train on their own, in rounds of one: [F * M, L1, n1]."""
        return self._train(range(self.organizations), epsilon, [seed, 7])

    def together(self, epsilon: float, seed: int) -> Trained:
        """What secure aggregation delivers: mean updates [F, L1, n1]."""
        groups = [number for number in range(self.count) for _ in range(self.members)]
        updates = self._train(groups, epsilon, [seed, 6])
        return Trained(*(one.reshape(self.count, self.members, *one.shape[1:]).mean(1) for one in updates))

    def _train(self, groups: Sequence[int], epsilon: float, seed: Sequence[int]) -> Trained:
        recipe, rows = self.recipe, len(self.private) // self.organizations
        sigma = 0.0
        if epsilon != NO_DP:
            sigma = noise_multiplier(epsilon, DELTA, recipe.batch / rows, recipe.rounds * recipe.steps)
        sigmas = [sigma] * self.organizations
        updates = dp_fine_tune_stacked(bench().tiny, self.private, groups, sigmas, recipe, seed)
        return Trained(last=updates[-1], first=updates[0])

    def own_ceiling(self, seed: int) -> list[float]:
        """Accuracy of the LLM tuned without DP on each organization's own rows [F * M]."""
        recipe = replace(LLM_RECIPE, steps=self.recipe.rounds * self.recipe.steps)
        return accuracy(bench().llm, tune(bench().llm, self.private, self.organizations, recipe, seed), self.test)

    def pooled_ceiling(self, seed: int) -> list[float]:
        """Accuracy [F] of one LLM adapter tuned without DP on the rows of a whole federation, thrice the batch."""
        steps = self.recipe.rounds * self.recipe.steps
        recipe = replace(LLM_RECIPE, steps=steps, batch=3 * LLM_RECIPE.batch)
        return accuracy(bench().llm, tune(bench().llm, self.private, self.count, recipe, seed), self.test)

    def per_organization(self, updates: Tensor) -> Tensor:
        """A federation's update for each of its organizations: [F, ...] -> [F * M, ...]."""
        return updates.repeat_interleave(self.members, 0)
