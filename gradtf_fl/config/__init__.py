"""Configuration: one pydantic schema for every verb's TOML and command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from gradtf_fl.config.base import (
        Address,
        Count,
        Epsilon,
        Location,
        OrganizationName,
        PublicKey,
        Rate,
        Section,
        Seed,
        validate,
    )
    from gradtf_fl.config.compute import ComputeSection, PhysicalRows, PlaceSection, Precision, Quantization, Sampler
    from gradtf_fl.config.member import MemberPolicy
    from gradtf_fl.config.organization import (
        DataSection,
        DropPoint,
        ModelsSection,
        OrganizationConfig,
        OrganizationSimulation,
        PrivacySection,
        SecAggSection,
        declared_of,
    )
    from gradtf_fl.config.plan import NO_TRANSFORMER, Combine, FederationPlan, RoundSettings, WeightRule
    from gradtf_fl.config.policy import PolicySection
    from gradtf_fl.config.project import (
        FEDERATION,
        differing,
        documented_tables,
        located,
        plan_values,
        project_toml,
        read_project,
    )
    from gradtf_fl.config.provider import Mechanism
    from gradtf_fl.config.rows import MAX_TOKENS, WINDOW, Format, RowFormat
    from gradtf_fl.config.simulation import SimulationConfig
    from gradtf_fl.config.sums import SumSettings
    from gradtf_fl.config.task import (
        HOUSE_RULES,
        HOUSE_RULES_ANSWER_TOKENS,
        AnswerPattern,
        Rules,
        SharingOut,
        TaskSection,
    )
    from gradtf_fl.config.templates import pieces_of, placeholders
    from gradtf_fl.config.toml import descriptions, load_toml, read_toml, tables_to_toml, to_toml, with_values
    from gradtf_fl.config.unit import ROW
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "FEDERATION",
    "HOUSE_RULES",
    "HOUSE_RULES_ANSWER_TOKENS",
    "MAX_TOKENS",
    "NO_TRANSFORMER",
    "ROW",
    "WINDOW",
    "Address",
    "AnswerPattern",
    "Combine",
    "ComputeSection",
    "Count",
    "DataSection",
    "DropPoint",
    "Epsilon",
    "FederationPlan",
    "Format",
    "Location",
    "Mechanism",
    "MemberPolicy",
    "ModelsSection",
    "OrganizationConfig",
    "OrganizationName",
    "OrganizationSimulation",
    "PhysicalRows",
    "PlaceSection",
    "PolicySection",
    "Precision",
    "PrivacySection",
    "PublicKey",
    "Quantization",
    "Rate",
    "RoundSettings",
    "RowFormat",
    "Rules",
    "Sampler",
    "SecAggSection",
    "Section",
    "Seed",
    "SharingOut",
    "SimulationConfig",
    "SumSettings",
    "TaskSection",
    "WeightRule",
    "declared_of",
    "descriptions",
    "differing",
    "documented_tables",
    "load_toml",
    "located",
    "pieces_of",
    "placeholders",
    "plan_values",
    "project_toml",
    "read_project",
    "read_toml",
    "tables_to_toml",
    "to_toml",
    "validate",
    "with_values",
]
