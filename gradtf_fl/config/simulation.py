"""``gradtf simulate``: a federation on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from gradtf_fl.config.base import (
    Epsilon,
    Location,
    ModelName,
    Section,
)
from gradtf_fl.config.compute import ComputeSection
from gradtf_fl.config.plan import FederationPlan, RoundSettings
from gradtf_fl.config.roster_size import refuse_small_groups, refuse_two
from gradtf_fl.round_messages import STAGES, Stage

Rules = Literal["same", "mixed", "unseen"]
Engine = Literal["in-process", "ray"]
HOUSE_RULES_ANSWER_TOKENS = 2  # two digits; here, because the simulation's plan is made without torch


class DropRule(Section):
    """``--drop STAGE:COUNT``: so many organizations vanish at that stage of every round."""

    stage: Stage
    count: int = Field(ge=1)

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        stage, _, count = value.partition(":")
        if stage not in STAGES or not count.isascii() or not count.isdigit():
            raise ValueError(f"{value!r} is not STAGE:COUNT with a stage of {', '.join(STAGES)}")
        return {"stage": stage, "count": int(count)}


class SimulationConfig(RoundSettings):
    """``gradtf simulate``: a federation on this machine. ``--config`` reads the same keys from TOML.

    >>> from gradtf_fl import SimulationConfig
    >>> config = SimulationConfig(organizations=8, rounds=2, epsilon=1.0)
    >>> config.lifetime_budget
    1.0

    Attributes:
        rows, test_rows: private training and test rows of each organization.
        budget: lifetime epsilon in each ledger (default: ``epsilon``).
        refine: whether the provider refines the LLM update on public prompts.
        controls: baselines file alongside the transformer (mean, nearest, ridge).
        compute: ``[compute]`` of every organization.
    """

    budget: Epsilon | None = None
    rules: Rules = "same"
    refine: bool = True
    engine: Engine = "in-process"
    drop: tuple[DropRule, ...] = Field(default=(), strict=False)
    out: Location | None = None
    controls: ModelName = "embedded"
    compute: ComputeSection = ComputeSection()
    rows: int = Field(default=1024, ge=16, le=10_000_000)
    test_rows: int = Field(default=256, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        refuse_two(self.organizations, self.allow_two)
        refuse_small_groups(self.organizations, self.groups)
        if self.batch > self.rows:
            raise ValueError(f"batch ({self.batch}) is larger than rows ({self.rows})")
        gone = sum(rule.count for rule in self.drop)
        if gone > self.organizations:
            raise ValueError(f"drop names {gone} organizations, there are {self.organizations}")
        return self

    @property
    def lifetime_budget(self) -> float:
        """Epsilon each organization's ledger allows."""
        return self.epsilon if self.budget is None else self.budget

    def plan(self, out: Path, organizations_dir: Path, provider_key: Path, prompts: Path | None) -> FederationPlan:
        """The server's side of this simulation; ``prompts``: for refinement, None without."""
        shared = {name: getattr(self, name) for name in RoundSettings.model_fields}
        paths = {"out": out, "organizations_dir": organizations_dir, "provider_key": provider_key, "prompts": prompts}
        return FederationPlan(**(shared | paths | {"answer_tokens": HOUSE_RULES_ANSWER_TOKENS}))
