"""What the server decides for a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from gradtf_fl.config.base import (
    Alpha,
    Bits,
    Count,
    Delta,
    Epsilon,
    Location,
    ModelName,
    NoiseMultiplier,
    Norm,
    Organizations,
    Rate,
    Rounds,
    Seconds,
    Section,
    Seed,
    Share,
    validate,
)
from gradtf_fl.config.compute import PlaceSection
from gradtf_fl.config.roster_size import refuse_unsound_sums
from gradtf_fl.round_messages import MAX_RANK

WeightRule = Literal["uniform", "examples"]
Combine = Literal["mean", "median", "trimmed-mean"]
AdapterKind = Literal["lora", "lora-b", "lora-xs", "full"]
Rank = Annotated[int, Field(ge=1, le=MAX_RANK)]
NO_TRANSFORMER = "none"
Targets = Annotated[
    str, BeforeValidator(lambda value: ",".join(map(str, value)) if isinstance(value, list | tuple) else value)
]
"""Names between commas; TOML may have a list of them."""
Groups = Annotated[int, Field(ge=1, le=200)]
TrackingPlace = Annotated[str, AfterValidator(lambda text: _sound_tracking(text))]


class RoundSettings(Section):
    """What a simulation and a deployment settle alike.

    Attributes:
        tiny: the TinyLM, which the organizations train: ``embedded:tiny``, a folder or a hub id.
        llm: the LLM, which the adapters are for: ``embedded:llm``, a folder or a hub id.
        transformer: checkpoint of the Grad-Transformer: ``embedded``, a file, or ``none``: the sum is delivered as an
            adapter of the TinyLM itself.
        adapter: kind of the TinyLM's adapter: lora, lora-b (only B is trained), lora-xs or full.
        targets: layers that get it, by last name, separated by commas; auto: the architecture's attention projections.
        rank: of the adapter.
        lora_alpha: its alpha: what it adds is multiplied by lora_alpha / rank.
        organizations: how many take part.
        allow_two: accept two organizations, of which each learns the other's update.
        weight_rule: whether organizations count alike (uniform) or by their rows (examples).
        rounds: rounds of the run.
        steps: DP-SGD steps per round.
        batch: expected Poisson batch, in rows (in persons, where an organization's unit is a person).
        clip: L2 norm bound of one row's gradient (of one person's, where that is the unit).
        rate: Adam's learning rate.
        epsilon: what all ``rounds * steps`` steps together may spend per organization.
        delta: delta of that epsilon.
        update_clip: L2 norm bound of an organization's update vector before encoding.
        bits: bits per encoded value.
        groups: the roster is summed in this many groups, whose means are combined; 1 is one sum over all.
        combine: how the means of groups are combined.
        sample: organizations of a round, drawn by a beacon that no party can steer; 0 for all of them.
        noise_multiplier: distributed DP: standard deviation of the Skellam noise on a sum, in units of update_clip.
        max_norm: L2 norm of a mean above which the whole round is rejected (default: update_clip).
        deadline_s: how long a stage waits for organizations, in seconds.
        seed: simulation only: of what the server draws.
    """

    tiny: ModelName = "embedded:tiny"
    llm: ModelName = "embedded:llm"
    transformer: ModelName = "embedded"
    adapter: AdapterKind = "lora"
    targets: Targets = "auto"
    rank: Rank = 2
    lora_alpha: Alpha = 4.0
    organizations: Organizations = 5
    allow_two: bool = False
    weight_rule: WeightRule = "uniform"
    rounds: Rounds = 3
    steps: Count = 50
    batch: Count = 64
    clip: Norm = 0.5
    rate: Rate = 1e-2
    epsilon: Epsilon = 8.0
    delta: Delta = 1e-5
    update_clip: Norm = 8.0
    bits: Bits = 24
    groups: Groups = 1
    combine: Combine = "trimmed-mean"
    sample: Annotated[int, Field(ge=0, le=1000)] = 0
    noise_multiplier: NoiseMultiplier = 0.0
    max_norm: Norm | None = None
    deadline_s: Seconds = 600.0
    seed: Seed = 0


class FederationPlan(RoundSettings):
    """What the server decides for a run. Travels as Flower's run config: kebab-case keys, plain values.

    >>> from gradtf_fl import FederationPlan
    >>> plan = FederationPlan(organizations=15, groups=3)
    >>> FederationPlan.from_run_config(plan.to_run_config()) == plan
    True

    Attributes:
        threshold: organizations that must stay to the end (default: by the roster's size).
        colluders: share of the organizations that a round must withstand as colluders; rounded up, and at least one.
        dropouts: the share that it must withstand as dropouts.
        join_s: how long the run waits for the organizations' nodes, in seconds.
        prompts: file with public prompts of the organizations' task; the LLM update is then refined on what the
            tuned TinyLM answers to them (`gradtf_fl.transformer.refinement`).
        answer_tokens: length of such an answer, in tokens; one more than the longest where ends are trained.
        out: folder of records, checkpoints and adapters.
        provider_key: PEM file of the Ed25519 key that signs LLM adapters.
        organizations_dir: simulation only: the organizations' folders.
        compute: where the server holds the models and the Grad-Transformer.
        tracking: where each round's figures go alongside ``out``: ``tensorboard:DIR``, ``mlflow:URI_OR_DIR`` or
            ``wandb:DIR``.
    """

    threshold: int | None = Field(default=None, ge=2, le=1000)
    colluders: Share = 0.1
    dropouts: Share = 0.1
    join_s: Seconds = 600.0
    prompts: Location | None = None
    answer_tokens: Count = 32
    out: Location = Path("out")
    provider_key: Location | None = None
    organizations_dir: Location | None = None
    compute: PlaceSection = PlaceSection()
    tracking: TrackingPlace = ""

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
        if self.transformer == NO_TRANSFORMER and self.llm != self.tiny:
            raise ValueError("transformer 'none' delivers adapters of the TinyLM: llm must be the same model as tiny")
        return self

    def to_run_config(self) -> dict[str, bool | int | float | str]:
        """Flower run config: one kebab-case key per field, ``""`` and ``0`` standing for "not set". Those of a table
        inside it begin with the table's name: ``compute-device``."""
        values: dict[str, bool | int | float | str] = {}
        for name, value in self:
            if isinstance(value, PlaceSection):
                values |= {_kebab(f"{name}-{key}"): one for key, one in value}
            elif isinstance(value, bool | int | float | str):
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
        inner = {name: f"compute-{_kebab(name)}" for name in PlaceSection.model_fields}
        given["compute"] = {name: run_config[key] for name, key in inner.items() if key in run_config}
        return validate(cls, given, lambda key: f"run config: {_kebab(key)}")


def _sound_tracking(text: str) -> str:
    kind, _, place = text.partition(":")
    if text and (kind not in ("tensorboard", "mlflow", "wandb") or not place):
        raise ValueError("wants tensorboard:DIR, mlflow:URI_OR_DIR or wandb:DIR")
    if "://" in place and "@" in place.partition("://")[2].partition("/")[0]:
        raise ValueError("a password does not belong here: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    return text


def _kebab(name: str) -> str:
    return name.replace("_", "-").replace(".", "-")
