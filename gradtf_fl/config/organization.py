"""``organization.toml``: what an organization has, may spend and accepts; one file for all uses."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from gradtf_fl.config.base import (
    Address,
    DatasetName,
    Delta,
    Epsilon,
    Location,
    ModelName,
    OrganizationName,
    PublicKey,
    Section,
    Seed,
)
from gradtf_fl.config.compute import ComputeSection
from gradtf_fl.config.limits import SumLimits
from gradtf_fl.config.policy import PolicySection
from gradtf_fl.config.rows import RowFormat
from gradtf_fl.config.unit import UnitSection
from gradtf_fl.file_names import CA_CERTIFICATE
from gradtf_fl.round_messages import Stage

MOST_DECLARED = 2**40


def declared_of(rows: int) -> int:
    """What `gradtf org init` declares of ``rows``: two leading binary digits, rounded down (64, 96, 128, 192, ...).

    It says no more than which of 2 log2(rows) classes the number is in, and leaves out at most a third of the rows,
    so that q, and with it the noise of a plan, is at most 1.5 times what the whole file would ask for.

    >>> [declared_of(rows) for rows in (1, 64, 95, 96, 127, 1000)]
    [1, 64, 64, 96, 96, 768]
    """
    low = max(0, rows.bit_length() - 2)
    return rows >> low << low


class ModelsSection(Section):
    """``[models]``: the pair, each by name (``embedded:tiny``), local folder or hub id.

    Attributes:
        tiny: the TinyLM, which is trained here.
        llm: the LLM, which takes the adapters that the server delivers.
    """

    tiny: ModelName = "embedded:tiny"
    llm: ModelName = "embedded:llm"


class DataSection(RowFormat):
    """``[data]``: files of rows (JSONL, JSON, CSV, Parquet) or datasets folders; paths relative to the folder.

    Attributes:
        train: private rows that are trained on.
        test: private rows that each round's models are scored on, here at home; without them none are.
    """

    train: Location
    test: Location | None = None


class PrivacySection(UnitSection):
    """``[privacy]``: the lifetime budget of the rows in ``[data] train``. Adjacency: add or remove one unit.

    Attributes:
        budget: epsilon that these rows may spend over all runs.
        delta: delta of that epsilon.
        declared: how many rows (persons) this organization makes public, at most those that it has. Every plan is
            checked by this figure, never by the file; raising it shows that there are more.
        dataset: what the ledger calls these rows; only rows that were never trained on may have a new name.
    """

    budget: Epsilon
    delta: Delta = 1e-5
    declared: int = Field(default=0, le=MOST_DECLARED, validate_default=True)
    dataset: DatasetName = "train"

    @field_validator("declared")
    @classmethod
    def _is_declared(cls, declared: int) -> int:
        """Required; a default of the type would be taken from nobody, so its absence has a message of its own."""
        if declared < 1:
            raise ValueError(
                "missing: add `declared = N`, the number of rows that you make public (at least 1, at most those in "
                "[data] train); plans are checked by it"
            )
        return declared


class SecAggSection(SumLimits):
    """``[secagg]``: what this organization accepts in a round. The server cannot change any of it.

    Its limits become a `ClientPolicy`, field by field.

    Attributes:
        required: secure aggregation is the only way in which an update ever leaves; false is refused.
        roster: public keys of the organizations that take part, written by gradtf org join.
        provider_key: public key that signs LLM adapters, written by gradtf org join.
    """

    required: Literal[True] = True
    roster: tuple[PublicKey, ...] = Field(strict=False)
    provider_key: PublicKey

    @model_validator(mode="after")
    def _roster_is_sound(self) -> Self:
        self.check_roster(self.roster)
        return self


class ServerSection(Section):
    """``[server]``: where this organization's SuperNode connects. Deployment only; written by ``gradtf org join``.

    Attributes:
        address: HOST:PORT of the server.
        ca: PEM file of the authority that the server's certificate must come from.
        proxy: go through the proxy that the environment names (HTTPS_PROXY); without, calls to the server go direct.
    """

    address: Address
    ca: Location = Path(CA_CERTIFICATE)
    proxy: bool = False

    @property
    def host(self) -> str:
        """The address without its port and brackets."""
        return self.address.rpartition(":")[0].strip("[]")


class WorkerSection(Section):
    """``[worker]``: the resident process that holds the models.

    Attributes:
        memory_mb: resident memory (MB) past which it ends after its answer, to be started afresh.
        most_mb: memory (MB) that it never gets, whatever a message says (default: three quarters of the machine).
    """

    memory_mb: int = Field(default=4096, ge=256, le=10_000_000)
    most_mb: int | None = Field(default=None, ge=512, le=10_000_000)


class DropPoint(Section):
    """Simulation only: the organization vanishes before it answers.

    Attributes:
        stage: the stage that it does not answer.
        round: of this round only; without it, of every round.
    """

    stage: Stage
    round: int | None = Field(default=None, ge=1)


class OrganizationSimulation(Section):
    """``[simulation]``: absent in deployment. A seed makes DP noise reproducible, so it is not private.

    Attributes:
        seed: of training, noise and protocol secrets; without it they come from the operating system.
        keep_updates: keep each round's own update in the organization's folder.
        drop: stages at which the organization vanishes.
    """

    seed: Seed | None = None
    keep_updates: bool = False
    drop: tuple[DropPoint, ...] = Field(default=(), strict=False)


class OrganizationConfig(Section):
    """What an organization has, may spend and accepts. The server cannot change any of it.

    The same file, ``organization.toml``, in simulation and deployment.

    Attributes:
        name: what the others call this organization.
        models: see `ModelsSection`.
        data: see `DataSection`.
        privacy: see `PrivacySection`.
        secagg: see `SecAggSection`.
        policy: see `PolicySection`.
        server: see `ServerSection`; absent before ``gradtf org join``.
        worker: see `WorkerSection`.
        compute: see `ComputeSection`.
        share_metrics: send the server how each round's models score on the test rows; false keeps that here.
        simulation: see `OrganizationSimulation`.
    """

    name: OrganizationName
    models: ModelsSection = ModelsSection()
    data: DataSection
    privacy: PrivacySection
    secagg: SecAggSection
    policy: PolicySection = PolicySection()
    server: ServerSection | None = None
    worker: WorkerSection = WorkerSection()
    compute: ComputeSection = ComputeSection()
    share_metrics: bool = False
    simulation: OrganizationSimulation | None = None
