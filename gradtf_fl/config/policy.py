"""``[policy]`` of ``organization.toml``: what a server's plan may ask of this organization."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from gradtf_fl.config.base import Count, Epsilon, NoiseMultiplier, Norm, Rate, Section
from gradtf_fl.config.plan import WeightRule

Range = Annotated[tuple[Norm, Norm], Field(strict=False)]
Hours = Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-4]):[0-5][0-9]-([01][0-9]|2[0-4]):[0-5][0-9]$")]


class PolicySection(Section):
    """``[policy]``: bounds on a plan. What lies outside is refused before a row is read and before anything is charged.

    Attributes:
        clip: smallest and largest L2 bound of one row's (person's) gradient.
        rate: smallest and largest learning rate.
        max_rank: largest rank of the adapter.
        alpha: smallest and largest LoRA alpha.
        max_steps: most DP-SGD steps in one round.
        max_round_epsilon: most epsilon that one round alone may cost, at the delta of ``[privacy]``.
        min_sigma: smallest noise multiplier of DP-SGD.
        min_rows: fewest rows (declared) with which this organization takes part.
        weight_rules: how sums may weigh the organizations; "examples" tells the server how many rows all have together.
        groups: numbers of groups that the roster may be split into.
        attempts: most attempts at one round.
        hours: times of the day, UTC, in which a round may begin (``"20:00-06:00"``); empty for any.
        min_difference: fewest organizations by which the members of two sums may differ, where they differ at all.
    """

    clip: Range = (1e-3, 100.0)
    rate: Annotated[tuple[Rate, Rate], Field(strict=False)] = (1e-6, 1.0)
    max_rank: Count = 64
    alpha: Range = (0.1, 1024.0)
    max_steps: Count = 1000
    max_round_epsilon: Epsilon = 8.0
    min_sigma: NoiseMultiplier = 0.3
    min_rows: Count = 32
    weight_rules: Annotated[tuple[WeightRule, ...], Field(strict=False, min_length=1)] = ("uniform",)
    groups: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)] = (1,)
    attempts: Count = 3
    hours: Annotated[tuple[Hours, ...], Field(strict=False)] = ()
    min_difference: Count = 1

    @model_validator(mode="after")
    def _ranges_are_ranges(self) -> Self:
        for name in ("clip", "rate", "alpha"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: the smallest value comes first")
        return self
