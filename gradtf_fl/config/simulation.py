"""``gradtf simulate``: a federation on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from gradtf_fl.config.base import Epsilon, Location, ModelName, Section
from gradtf_fl.config.compute import ComputeSection
from gradtf_fl.config.plan import NO_TRANSFORMER, FederationPlan, RoundSettings
from gradtf_fl.config.provider import ProviderSection
from gradtf_fl.config.roster_size import refuse_unsound_sums
from gradtf_fl.config.task import HOUSE_RULES_ANSWER_TOKENS, SharingOut, TaskSection
from gradtf_fl.config.unit import ROW, UnitSection
from gradtf_fl.round_messages import STAGES, Stage

Engine = Literal["in-process", "ray"]
MAX_WORKERS = 1024


class DropRule(Section):
    """``--drop STAGE:COUNT``: this many organizations vanish at that stage of every round."""

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


class SimulationConfig(RoundSettings, SharingOut, UnitSection):
    """``gradtf simulate``: a federation on this machine. ``--config`` reads the same from ``federation.toml``.

    >>> from gradtf_fl import SimulationConfig
    >>> config = SimulationConfig(organizations=8, rounds=2, epsilon=1.0)
    >>> config.lifetime_budget
    1.0

    Attributes:
        task: whose rows.
        budget: lifetime epsilon in each ledger (default: ``epsilon``).
        refine: whether the provider refines the LLM update on public prompts (default: for house-rules).
        engine: where organizations run: here, or on Ray.
        workers: processes that share organizations and evaluation out among them, each with its share of the cores.
            The figures are the same with any number of them.
        ray_cpus: cores of a Ray cluster that each organization takes.
        ray_gpus: GPUs that each organization takes there; 0.25 puts four of them on one.
        ray_address: of a running Ray cluster, whose machines see the same paths (default: one of this run's own).
        controls: baselines file alongside the transformer (mean, nearest, ridge).
        compute: ``[compute]`` of every organization, and of the server.
        provider: what `gradtf prepare` does.
    """

    task: TaskSection = TaskSection()
    budget: Epsilon | None = None
    refine: bool | None = None
    engine: Engine = "in-process"
    workers: int = Field(default=1, ge=1, le=MAX_WORKERS)
    ray_cpus: int = Field(default=1, ge=1)
    ray_gpus: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    ray_address: str | None = Field(default=None, min_length=1)
    drop: tuple[DropRule, ...] = Field(default=(), strict=False)
    out: Location | None = None
    controls: ModelName = "embedded"
    compute: ComputeSection = ComputeSection()
    provider: ProviderSection = ProviderSection()

    @model_validator(mode="before")
    @classmethod
    def _persons_stay_on_one_side(cls, values: Any) -> Any:
        """``task.group`` is the persons' field where it is not told: nobody is both public and private, or in a test
        that others of their rows are trained for."""
        unit, task = (values.get(name) for name in ("unit", "task")) if isinstance(values, Mapping) else (None, None)
        if not isinstance(unit, str) or unit == ROW:
            return values
        if isinstance(task, TaskSection) and not task.group:
            return {**values, "task": task.model_copy(update={"group": (unit,)})}
        if isinstance(task, Mapping) and not task.get("group"):
            return {**values, "task": {**task, "group": (unit,)}}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        refuse_unsound_sums(
            organizations=self.organizations,
            allow_two=self.allow_two,
            sample=self.sample,
            groups=self.groups,
            noise_multiplier=self.noise_multiplier,
            weight_rule=self.weight_rule,
        )
        if self.task.is_house_rules and not (self.rows and self.test_rows):
            raise ValueError("rows and test_rows of house-rules must be at least 1: they are drawn")
        if self.task.is_house_rules and self.person is not None:
            raise ValueError(f"unit {self.person!r}: house-rules are drawn and nobody's; name rows of persons (task)")
        if self.rows and self.batch > self.rows:
            raise ValueError(f"batch ({self.batch}) is larger than rows ({self.rows})")
        if self.partition == "sizes" and len(self.sizes) != self.organizations:
            raise ValueError(f"sizes has {len(self.sizes)} shares, there are {self.organizations} organizations")
        if self.partition == "natural" and self.by is None:
            raise ValueError("partition 'natural' needs by, the field that names a row's organization")
        if self.engine == "ray" and self.workers > 1:
            raise ValueError("workers are this machine's processes; Ray shares organizations out itself (ray_cpus)")
        shares = ("ray_cpus", "ray_gpus", "ray_address")
        strays = [name for name in shares if getattr(self, name) != type(self).model_fields[name].default]
        if self.engine != "ray" and strays:
            raise ValueError(f"{', '.join(strays)}: only engine 'ray' takes shares of a cluster")
        gone = sum(rule.count for rule in self.drop)
        if gone > self.organizations:
            raise ValueError(f"drop names {gone} organizations, there are {self.organizations}")
        return self

    @property
    def lifetime_budget(self) -> float:
        """Epsilon each organization's ledger allows."""
        return self.epsilon if self.budget is None else self.budget

    @property
    def adapted_model(self) -> str:
        """The model that delivered adapters are for: the LLM, or without a Grad-Transformer the TinyLM itself."""
        return self.tiny if self.transformer == NO_TRANSFORMER else self.llm

    def plan(self, out: Path, organizations_dir: Path, provider_key: Path, prompts: Path | None) -> FederationPlan:
        """The server's side of this simulation; ``prompts``: for refinement, None without."""
        shared = {name: getattr(self, name) for name in RoundSettings.model_fields} | {"llm": self.adapted_model}
        paths = {"out": out, "organizations_dir": organizations_dir, "provider_key": provider_key, "prompts": prompts}
        tokens = HOUSE_RULES_ANSWER_TOKENS if self.task.is_house_rules else self.task.max_new_tokens
        return FederationPlan(**(shared | paths | {"answer_tokens": tokens, "compute": self.compute.place}))
