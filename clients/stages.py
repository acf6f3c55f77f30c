"""What an organization does in each stage of a round. Only `begin` imports anything heavy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clients.node_store import OpenRound, RoundKey
from clients.organization import Organization
from clients.refusals import Refused
from gradtf_fl.round_messages import BeginRound, MalformedFields, Refusal, StagePayload, TrainingPlan
from gradtf_fl.secagg import (
    ProtocolViolation,
    RoundConfig,
    SecAggClient,
    TooSmallDifference,
    UnknownIdentity,
    check_difference,
    decode_configs,
    group_members,
)

REFERENCE_ROWS = 8192  # weight rule "examples": rows that count as the full weight


def begin(organization: Organization, message: BeginRound) -> StagePayload:
    """Check the round against this organization's own limits, charge the ledger, train, and advertise keys.

    The last round's LLM adapter, where one rides along, is stored first: it is delivered whatever comes of this round.
    Order matters: nothing is trained before the policy, the round counter, the model and the budget are
    settled, and (round, attempt) is used up on disk before the first private row is read.

    Raises:
        Refused, BudgetExhausted, Vanished: with nothing trained; ``adapter`` when the one that rides along is wrong.
    """
    if message.delivery is not None:
        from clients.delivery import receive_adapter

        receive_adapter(organization, message.delivery)
    config = _own_config(organization, message.configs)
    plan = _checked_plan(organization, config)
    key = RoundKey(config.run_id, config.round, config.attempt)
    store = organization.store()
    store.check_start(key.run_id, key.round, message.update)
    client = _protocol_client(organization, config, store.last_round(key.run_id), key)
    organization.vanish_if_told("advertise", key.round)

    from clients.local_training import train_update

    update = train_update(organization, message, config, plan, lambda: store.claim(key))
    weight = 1.0
    if config.weight_rule == "examples":
        weight = config.max_weight * example_weight(update.rows)
    advert = client.advertise(update.ledger_head)
    store.open(OpenRound(key, client.to_bytes(), update.vector.tobytes(), weight))
    return StagePayload(key.round, key.attempt, advert)


def example_weight(rows: int) -> float:
    """Weight of an organization under the rule "examples", in units of the largest one."""
    return min(1.0, rows / REFERENCE_ROWS)


def _own_config(organization: Organization, configs: bytes) -> RoundConfig:
    """The configuration of the group that this organization's own roster puts it in."""
    try:
        me = organization.roster.index(organization.identity.public)
    except UnknownIdentity as error:
        raise Refused(Refusal.POLICY, "the roster that this organization pins is without itself") from error
    try:
        for config in decode_configs(configs):
            if me in group_members(organization.roster, config.groups, config.group):
                return config
    except ProtocolViolation as error:
        raise Refused(Refusal.PROTOCOL, f"round configuration: {error}") from error
    raise Refused(Refusal.POLICY, "no configuration is for this organization's group")


def _checked_plan(organization: Organization, config: RoundConfig) -> TrainingPlan:
    plan = TrainingPlan.from_canonical(config.dp)
    if not 1 <= config.round <= plan.rounds:
        raise Refused(Refusal.POLICY, f"round {config.round} is outside the plan's {plan.rounds} rounds")
    if plan.delta > organization.config.privacy.delta:
        raise Refused(Refusal.POLICY, f"delta {plan.delta} is above ours ({organization.config.privacy.delta})")
    return plan


def _protocol_client(
    organization: Organization, config: RoundConfig, last_round: tuple[int, int], key: RoundKey
) -> SecAggClient:
    if (key.round, key.attempt) <= last_round:
        raise Refused(Refusal.STALE, f"round {key.round}.{key.attempt} is not above {last_round}")
    try:
        return SecAggClient(
            config,
            organization.policy,
            organization.roster,
            organization.identity,
            last_round=last_round,
            randomness=organization.randomness(key),
        )
    except ProtocolViolation as error:
        raise Refused(Refusal.POLICY, str(error)) from error


def share(organization: Organization, message: StagePayload) -> StagePayload:
    """Adverts of U1 -> encrypted shares for every neighbour."""
    return _stage(organization, "share", message, lambda client, _: client.share(message.payload))


def accept(organization: Organization, message: StagePayload) -> StagePayload:
    """Ciphertexts from U2 -> complaints about those that do not open."""
    return _stage(organization, "accept", message, lambda client, _: client.accept(message.payload))


def mask(organization: Organization, message: StagePayload) -> StagePayload:
    """The accepted members -> the masked update; the plain one is deleted."""

    def answer(client: SecAggClient, opened: OpenRound) -> bytes:
        if opened.vector is None:
            raise Refused(Refusal.STALE, "the update was masked before")
        vector = np.frombuffer(opened.vector, dtype="<f4")
        opened.vector = None
        return client.mask(message.payload, vector, opened.weight)

    return _stage(organization, "mask", message, answer)


def consistency(organization: Organization, message: StagePayload) -> StagePayload:
    """The survivors U3 -> a signature over (C, U2, U3), where their sum tells no more than earlier ones do.

    From here on the sum counts as opened: the others can do that without this organization.
    """

    def answer(client: SecAggClient, opened: OpenRound) -> bytes:
        vote = client.consistency(message.payload)
        try:
            check_difference(client.sum, opened.earlier(), organization.config.policy.min_difference)
        except TooSmallDifference as error:
            raise Refused(Refusal.POLICY, f"{error} ([policy] min_difference)") from error
        opened.signed = client.sum
        return vote

    return _stage(organization, "consistency", message, answer)


def unmask(organization: Organization, message: StagePayload) -> StagePayload:
    """Signed views -> one share per neighbour; the round's keys are deleted."""

    def answer(client: SecAggClient, opened: OpenRound) -> bytes:
        opened.finished = True
        return client.unmask(message.payload)

    return _stage(organization, "unmask", message, answer)


def _stage(
    organization: Organization,
    name: str,
    message: StagePayload,
    answer: Callable[[SecAggClient, OpenRound], bytes],
) -> StagePayload:
    organization.vanish_if_told(name, message.round)
    if message.round < 1 or message.attempt < 0:
        raise MalformedFields("round or attempt is out of range")
    with organization.store().stage(message.round, message.attempt) as opened:
        client = SecAggClient.from_bytes(
            opened.protocol, organization.policy, organization.roster, organization.identity
        )
        payload = answer(client, opened)
        opened.protocol = client.to_bytes()
    return StagePayload(message.round, message.attempt, payload)
