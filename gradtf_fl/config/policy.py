"""``[policy]`` of ``organization.toml``: what a server's plan may ask of this organization."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from gradtf_fl.config.base import Alpha, Count, Epsilon, NoiseMultiplier, Norm, Rate, Section
from gradtf_fl.config.plan import Groups, Rank, WeightRule

Clips = Annotated[tuple[Norm, Norm], Field(strict=False)]
Rates = Annotated[tuple[Rate, Rate], Field(strict=False)]
Alphas = Annotated[tuple[Alpha, Alpha], Field(strict=False)]
_TIME = r"(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)"
Hours = Annotated[str, StringConstraints(pattern=rf"^{_TIME}-{_TIME}$")]


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
        min_rows: fewest rows (persons), as declared, with which this organization takes part.
        weight_rules: how sums may weigh the organizations; "examples" tells the server how many rows all have together.
        groups: number of groups that the roster is split into, always the same: other groups would be other sums.
        attempts: most attempts at one round that this organization pays for; by default a server makes up to 4.
        hours: times of the day, UTC, in which a round may begin (``"20:00-06:00"``); empty for any.
        min_difference: fewest organizations by which the members of two sums may differ, where they differ at all; two
            sums from one model need 3 in any case. With 2, a round that one organization misses is refused.
        rest_rounds: rounds that this organization sits out after one for which it masked an update.
    """

    clip: Clips = (1e-3, 100.0)
    rate: Rates = (1e-6, 1.0)
    max_rank: Rank = 64
    alpha: Alphas = (0.1, 1024.0)
    max_steps: Count = 1000
    max_round_epsilon: Epsilon = 8.0
    min_sigma: NoiseMultiplier = 0.3
    min_rows: Count = 32
    weight_rules: Annotated[tuple[WeightRule, ...], Field(strict=False, min_length=1)] = ("uniform",)
    groups: Groups = 1
    attempts: Count = 4
    hours: Annotated[tuple[Hours, ...], Field(strict=False)] = ()
    min_difference: Count = 1
    rest_rounds: Annotated[int, Field(ge=0, le=10_000)] = 0

    @model_validator(mode="after")
    def _ranges_are_ranges(self) -> Self:
        problems = [
            f"{name}: the smallest value comes first"
            for name in ("clip", "rate", "alpha")
            if getattr(self, name)[0] > getattr(self, name)[1]
        ]
        for window in self.hours:
            begin, end = window.split("-")
            if begin == end or begin == "24:00":
                problems.append(f"hours: {window} begins when it ends; for the whole day leave hours empty")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def broken_by(self, *, clip: float, rate: float, steps: int, weight_rule: str, groups: int) -> list[str]:
        """The bounds that a plan's numbers break, in words; those of its adapter are `broken_by_adapter`'s."""
        reasons = [*_outside("clip", clip, self.clip), *_outside("rate", rate, self.rate)]
        if steps > self.max_steps:
            reasons.append(f"{steps} steps are more than {self.max_steps}")
        if weight_rule not in self.weight_rules:
            reasons.append(f"weight rule {weight_rule} is not among {', '.join(self.weight_rules)}")
        if groups != self.groups:
            reasons.append(f"the roster is split into {groups} groups, not {self.groups}")
        return reasons

    def broken_by_adapter(self, kind: str, rank: int, alpha: float) -> list[str]:
        """The bounds that an adapter breaks, in words; "full" has neither rank nor alpha."""
        if kind == "full":
            return []
        reasons = [f"rank {rank} is above {self.max_rank}"] if rank > self.max_rank else []
        return [*reasons, *_outside("alpha", alpha, self.alpha)]


def _outside(name: str, value: float, bounds: tuple[float, float]) -> list[str]:
    inside = bounds[0] <= value <= bounds[1]
    return [] if inside else [f"{name} {value:g} is outside {bounds[0]:g} to {bounds[1]:g}"]
