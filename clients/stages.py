"""What an organization does in each stage of a round: the first is its own, the others are `Member`'s."""

from __future__ import annotations

from clients.bounds import policy_reasons
from clients.organization import Organization
from gradtf_fl.adapters import AdapterSpec
from gradtf_fl.flower import OpenRound, Refused, RoundKey, draw, own_config, permitted_client
from gradtf_fl.round_messages import BeginRound, MalformedFields, Refusal, Stage, StagePayload, TrainingPlan

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
    config = own_config(organization.identity, organization.roster, message.configs)
    if config.round == 0:  # it draws the run's beacon, and nothing is trained
        organization.vanish_if_told("advertise", config.round)
        return draw(organization.member(), config, organization.randomness(RoundKey(config.run_id, 0, config.attempt)))
    plan = TrainingPlan.from_canonical(config.dp)
    spec = _spec_of(plan)
    delivery = message.delivery(config.run_id, plan)
    if delivery is not None:
        from clients.delivery import receive_adapter

        receive_adapter(organization, delivery)
    key = RoundKey(config.run_id, config.round, config.attempt)
    store = organization.store()
    reasons = policy_reasons(organization.config, config, plan, spec, store.attempts(key.run_id, key.round))
    member, randomness = organization.member(), organization.randomness(key)
    client = permitted_client(member, config, reasons, randomness, message.beacon)
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
    """Weight of an organization that declares ``rows``, under the rule "examples", in units of the largest one."""
    return min(1.0, rows / REFERENCE_ROWS)


def _spec_of(plan: TrainingPlan) -> AdapterSpec:
    try:
        return AdapterSpec.from_canonical(plan.spec)
    except ValueError as error:
        raise MalformedFields(str(error)) from error


def answer(organization: Organization, stage: Stage, message: StagePayload) -> StagePayload:
    """The answer to a stage after the first, as `Member.answer`."""
    organization.vanish_if_told(stage, message.round)
    return organization.member().answer(stage, message)
