"""What an organization does with each message: fields in, fields out. Nothing heavy is imported before it is needed.

train.begin trains and advertises; train.share, .accept, .mask, .consistency and .unmask carry the secure aggregation;
evaluate.adapter takes the round's LLM adapter. What each does lies in `clients.stages` and `clients.delivery`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from clients import stages
from clients.organization import SIMULATION_TABLE, Organization
from gradtf_fl.errors import ConfigError
from gradtf_fl.round_messages import (
    DELIVER_TYPE,
    MESSAGE_TYPES,
    STAGES,
    AdapterDelivery,
    BeginRound,
    Fields,
    MalformedFields,
    Stage,
    stage_request,
)

Handler = Callable[[Organization, Mapping[str, Any]], Fields]


def _stage(stage: Stage) -> Handler:
    return lambda organization, fields: stages.answer(organization, stage, stage_request(stage, fields)).to_fields()


def _begin(organization: Organization, fields: Mapping[str, Any]) -> Fields:
    return stages.begin(organization, BeginRound.from_fields(fields)).to_fields()


def _adapter(organization: Organization, fields: Mapping[str, Any]) -> Fields:
    from clients.delivery import receive_adapter

    return receive_adapter(organization, AdapterDelivery.from_fields(fields))


#: Flower message type -> handler
HANDLERS: dict[str, Handler] = {
    MESSAGE_TYPES["advertise"]: _begin,
    **{MESSAGE_TYPES[stage]: _stage(stage) for stage in STAGES[1:]},
    DELIVER_TYPE: _adapter,
}


def handle(organization: Organization, message_type: str, fields: Mapping[str, Any]) -> Fields:
    """The answer of ``organization``.

    Raises:
        ConfigError: a ``[simulation]`` table in a folder that no simulation serves.
        MalformedFields: an unknown message type. Otherwise see the handlers.
    """
    if organization.config.simulation is not None and not organization.simulated:
        raise ConfigError(f"{organization.folder}: {SIMULATION_TABLE}")
    if message_type not in HANDLERS:
        raise MalformedFields(f"unknown message {message_type[:64]!r}")
    return HANDLERS[message_type](organization, fields)
