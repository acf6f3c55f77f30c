"""One pydantic schema for every verb's TOML. Checked once at the edge, then passed around as frozen values.

All problems of a file (or of a command line) are reported together, each naming file or option and key.
Types are strict (``"5"`` is not a number), unknown keys are errors, NaN and infinity are refused everywhere.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from gradtf_fl.errors import ConfigError

Stage = Literal["advertise", "share", "mask", "consistency", "unmask"]
Rules = Literal["same", "mixed", "unseen"]
Engine = Literal["in-process", "ray"]
Bits = Literal[16, 20, 24, 32]
WeightRule = Literal["uniform", "examples"]
Combine = Literal["mean", "median", "trimmed-mean"]
Sampler = Literal["lora", "opacus"]

HOUSE_RULES_ANSWER_TOKENS = 2  # two digits; here, because the simulation's plan is made without torch
STAGES: tuple[Stage, ...] = ("advertise", "share", "mask", "consistency", "unmask")

ModelName = Annotated[str, StringConstraints(min_length=1)]
PublicKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
OrganizationName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
DatasetName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Address = Annotated[str, StringConstraints(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[1-9][0-9]{0,4}$")]
Location = Annotated[Path, Field(strict=False)]
Epsilon = Annotated[float, Field(gt=0, le=1000)]
Delta = Annotated[float, Field(gt=0, lt=1)]
Norm = Annotated[float, Field(gt=0, le=1e6)]
Rate = Annotated[float, Field(gt=0, le=10)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Rounds = Annotated[int, Field(ge=1, le=10_000)]
Organizations = Annotated[int, Field(ge=2, le=1000)]
Groups = Annotated[int, Field(ge=1, le=200)]
Share = Annotated[float, Field(ge=0, lt=0.5)]
NoiseMultiplier = Annotated[float, Field(ge=0, le=1000)]
Seconds = Annotated[float, Field(gt=0, le=7 * 86400)]
TrackingPlace = Annotated[str, AfterValidator(lambda text: _sound_tracking(text))]


class Section(BaseModel):
    """Base of every table: frozen, strict, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class ModelsSection(Section):
    """``[models]``: names (``embedded:tiny``), local folders or hub ids."""

    tiny: ModelName = "embedded:tiny"
    llm: ModelName = "embedded:llm"


class DataSection(Section):
    """``[data]``: JSONL of ``{"prompt": ..., "answer": ...}`` lines; paths relative to the folder."""

    train: Location
    test: Location | None = None


class PrivacySection(Section):
    """``[privacy]``: the lifetime budget of the rows in ``[data] train``. Adjacency: add or remove one row.

    Attributes:
        dataset: what the ledger calls those rows. Rows that were never trained on before, and only those, may have
            a name and so a budget of their own.
    """

    budget: Epsilon
    delta: Delta = 1e-5
    dataset: DatasetName = "train"


class SecAggSection(Section):
    """``[secagg]``: what this organization accepts in a round. The server cannot change any of it.

    Attributes:
        required: secure aggregation is the only way in which an update ever leaves; false is refused.
        colluders: share of the organizations that may collude with the server.
        min_noise: smallest noise multiplier of the distributed DP layer (client level); 0 does without.
    """

    required: Literal[True] = True
    roster: tuple[PublicKey, ...] = Field(strict=False)
    provider_key: PublicKey
    n_min: int = Field(default=3, ge=2, le=1000)
    t_min: int | None = Field(default=None, ge=2, le=1000)
    max_bits: Bits = 32
    max_clip: Norm = 64.0
    max_weight: Norm = 1.0
    allow_two: bool = False
    colluders: Share = 0.1
    min_noise: NoiseMultiplier = 0.0

    @model_validator(mode="after")
    def _roster_is_sound(self) -> Self:
        if self.n_min < 3 and not self.allow_two:
            raise ValueError(
                "n_min = 2 lets each organization learn the other's update; set allow_two = true to accept"
            )
        if len(set(self.roster)) != len(self.roster):
            raise ValueError("roster lists a key twice")
        if len(self.roster) < self.n_min:
            raise ValueError(f"roster has {len(self.roster)} keys, n_min is {self.n_min}")
        return self


class ServerSection(Section):
    """``[server]``: where this organization's SuperNode connects. Deployment only; written by ``gradtf org join``.

    Attributes:
        address: HOST:PORT. ca: PEM file of the authority that the server's certificate must come from.
    """

    address: Address
    ca: Location = Path("ca.crt")


class WorkerSection(Section):
    """``[worker]``: the resident process that holds the models.

    Attributes:
        memory_mb: resident memory (MB) past which it ends after its answer, to be started afresh.
    """

    memory_mb: int = Field(default=4096, ge=256, le=10_000_000)


class ComputeSection(Section):
    """``[compute]``: how this organization trains. It decides the cost of a step, never what a step is.

    Attributes:
        sampler: who computes each row's gradient: ``lora``, as fast as a plain step, or Opacus' own hooks.
    """

    sampler: Sampler = "lora"


class DropPoint(Section):
    """Simulation only: the organization vanishes before it answers ``stage`` (of one or every round)."""

    stage: Stage
    round: int | None = Field(default=None, ge=1)


class OrganizationSimulation(Section):
    """``[simulation]``: absent in deployment. A seed makes DP noise reproducible, so it is not private."""

    seed: Seed | None = None
    keep_updates: bool = False
    drop: tuple[DropPoint, ...] = Field(default=(), strict=False)


class OrganizationConfig(Section):
    """``organization.toml``: the same file in simulation and deployment."""

    name: OrganizationName
    models: ModelsSection = ModelsSection()
    data: DataSection
    privacy: PrivacySection
    secagg: SecAggSection
    server: ServerSection | None = None
    worker: WorkerSection = WorkerSection()
    compute: ComputeSection = ComputeSection()
    share_metrics: bool = False
    simulation: OrganizationSimulation | None = None


class FederationPlan(Section):
    """What the server decides for a run. Travels as Flower's run config: kebab-case keys, plain values.

    Attributes:
        steps: DP-SGD steps per round. batch: expected Poisson batch (rows). clip: per-row gradient norm.
        update_clip: L2 norm bound of an organization's update vector before encoding.
        epsilon, delta: what all ``rounds * steps`` steps together may spend per organization.
        colluders, dropouts: shares of the organizations that the graph of 100 and more must withstand.
        groups, combine: the roster is summed in so many groups, whose means are combined; 1 is one sum over all.
        noise_multiplier: distributed DP: standard deviation of the Skellam noise on a sum, in units of update_clip.
        max_norm: L2 norm of a mean above which the whole round is rejected (default: update_clip).
        deadline_s: how long a stage waits for organizations. join_s: how long the run waits for their nodes.
        prompts: JSONL file with public prompts of the organizations' task; the LLM update is then refined on what the
            tuned TinyLM answers to them (`gradtf_fl.transformer.refinement`). answer_tokens: length of an answer.
        provider_key: PEM file of the Ed25519 key that signs LLM adapters. organizations_dir: simulation only.
        tracking: where each round's figures go beside ``out``: ``tensorboard:DIR`` or ``mlflow:URI_OR_DIR``.
    """

    tiny: ModelName = "embedded:tiny"
    llm: ModelName = "embedded:llm"
    transformer: ModelName = "embedded"
    organizations: Organizations = 5
    allow_two: bool = False
    rounds: Rounds = 3
    steps: Count = 50
    batch: Count = 64
    clip: Norm = 0.5
    rate: Rate = 1e-2
    epsilon: Epsilon = 8.0
    delta: Delta = 1e-5
    update_clip: Norm = 8.0
    bits: Bits = 24
    weight_rule: WeightRule = "uniform"
    threshold: int | None = Field(default=None, ge=2, le=1000)
    colluders: Share = 0.1
    dropouts: Share = 0.1
    groups: Groups = 1
    combine: Combine = "trimmed-mean"
    noise_multiplier: NoiseMultiplier = 0.0
    max_norm: Norm | None = None
    deadline_s: Seconds = 600.0
    join_s: Seconds = 600.0
    seed: Seed = 0
    prompts: Location | None = None
    answer_tokens: Count = 32
    out: Location = Path("out")
    provider_key: Location | None = None
    organizations_dir: Location | None = None
    tracking: TrackingPlace = ""

    @model_validator(mode="after")
    def _enough_organizations(self) -> Self:
        _refuse_two(self.organizations, self.allow_two)
        if self.threshold is not None and not self.organizations / 2 < self.threshold <= self.organizations:
            raise ValueError(f"threshold must lie above half of and up to {self.organizations} organizations")
        _refuse_small_groups(self.organizations, self.groups, self.threshold)
        if self.noise_multiplier > 0 and self.weight_rule != "uniform":
            raise ValueError("noise_multiplier needs weight_rule 'uniform'")
        return self

    def to_run_config(self) -> dict[str, bool | int | float | str]:
        """Flower run config: one kebab-case key per field, ``""`` and ``0`` standing for "not set"."""
        values: dict[str, bool | int | float | str] = {}
        for name, value in self:
            if isinstance(value, bool | int | float | str):
                values[_kebab(name)] = value
            else:
                values[_kebab(name)] = (
                    str(value) if value is not None else (0 if name in ("threshold", "max_norm") else "")
                )
        return values

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Any]) -> FederationPlan:
        """The plan in a Flower run config; keys of other apps are left alone.

        Raises:
            ConfigError: with every bad key.
        """
        unset = {"threshold": 0, "max_norm": 0, "prompts": "", "provider_key": "", "organizations_dir": ""}
        known = {name: run_config[_kebab(name)] for name in cls.model_fields if _kebab(name) in run_config}
        given = {name: value for name, value in known.items() if name not in unset or value != unset[name]}
        return validate(cls, given, lambda key: f"run config: {_kebab(key)}")


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


class SimulationConfig(Section):
    """``gradtf simulate``: a federation on this machine. ``--config`` reads the same keys from TOML.

    Attributes:
        rows, test_rows: private training and test rows of each organization.
        budget: lifetime epsilon in each ledger (default: ``epsilon``).
        refine: whether the provider refines the LLM update on public prompts.
        controls: baselines file beside the transformer (mean, nearest, ridge).
        compute: ``[compute]`` of every organization.
    """

    organizations: Organizations = 5
    allow_two: bool = False
    rounds: Rounds = 3
    epsilon: Epsilon = 8.0
    delta: Delta = 1e-5
    budget: Epsilon | None = None
    rules: Rules = "same"
    refine: bool = True
    engine: Engine = "in-process"
    drop: tuple[DropRule, ...] = Field(default=(), strict=False)
    seed: Seed = 0
    out: Location | None = None
    tiny: ModelName = "embedded:tiny"
    llm: ModelName = "embedded:llm"
    transformer: ModelName = "embedded"
    controls: ModelName = "embedded"
    rows: int = Field(default=1024, ge=16, le=10_000_000)
    test_rows: int = Field(default=256, ge=1, le=1_000_000)
    steps: Count = 50
    batch: Count = 64
    clip: Norm = 0.5
    rate: Rate = 1e-2
    update_clip: Norm = 8.0
    bits: Bits = 24
    groups: Groups = 1
    combine: Combine = "trimmed-mean"
    noise_multiplier: NoiseMultiplier = 0.0
    max_norm: Norm | None = None
    deadline_s: Seconds = 600.0
    compute: ComputeSection = ComputeSection()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _refuse_two(self.organizations, self.allow_two)
        _refuse_small_groups(self.organizations, self.groups)
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
        shared = {
            name: getattr(self, name) for name in FederationPlan.model_fields if name in SimulationConfig.model_fields
        }
        paths = {"out": out, "organizations_dir": organizations_dir, "provider_key": provider_key, "prompts": prompts}
        return FederationPlan(**(shared | paths | {"answer_tokens": HOUSE_RULES_ANSWER_TOKENS}))


def _refuse_two(organizations: int, allow_two: bool) -> None:
    if organizations < 3 and not allow_two:
        raise ValueError("with 2 organizations each learns the other's update; at least 3, or set allow_two = true")


def _refuse_small_groups(organizations: int, groups: int, threshold: int | None = None) -> None:
    if groups > 1 and organizations < 5 * groups:
        raise ValueError(
            f"{groups} groups of {organizations} organizations are smaller than 5, where a sum hides little"
        )
    if groups == 2:
        raise ValueError("groups must be 1 or at least 3: of two group means neither can be told to be the bad one")
    if groups > 1 and threshold is not None:
        raise ValueError("threshold cannot be set together with groups, each of which has its own")


def _sound_tracking(text: str) -> str:
    kind, _, place = text.partition(":")
    if text and (kind not in ("tensorboard", "mlflow") or not place):
        raise ValueError("wants tensorboard:DIR or mlflow:URI_OR_DIR")
    if "://" in place and "@" in place.partition("://")[2].partition("/")[0]:
        raise ValueError("a password does not belong here: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    return text


def _kebab(name: str) -> str:
    return name.replace("_", "-")


M = TypeVar("M", bound=BaseModel)


def validate(model: type[M], values: Mapping[str, Any], where: Callable[[str], str]) -> M:
    """``model`` built from ``values``.

    Args:
        where: names the place of a dotted key for the reader, e.g. ``org.toml: privacy.budget``; the empty
            key stands for the whole input.

    Raises:
        ConfigError: one line per problem, all of them.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems = []
        for item in error.errors():
            message = item["msg"].removeprefix("Value error, ")
            if item["type"] == "extra_forbidden":
                message = "is not a known key"
            shown = repr(item["input"])
            told = item["type"] in ("missing", "extra_forbidden", "value_error") or len(shown) > 60
            place = where(".".join(str(part) for part in item["loc"]))
            problems.append(f"{place}: {message}" + ("" if told else f", not {shown}"))
        raise ConfigError(problems) from None


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: missing, unreadable or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None


def to_toml(values: BaseModel) -> str:
    """``values`` as TOML that `load_toml` reads back equal; what is not set (None) is left out."""
    return toml_of(values.model_dump(mode="json", exclude_none=True))


def toml_of(document: Mapping[str, Any]) -> str:
    """A document of plain values, and tables of them, as TOML."""
    tables = {name: table for name, table in document.items() if isinstance(table, dict)}
    lines = [f"{name} = {_toml_value(value)}" for name, value in document.items() if name not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml_value(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml_value(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)  # bool, int, float and string have one form in both


def load_toml(model: type[M], path: Path) -> M:
    """``model`` from a TOML file; raises `ConfigError` with every problem, each naming file and key."""
    return validate(model, read_toml(path), lambda key: f"{path}: {key}" if key else str(path))
