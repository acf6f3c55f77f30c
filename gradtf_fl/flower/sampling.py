"""A member's part in sampling: it helps to draw a run's beacon, verifies it once, and keeps its own rests."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradtf_fl.flower.member import Member
from gradtf_fl.flower.member_store import OpenRound, RoundKey, Sampling
from gradtf_fl.flower.refusals import Refused
from gradtf_fl.round_messages import Refusal, StagePayload
from gradtf_fl.secagg import (
    BeaconProof,
    ProtocolViolation,
    Randomness,
    RoundConfig,
    SecAggClient,
    WrongBeacon,
    check_draw,
)

_DRAWN = b"beacon"  # in place of the hash of a training


def draw(member: Member, config: RoundConfig, randomness: Randomness) -> StagePayload:
    """The advert of round 0: nothing is trained, a zero is masked later. Whether the beacon counts is for the vote.

    Raises:
        Refused: ``policy`` for a round that draws no beacon, or when this organization has helped to draw as many as
            its policy's ``trials``; ``stale`` for an attempt that is not above the last one.
    """
    key, store = RoundKey(config.run_id, config.round, config.attempt), member.store
    try:
        check_draw(config, member.roster, member.policy)
        if store.drawn() >= member.policy.trials:
            raise Refused(Refusal.POLICY, f"[secagg] trials: helped to draw {member.policy.trials} beacons already")
        store.claim_draw(key)
        client = SecAggClient(
            config,
            member.policy.for_beacon(),
            member.roster,
            member.identity,
            last_round=(0, config.attempt - 1),
            randomness=randomness,
        )
    except ProtocolViolation as error:
        raise Refused(Refusal.POLICY, f"round 0: {error}") from error
    advert = client.advertise()
    store.open(OpenRound(key, client.to_bytes(), np.zeros(1, "<f4"), 1.0), _DRAWN)
    return StagePayload(key.round, key.attempt, advert)


def beacon_of(member: Member, config: RoundConfig, proof: bytes) -> bytes | None:
    """The beacon that a round's sample may be drawn by; None for a round of the whole roster.

    The first round of a run pins which: a run neither changes its beacon, nor the size of its samples, nor goes from
    samples to whole rosters and back.

    Args:
        proof: `BeaconProof.encode` of the run's beacon; looked at where this organization has not verified it yet.

    Raises:
        WrongBeacon: another beacon, sample or number of groups than the run began with or than the proof is about.
        ProtocolViolation, MalformedFields: a proof that proves nothing, see `BeaconProof.verified`.
    """
    asked, store = Sampling(config.beacon, config.sample, config.groups), member.store
    pinned = store.sampling(config.run_id)
    if pinned is None:
        if config.sample:
            _check_proof(member, config, proof)
        store.pin_sampling(config.run_id, asked)
        pinned = store.sampling(config.run_id)
    if pinned != asked:
        raise WrongBeacon("the round's members are chosen in another way than the run's first round chose them")
    return config.beacon if config.sample else None


def _check_proof(member: Member, config: RoundConfig, proof: bytes) -> None:
    if not proof:
        raise WrongBeacon("the round has a sample, and no proof of the beacon that drew it came with it")
    member.check_size(proof, "the proof of a beacon")
    proven = BeaconProof.decode(proof)
    beacon = proven.verified(member.roster, member.policy)
    if (proven.config.run_id, beacon) != (config.run_id, config.beacon):
        raise WrongBeacon("the proof is of another run's beacon, or of another beacon")
    if (proven.plan.sample, proven.plan.groups) != (config.sample, config.groups):
        raise WrongBeacon("the beacon was drawn for samples of another size, or for another number of groups")


def rest_reasons(member: Member, config: RoundConfig) -> Iterator[str]:
    """Why the organization still rests in this round, where it does. Attempts at one round are one use."""
    last = member.store.last_masked(config.run_id)
    if last is not None and last < config.round <= last + member.rest_rounds:
        yield f"round {config.round} is too soon after round {last}: [policy] rest_rounds is {member.rest_rounds}"
