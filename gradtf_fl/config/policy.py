"""``[policy]`` of ``organization.toml``: what a server's plan may ask of this organization."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from gradtf_fl.config.base import Alpha, Count, Epsilon, NoiseMultiplier, Norm, Rate
from gradtf_fl.config.limits import RoundLimits
from gradtf_fl.config.plan import Rank

Clips = Annotated[tuple[Norm, Norm], Field(strict=False)]
Rates = Annotated[tuple[Rate, Rate], Field(strict=False)]
Alphas = Annotated[tuple[Alpha, Alpha], Field(strict=False)]
_TIME = r"(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)"
Hours = Annotated[str, StringConstraints(pattern=rf"^{_TIME}-{_TIME}$")]


class PolicySection(RoundLimits):
    """``[policy]``: bounds on a plan. What lies outside is refused before a row is read and before anything is charged.

    Attributes:
        clip: smallest and largest L2 bound of one row's (person's) gradient.
        rate: smallest and largest learning rate.
        max_rank: largest rank of the adapter.
        alpha: smallest and largest LoRA alpha.
        max_steps: most DP-SGD steps in one round.
        max_round_epsilon: most epsilon that one round alone may cost, at the delta of ``[privacy]``.
        min_sigma: smallest noise multiplier of DP-SGD.
        min_rows: fewest declared rows (persons) for this organization to take part.
        hours: times of the day, UTC, in which a round may begin (``"20:00-06:00"``); empty for any.
    """

    clip: Clips = (1e-3, 100.0)
    rate: Rates = (1e-6, 1.0)
    max_rank: Rank = 64
    alpha: Alphas = (0.1, 1024.0)
    max_steps: Count = 1000
    max_round_epsilon: Epsilon = 8.0
    min_sigma: NoiseMultiplier = 0.3
    min_rows: Count = 32
    hours: Annotated[tuple[Hours, ...], Field(strict=False)] = ()

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
        return [*reasons, *self.broken_by_sum(weight_rule, groups)]

    def broken_by_adapter(self, kind: str, rank: int, alpha: float) -> list[str]:
        """The bounds that an adapter breaks, in words; "full" has neither rank nor alpha."""
        if kind == "full":
            return []
        reasons = [f"rank {rank} is above {self.max_rank}"] if rank > self.max_rank else []
        return [*reasons, *_outside("alpha", alpha, self.alpha)]


def _outside(name: str, value: float, bounds: tuple[float, float]) -> list[str]:
    inside = bounds[0] <= value <= bounds[1]
    return [] if inside else [f"{name} {value:g} is outside {bounds[0]:g} to {bounds[1]:g}"]
