"""What a server decides about secure sums, whatever is summed."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from gradtf_fl.config.base import Bits, Count, NoiseMultiplier, Norm, Seconds, Section, Share
from gradtf_fl.config.plan import Combine, Groups, WeightRule
from gradtf_fl.config.roster_size import refuse_unsound_sums


class SumSettings(Section):
    """How the organizations' update vectors are summed.

    Attributes:
        organizations: how many are on the roster.
        clip: L2 norm bound of an organization's update vector before encoding.
        bits: bits per encoded value.
        weight_rule: whether organizations count alike (uniform) or by their examples.
        groups: the roster is summed in this many groups, whose means are combined; 1 is one sum over all.
        combine: how the means of groups are combined.
        sample: organizations of a round, drawn by a beacon that no party can steer; 0 for all of them.
        threshold: organizations that must stay to the end (default: by the roster's size).
        colluders: share of the organizations that a round must withstand as colluders; rounded up, and at least one.
        dropouts: the share that it must withstand as dropouts.
        noise_multiplier: distributed DP: standard deviation of the Skellam noise on a sum, in units of clip.
        max_norm: L2 norm of a mean above which the whole round is rejected (default: clip).
        deadline_s: how long a stage waits for organizations, in seconds.
        join_s: how long a round waits for the organizations' nodes, in seconds.
        attempts: most attempts at one round before the run ends with the last one's error.
        allow_two: accept two organizations, of which each learns the other's update.
    """

    organizations: int = Field(ge=2)
    clip: Norm
    bits: Bits = 24
    weight_rule: WeightRule = "uniform"
    groups: Groups = 1
    combine: Combine = "trimmed-mean"
    sample: int = Field(default=0, ge=0)
    threshold: int | None = Field(default=None, ge=2)
    colluders: Share = 0.1
    dropouts: Share = 0.1
    noise_multiplier: NoiseMultiplier = 0.0
    max_norm: Norm | None = None
    deadline_s: Seconds = 600.0
    join_s: Seconds = 600.0
    attempts: Count = 4
    allow_two: bool = False

    @model_validator(mode="after")
    def _enough_organizations(self) -> Self:
        refuse_unsound_sums(
            organizations=self.organizations,
            allow_two=self.allow_two,
            sample=self.sample,
            groups=self.groups,
            noise_multiplier=self.noise_multiplier,
            weight_rule=self.weight_rule,
            threshold=self.threshold,
        )
        return self
