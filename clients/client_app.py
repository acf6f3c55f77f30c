"""The organization's Flower ClientApp: six thin handlers. Nothing heavy is imported until a model is needed.

train.begin trains and advertises; train.share, .mask, .consistency and .unmask carry the secure aggregation;
evaluate.adapter takes the round's LLM adapter. What each does lies in `clients.stages` and
`clients.delivery`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import Context
from flwr.clientapp import ClientApp

from clients import stages
from clients.organization import Organization, load_organization, organization_folder
from clients.refusals import Work, guarded
from gradtf_fl.round_messages import AdapterDelivery, BeginRound, Fields, StagePayload

app = ClientApp()


def _stage(answer: Callable[[Organization, StagePayload], StagePayload]) -> Work:
    def work(fields: Mapping[str, Any], context: Context) -> Fields:
        return answer(load_organization(context), StagePayload.from_fields(fields)).to_fields()

    return work


def _begin(fields: Mapping[str, Any], context: Context) -> Fields:
    return stages.begin(load_organization(context), BeginRound.from_fields(fields)).to_fields()


def _adapter(fields: Mapping[str, Any], context: Context) -> Fields:
    from clients.delivery import receive_adapter

    return receive_adapter(load_organization(context), AdapterDelivery.from_fields(fields))


app.train("begin")(guarded(_begin, organization_folder))
app.train("share")(guarded(_stage(stages.share), organization_folder))
app.train("mask")(guarded(_stage(stages.mask), organization_folder))
app.train("consistency")(guarded(_stage(stages.consistency), organization_folder))
app.train("unmask")(guarded(_stage(stages.unmask), organization_folder))
app.evaluate("adapter")(guarded(_adapter, organization_folder))
