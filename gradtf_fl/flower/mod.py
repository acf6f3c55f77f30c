"""`secagg_mod`: the organization's side of a secure average, around the ``@app.train()`` of any Flower app.

The server's `SecureAverage` sends six messages of one type a round, each with a record "gradtf" that names its stage.
The mod answers five of them by itself and calls the app at the first one only, in whatever process Flower starts for
a message: what a stage leaves for the next one lies in the member's folder. The app's arrays never leave; what
leaves is their difference to what was sent, clipped and masked, and the metrics that the policy names.

What it protects, and what not: it runs in the process of the app that it guards, and in Flower's ordinary deployment
that code is what somebody shipped with ``flwr run``. Whoever ships the app can leave the mod out. So it protects where
the organization itself fixes the app: by an executor of its own, or by reviewing the bundle that it runs. Metrics and
the answers to evaluation leave in clear, as far as the policy names them. A clip bound is no epsilon: there is no
differential privacy here without private training in the app, or noise on the sum (``min_noise``).

What every member's app gets is the same: C binds model, records, the message's type and the run's config. It does not
bind Flower's own figures of a message (ids, times), so an app must not train by them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from numpy.typing import NDArray

from gradtf_fl.errors import ConfigError
from gradtf_fl.flower.admission import own_config, permitted_client, sum_reasons
from gradtf_fl.flower.app_member import AppMember, AppStore, load_member
from gradtf_fl.flower.app_task import AppTask, Sent, run_config_digest
from gradtf_fl.flower.arrays import decoded, difference, dimension
from gradtf_fl.flower.member_store import OpenRound, RoundKey
from gradtf_fl.flower.refusals import Refused, answered
from gradtf_fl.flower.sampling import draw
from gradtf_fl.round_messages import (
    BEACON,
    CONFIGS,
    METRICS,
    SECTION,
    STAGE,
    STAGES,
    Fields,
    MalformedFields,
    Refusal,
    StagePayload,
    stage_request,
)
from gradtf_fl.secagg import RoundConfig
from gradtf_fl.shown import shown

App = Callable[[Message, Context], Message]
Mod = Callable[[Message, Context, App], Message]
_KEY_OF_NODE = re.compile(r"\{([A-Za-z0-9_-]+)\}")


def secagg_mod(policy: str | os.PathLike[str]) -> Mod:
    """A mod for ``ClientApp(mods=[...])`` that lets updates leave through secure aggregation only.

    >>> from flwr.clientapp import ClientApp
    >>> from gradtf_fl.flower import secagg_mod
    >>> app = ClientApp(mods=[secagg_mod("/srv/ward/policy.toml")])

    Args:
        policy: the member's ``policy.toml``, from `new_member`; ``{partition-id}`` or another key in braces stands for
            that value of the node's own config, so that one app serves many nodes of a simulation.

    Name it first: mods before it get to see what leaves only, mods after it work on what is summed.

    What it does with a message of each kind:

    - train: a stage of a round. Without one it is refused: secure aggregation is required.
    - evaluate: answered by the app; of its reply only the metrics leave that the policy names.
    - query: refused, unless the policy has ``queries = true``.
    """

    def mod(message: Message, context: Context, app: App) -> Message:
        content: list[RecordDict] = []

        def work() -> Fields:
            content.append(_answer(load_member(_own_path(policy, context)), message, context, app))
            return {}

        refusal = answered(work, message.metadata.message_type, lambda: _own_path(policy, context).parent)
        return Message(content[0] if content else RecordDict({SECTION: ConfigRecord(refusal)}), reply_to=message)

    return mod


def _own_path(policy: str | os.PathLike[str], context: Context) -> Path:
    """``policy`` with this node's own values in place of the keys in braces."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in context.node_config:
            raise ConfigError(f"secagg_mod: the node's config has no key {found[1]!r}")
        return str(context.node_config[found[1]])

    return Path(_KEY_OF_NODE.sub(value, os.fspath(policy))).expanduser()


def _answer(member: AppMember, message: Message, context: Context, app: App) -> RecordDict:
    kind = message.metadata.message_type.partition(".")[0]
    if kind == MessageType.TRAIN:
        return RecordDict({SECTION: ConfigRecord(_train(member, message, context, app))})
    if kind == MessageType.EVALUATE:
        if not member.rules.metrics:
            raise Refused(Refusal.POLICY, "an evaluation is asked for, and no metric may leave (metrics)")
        return _evaluated(member, _content_of(app(message, context)))
    if kind == MessageType.QUERY:
        if not member.rules.queries:
            raise Refused(Refusal.POLICY, "a query is not answered (queries)")
        return _content_of(app(message, context))
    raise MalformedFields("no such kind of message")


def _content_of(reply: Message) -> RecordDict:
    if not reply.has_content():
        raise Refused(Refusal.INTERNAL, "the app replied with an error")
    return reply.content


def _evaluated(member: AppMember, content: RecordDict) -> RecordDict:
    """The metrics of the app's reply that may leave, in one record: the app's own names reveal nothing."""
    kept = {name: value for name, value in _figures(content).items() if name in member.rules.metrics}
    if not kept:
        raise Refused(Refusal.POLICY, "the app's evaluation has no metric that may leave (metrics)")
    return RecordDict({METRICS: MetricRecord(kept)})


def _figures(content: RecordDict) -> dict[str, Any]:
    """All metrics of an app's reply."""
    return {name: value for record in content.metric_records.values() for name, value in record.items()}


def _train(member: AppMember, message: Message, context: Context, app: App) -> Fields:
    record = message.content.get(SECTION)
    if not isinstance(record, ConfigRecord):
        raise Refused(Refusal.POLICY, "a train message without secure aggregation: the server needs SecureAverage")
    fields = dict(record)
    stage = fields.get(STAGE)
    if stage not in STAGES:
        raise MalformedFields("a message of no stage")
    if stage == STAGES[0]:
        return _begin(member, message, fields, context, app)
    return member.member().answer(stage, stage_request(stage, fields)).to_fields()


def _begin(member: AppMember, message: Message, fields: Mapping[str, object], context: Context, app: App) -> Fields:
    """Check the round against the member's own policy, train, keep the difference, and advertise keys.

    The app is not called before the policy and the round counter are settled, and (round, attempt) is used up on disk.

    Raises:
        Refused, MalformedFields: with nothing trained; ``policy`` with every bound that the round breaks;
            ``model_hash`` or ``protocol`` where what was sent is not what C binds.
    """
    configs, proof = fields.get(CONFIGS), fields.get(BEACON, b"")
    if not isinstance(configs, bytes) or not isinstance(proof, bytes):
        raise MalformedFields("the round's configurations are missing, or its beacon's proof is none")
    config = own_config(member.identity, member.roster, configs)
    if config.round == 0:  # it draws the run's beacon, and the app is not called
        return draw(member.member(), config, os.urandom).to_fields()
    task = AppTask.from_canonical(config.dp)
    key, rules, own = RoundKey(config.run_id, config.round, config.attempt), member.rules, member.member()
    store = member.store
    claimed = store.attempts(key.run_id, key.round)
    reasons = [
        *rules.broken_by_sum(config.weight_rule, config.groups),
        *_weight_reasons(member, config, task),
        *sum_reasons(config, claimed, rules.attempts),
    ]
    client = permitted_client(own, config, reasons, os.urandom, proof)
    sent = Sent.of(message.content)
    _check_sent(sent, message.metadata.message_type, config, task)
    if run_config_digest(context.run_config) != task.run_config:
        raise Refused(
            Refusal.PROTOCOL,
            "the run's config is not what this round's configuration says: the server needs "
            "SecureAverage(run_config=context.run_config)",
        )
    training = hashlib.sha256(config.model_hash + config.dp.encode()).digest()
    plan = replace(task, records="", run_config="").canonical()
    kept = store.claim(key, plan, training, rules.attempts, config.model_hash)
    trained = _kept(store, key) if kept else None
    if trained is None:
        try:
            del message.content[SECTION]
            trained = _trained(_content_of(app(message, context)), sent, config, task)
        except BaseException:
            store.give_up(key)
            raise
    advert = client.advertise()
    opened = OpenRound(key, client.to_bytes(), trained.vector, trained.weight)
    store.open_replied(opened, training, trained.metrics)
    told = {name: trained.metrics[name] for name in task.metrics if name in trained.metrics and name in rules.metrics}
    return StagePayload(key.round, key.attempt, advert).to_fields() | {METRICS: json.dumps(told)}


def _weight_reasons(member: AppMember, config: RoundConfig, task: AppTask) -> Iterator[str]:
    if config.weight_rule == "examples" and task.weighted_by != member.rules.weighted_by:
        yield f"a sum weighed by the metric {shown(task.weighted_by)!r}, not {member.rules.weighted_by!r} (weighted_by)"


def _check_sent(sent: Sent, message_type: str, config: RoundConfig, task: AppTask) -> None:
    """Whether C binds what this member got: what every other member of the sum got, too."""
    if sent.model_hash != config.model_hash or dimension(sent.model) != config.dim:
        raise Refused(Refusal.MODEL_HASH, "the model that came is not the one in this round's configuration")
    if (message_type, sent.arrays, sent.records) != (task.message_type, task.arrays, task.records):
        raise Refused(Refusal.PROTOCOL, "what came with the model is not what this round's configuration says")
    if (config.weight_rule == "examples") != (task.max_examples > 0):
        raise Refused(Refusal.PROTOCOL, "the weight rule and max_examples do not fit together")


@dataclass(frozen=True)
class _Trained:
    """What the app made of a round.

    Attributes:
        vector: difference to what was sent, float32 [dim]; None where an earlier attempt left it in the store.
        weight: in (0, 1].
        metrics: of its reply that the round asks for, whether or not the policy lets them out.
    """

    vector: NDArray[np.float32] | None
    weight: float
    metrics: dict[str, Any]


def _kept(store: AppStore, key: RoundKey) -> _Trained | None:
    """What an earlier attempt at this round trained and never masked."""
    reply = store.reply(key)
    return None if reply is None else _Trained(None, *reply)


def _trained(content: RecordDict, sent: Sent, config: RoundConfig, task: AppTask) -> _Trained:
    """The app's reply as what is summed; `Refused` (``internal``) where it is no update of what was sent."""
    records = [record for record in content.values() if isinstance(record, ArrayRecord)]
    if len(records) != 1:
        raise Refused(Refusal.INTERNAL, f"the app's reply has {len(records)} records of arrays, not one")
    try:
        vector = difference(sent.model, decoded(records[0]))
    except ValueError as error:
        raise Refused(Refusal.INTERNAL, f"the app's arrays are no update of the model: {error}") from error
    figures = _figures(content)
    weight = 1.0 if config.weight_rule == "uniform" else config.max_weight * _share(figures, task)
    return _Trained(vector, weight, {name: figures[name] for name in task.metrics if name in figures})


def _share(figures: Mapping[str, object], task: AppTask) -> float:
    """min(1, examples / max_examples), in (0, 1]."""
    examples = figures.get(task.weighted_by)
    if not isinstance(examples, int | float) or not (math.isfinite(examples) and examples > 0):
        raise Refused(Refusal.INTERNAL, f"the app's reply has no positive metric {task.weighted_by!r} to be weighed by")
    return min(1.0, examples / task.max_examples)
