"""What an organization does in each stage of a round: the first is its own, the others are `Member`'s."""

from __future__ import annotations

import re

from clients.bounds import policy_reasons
from clients.node_store import NodeStore
from clients.organization import Organization
from gradtf_fl.adapters import AdapterSpec
from gradtf_fl.flower import OpenRound, Refused, RoundKey
from gradtf_fl.round_messages import (
    MAX_CONFIGS,
    BeginRound,
    MalformedFields,
    Refusal,
    Stage,
    StagePayload,
    TrainingPlan,
)
from gradtf_fl.secagg import (
    ProtocolViolation,
    RoundConfig,
    SecAggClient,
    UnknownIdentity,
    decode_configs,
    group_members,
)

RUN_ID = r"[A-Za-z0-9._-]{1,128}"
REFERENCE_ROWS = 8192  # weight rule "examples": rows that count as the full weight


def begin(organization: Organization, message: BeginRound) -> StagePayload:
    """Check the round against this organization's own limits, charge the ledger, train, and advertise keys.

    The last round's LLM adapter, where one rides along, is stored first: it is delivered whatever comes of this round.
    Order matters: no model is built, no row read and nothing charged before the policy and the round counter are
    settled, and (round, attempt) is used up on disk before the file of private rows is opened. What is decided before
    that depends on nothing in that file, not even on how long it is.

    Raises:
        Refused, BudgetExhausted, Vanished, MalformedFields: with nothing trained; ``adapter`` when the one that rides
            along is wrong; ``policy`` with every bound that the round breaks.
    """
    config = _own_config(organization, message.configs)
    if not re.fullmatch(RUN_ID, config.run_id):
        raise MalformedFields("the run's name is empty, too long or has characters that a log should not show")
    plan = TrainingPlan.from_canonical(config.dp)
    spec = _spec_of(plan)
    delivery = message.delivery(config.run_id, plan)
    if delivery is not None:
        from clients.delivery import receive_adapter

        receive_adapter(organization, delivery)
    key = RoundKey(config.run_id, config.round, config.attempt)
    store = organization.store()
    client = _permitted_client(organization, config, plan, spec, store)
    if len(message.update) != 4 * config.dim:
        raise Refused(Refusal.MODEL_HASH, f"the global update has {len(message.update)} bytes, not {4 * config.dim}")
    store.check_start(key.run_id, key.round, message.update)
    organization.vanish_if_told("advertise", key.round)

    from clients.local_training import train_update

    update = train_update(organization, message, config, plan, store)
    weight = 1.0
    if config.weight_rule == "examples":
        weight = config.max_weight * example_weight(organization.config.privacy.declared)
    advert = client.advertise(update.ledger_head)
    store.open(OpenRound(key, client.to_bytes(), update.vector, weight), update.training)
    return StagePayload(key.round, key.attempt, advert)


def example_weight(rows: int) -> float:
    """Weight of an organization that declares so many rows, under the rule "examples", in units of the largest one."""
    return min(1.0, rows / REFERENCE_ROWS)


def _own_config(organization: Organization, configs: bytes) -> RoundConfig:
    """The configuration of the group that this organization's own roster puts it in."""
    try:
        me = organization.roster.index(organization.identity.public)
    except UnknownIdentity as error:
        raise Refused(Refusal.POLICY, "the roster that this organization pins is without itself") from error
    if len(configs) > MAX_CONFIGS:
        raise Refused(Refusal.PROTOCOL, f"round configuration: {len(configs)} bytes are more than {MAX_CONFIGS}")
    try:
        for config in decode_configs(configs):
            if me in group_members(organization.roster, config.groups, config.group):
                return config
    except ProtocolViolation as error:
        raise Refused(Refusal.PROTOCOL, f"round configuration: {error}") from error
    raise Refused(Refusal.POLICY, "no configuration is for this organization's group")


def _spec_of(plan: TrainingPlan) -> AdapterSpec:
    try:
        return AdapterSpec.from_canonical(plan.spec)
    except ValueError as error:
        raise MalformedFields(str(error)) from error


def _permitted_client(
    organization: Organization, config: RoundConfig, plan: TrainingPlan, spec: AdapterSpec, store: NodeStore
) -> SecAggClient:
    """The client of a round that nothing in ``organization.toml`` forbids.

    Raises:
        Refused: ``stale``, or ``policy`` with all reasons at once.
    """
    key = RoundKey(config.run_id, config.round, config.attempt)
    last_round = store.last_round(key.run_id)
    if (key.round, key.attempt) <= last_round:
        raise Refused(Refusal.STALE, f"round {key.round}.{key.attempt} is not above {last_round}")
    reasons = policy_reasons(organization.config, config, plan, spec, store.attempts(key.run_id, key.round))
    try:
        client = SecAggClient(
            config,
            organization.policy,
            organization.roster,
            organization.identity,
            last_round=last_round,
            randomness=organization.randomness(key),
        )
    except ProtocolViolation as error:
        reasons.append(str(error))
    if reasons:
        raise Refused(Refusal.POLICY, "; ".join(reasons))
    return client


def answer(organization: Organization, stage: Stage, message: StagePayload) -> StagePayload:
    """The answer to a stage after the first, as `Member.answer`."""
    organization.vanish_if_told(stage, message.round)
    return organization.member().answer(stage, message)
