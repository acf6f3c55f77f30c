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
    from gradtf_fl.config.compute import ComputeSection, PhysicalRows, Precision, Quantization, Sampler
    from gradtf_fl.config.organization import (
        DataSection,
        DropPoint,
        ModelsSection,
        OrganizationConfig,
        OrganizationSimulation,
        PrivacySection,
        SecAggSection,
    )
    from gradtf_fl.config.plan import Combine, FederationPlan
    from gradtf_fl.config.rows import Format, RowFormat
    from gradtf_fl.config.simulation import HOUSE_RULES_ANSWER_TOKENS, Rules, SimulationConfig
    from gradtf_fl.config.toml import load_toml, read_toml, tables_to_toml, to_toml, with_values
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "HOUSE_RULES_ANSWER_TOKENS",
    "Address",
    "Combine",
    "ComputeSection",
    "Count",
    "DataSection",
    "DropPoint",
    "Epsilon",
    "FederationPlan",
    "Format",
    "Location",
    "ModelsSection",
    "OrganizationConfig",
    "OrganizationName",
    "OrganizationSimulation",
    "PhysicalRows",
    "Precision",
    "PrivacySection",
    "PublicKey",
    "Quantization",
    "Rate",
    "RowFormat",
    "Rules",
    "Sampler",
    "SecAggSection",
    "Section",
    "Seed",
    "SimulationConfig",
    "load_toml",
    "read_toml",
    "tables_to_toml",
    "to_toml",
    "validate",
    "with_values",
]
