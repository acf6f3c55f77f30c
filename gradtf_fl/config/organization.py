"""``organization.toml``: what an organization has, may spend and accepts; one file for all uses."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from gradtf_fl.config.base import (
    Address,
    Bits,
    DatasetName,
    Delta,
    Epsilon,
    Location,
    ModelName,
    NoiseMultiplier,
    Norm,
    OrganizationName,
    PublicKey,
    Section,
    Seed,
    Share,
)
from gradtf_fl.round_messages import Stage


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
    share_metrics: bool = False
    simulation: OrganizationSimulation | None = None
