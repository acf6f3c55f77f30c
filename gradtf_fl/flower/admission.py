"""Whether a round is one that a member takes part in: decided before anything is trained, from its own files alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from gradtf_fl.flower.member import Member
from gradtf_fl.flower.member_store import RoundKey
from gradtf_fl.flower.refusals import Refused
from gradtf_fl.flower.sampling import beacon_of, rest_reasons
from gradtf_fl.round_messages import MAX_CONFIGS, MIN_CLIP, MalformedFields, Refusal
from gradtf_fl.secagg import (
    Identity,
    ProtocolViolation,
    Randomness,
    Roster,
    RoundConfig,
    SecAggClient,
    UnknownIdentity,
    decode_configs,
    round_members,
)

RUN_ID = r"[A-Za-z0-9._-]{1,128}"


def own_config(identity: Identity, roster: Roster, configs: bytes) -> RoundConfig:
    """The configuration of the group that a member's own roster puts it in.

    Raises:
        Refused: ``policy`` without one; ``protocol`` for configurations that cannot be read.
        MalformedFields: the run has a name that no log should show.
    """
    try:
        me = roster.index(identity.public)
    except UnknownIdentity as error:
        raise Refused(Refusal.POLICY, "the roster that this organization pins is without itself") from error
    if len(configs) > MAX_CONFIGS:
        raise Refused(Refusal.PROTOCOL, f"round configuration: {len(configs)} bytes are more than {MAX_CONFIGS}")
    try:
        for config in decode_configs(configs):
            if me in round_members(config, roster):
                break
        else:
            raise Refused(Refusal.POLICY, "no configuration is for its group, or it is not in the sample")
    except ProtocolViolation as error:
        raise Refused(Refusal.PROTOCOL, f"round configuration: {error}") from error
    if not re.fullmatch(RUN_ID, config.run_id):
        raise MalformedFields("the run's name is empty, too long or has characters that a log should not show")
    return config


def sum_reasons(config: RoundConfig, claimed: int, most: int) -> Iterator[str]:
    """What speaks against a round besides the `ClientPolicy`.

    Args:
        claimed: attempts that this round had here.
        most: attempts that the organization pays for.
    """
    if config.round < 1:
        yield f"there is no round {config.round}"
    if config.clip < MIN_CLIP:
        yield f"an update's clip of {config.clip:g} is below {MIN_CLIP:g}"
    if config.max_weight < MIN_CLIP:
        yield f"max_weight {config.max_weight:g} is below {MIN_CLIP:g}"
    if claimed >= most:
        yield f"round {config.round} had {claimed} attempts here, not fewer than {most}"


def permitted_client(
    member: Member, config: RoundConfig, reasons: Sequence[str], randomness: Randomness, proof: bytes = b""
) -> SecAggClient:
    """The client of a round that nothing in the member's own files forbids.

    Of one that something does, no proof is read and nothing is kept.

    Args:
        reasons: what speaks against the round besides its protocol.
        proof: of the beacon that drew the round's sample, see `beacon_of`.

    Raises:
        Refused: ``stale``, or ``policy`` with all reasons at once. MalformedFields: a proof of any size.
    """
    key = RoundKey(config.run_id, config.round, config.attempt)
    last_round = member.store.last_round(key.run_id)
    if (key.round, key.attempt) <= last_round:
        raise Refused(Refusal.STALE, f"round {key.round}.{key.attempt} is not above {last_round}")
    found = [*reasons, *rest_reasons(member, config)]
    try:
        member.policy.check(config, member.roster)
        if not found:
            return SecAggClient(
                config,
                member.policy,
                member.roster,
                member.identity,
                last_round=last_round,
                randomness=randomness,
                beacon=beacon_of(member, config, proof),
            )
    except ProtocolViolation as error:
        found.append(str(error))
    raise Refused(Refusal.POLICY, "; ".join(found))
