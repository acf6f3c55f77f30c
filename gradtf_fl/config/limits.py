"""What an organization accepts of a secure sum, whatever it trains: its limits, each defined here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from gradtf_fl.config.base import Bits, Count, NoiseMultiplier, Norm, Section, Share
from gradtf_fl.config.plan import Groups, WeightRule


class SumLimits(Section):
    """What the protocol of a round may be; becomes a `ClientPolicy`, field by field.

    Attributes:
        n_min: smallest number of organizations in a sum.
        t_min: smallest threshold: organizations that must stay to the end (default: by the roster's size).
        max_bits: most bits per encoded value.
        max_clip: largest L2 norm bound of an update vector.
        max_weight: largest weight that one organization may have in a sum.
        allow_two: accept sums over two organizations, in which each learns the other's update.
        colluders: share of the organizations that may collude with the server; rounded up, and at least one.
        trials: beacons that this organization helps to draw, over all runs, before it refuses: more let a server choose
            among more samples, and every sample then has to withstand more colluders.
        min_noise: smallest noise multiplier of the distributed DP layer (client level); 0 does without.
    """

    n_min: int = Field(default=3, ge=2, le=1000)
    t_min: int | None = Field(default=None, ge=2, le=1000)
    max_bits: Bits = 32
    max_clip: Norm = 64.0
    max_weight: Norm = 1.0
    allow_two: bool = False
    colluders: Share = 0.1
    trials: int = Field(default=2**20, ge=1, le=2**40)
    min_noise: NoiseMultiplier = 0.0

    def check_roster(self, roster: Sequence[str]) -> None:
        """ValueError unless sums over these keys can hide one of them."""
        if self.n_min < 3 and not self.allow_two:
            raise ValueError(
                "n_min = 2 lets each organization learn the other's update; set allow_two = true to accept"
            )
        if len(set(roster)) != len(roster):
            raise ValueError("roster lists a key twice")
        if len(roster) < self.n_min:
            raise ValueError(f"roster has {len(roster)} keys, n_min is {self.n_min}")


class RoundLimits(Section):
    """How rounds may weigh, split and repeat.

    Attributes:
        weight_rules: how sums may weigh the organizations; "examples" shows the server how many rows all have together.
        groups: number of groups that the roster is split into, always the same: other groups would be other sums.
        attempts: most attempts at one round that this organization pays for; by default a server makes up to 4.
        min_difference: how many organizations the members of two sums must differ in, if they differ at all; two
            sums from one model need 3 in any case. With 2, a round that one organization misses is refused.
        rest_rounds: rounds that this organization sits out after one for which it masked an update.
    """

    weight_rules: Annotated[tuple[WeightRule, ...], Field(strict=False, min_length=1)] = ("uniform",)
    groups: Groups = 1
    attempts: Count = 4
    min_difference: Count = 1
    rest_rounds: int = Field(default=0, ge=0, le=10_000)

    def broken_by_sum(self, weight_rule: str, groups: int) -> list[str]:
        """The bounds that a sum breaks, in words."""
        reasons = []
        if weight_rule not in self.weight_rules:
            reasons.append(f"weight rule {weight_rule} is not among {', '.join(self.weight_rules)}")
        if groups != self.groups:
            reasons.append(f"the roster is split into {groups} groups, not {self.groups}")
        return reasons
