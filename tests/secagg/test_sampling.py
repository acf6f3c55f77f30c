"""The beacon that draws samples: what proves it, who can steer it, and how many colluders a sample may hold."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import comb
from pathlib import Path

import numpy as np
import pytest

from gradtf_fl.round_messages import STAGES
from gradtf_fl.secagg import (
    AdvertMismatch,
    BeaconProof,
    ClientPolicy,
    Identity,
    IncompleteShares,
    InconsistentViews,
    MalformedMessage,
    PlayedRound,
    PolicyViolation,
    ProtocolViolation,
    Roster,
    RosterMismatch,
    RoundConfig,
    SamplePlan,
    SecAggClient,
    SurvivorsNotSubset,
    TooFewMembers,
    UnknownIdentity,
    WrongBeacon,
    colluders_in_sample,
    group_size,
    round_members,
    sampled,
)
from gradtf_fl.secagg.members import drawn

from .drawing import Draw, sampled_config

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "sampling.json").read_text())


@pytest.fixture(scope="module")
def draw() -> Draw:
    return Draw()


@pytest.fixture(scope="module")
def proof(draw: Draw) -> BeaconProof:
    return draw.proof()


# -- the beacon and its proof -----------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES[:-1])
def test_a_proof_holds_whoever_vanishes(stage: str) -> None:
    draw = Draw()
    proof = draw.proof({stage: [2]})
    assert (2 in proof.secrets) == (stage == "consistency")
    assert BeaconProof.decode(proof.encode()) == proof
    assert len(proof.verified(draw.roster, draw.own)) == 32
    assert proof.plan == SamplePlan(4)


def test_who_withholds_its_secret_changes_no_beacon(proof: BeaconProof) -> None:
    """Nobody speaks last: the view is signed before the first secret is known, and each can be rebuilt."""
    draw = Draw()
    for silent in range(6):
        again = Draw().proof({"unmask": [silent]})
        assert again.verified(draw.roster, draw.own) == proof.verified(draw.roster, draw.own)
    other = Draw().proof({"mask": [3]})
    assert other.verified(draw.roster, draw.own) != proof.verified(draw.roster, draw.own)


def without(values: dict[int, bytes], member: int) -> dict[int, bytes]:
    return {key: value for key, value in values.items() if key != member}


FORGERIES: dict[str, tuple[Callable[[BeaconProof], BeaconProof], type[ProtocolViolation]]] = {
    "another secret": (lambda p: replace(p, secrets=p.secrets | {1: bytes(32)}), WrongBeacon),
    "two secrets exchanged": (
        lambda p: replace(p, secrets=p.secrets | {1: p.secrets[2], 2: p.secrets[1]}),
        WrongBeacon,
    ),
    "a secret left out": (
        lambda p: replace(p, secrets=without(p.secrets, 5), adverts=p.adverts[:5], votes=without(p.votes, 5)),
        InconsistentViews,
    ),
    "a voter that is not in it": (lambda p: replace(p, secrets=without(p.secrets, 5)), SurvivorsNotSubset),
    "a U2 beyond U1": (lambda p: replace(p, hashes=without(p.hashes, 5)), SurvivorsNotSubset),
    "too few members": (
        lambda p: replace(p, secrets={i: p.secrets[i] for i in range(4)}, adverts=p.adverts[:4], votes={}),
        TooFewMembers,
    ),
    "adverts in another order": (lambda p: replace(p, adverts=p.adverts[::-1]), IncompleteShares),
    "an advert left out": (lambda p: replace(p, adverts=p.adverts[1:]), IncompleteShares),
    "another advert's hash": (lambda p: replace(p, hashes=p.hashes | {1: bytes(32)}), AdvertMismatch),
    "a vote too few": (lambda p: replace(p, votes={i: p.votes[i] for i in range(4)}), InconsistentViews),
    "a forged vote": (lambda p: replace(p, votes=p.votes | {1: p.votes[2]}), InconsistentViews),
    "another U2": (lambda p: replace(p, hashes=p.hashes | {7: bytes(32)}, u2=(*p.u2, 7)), InconsistentViews),
    "round 1": (lambda p: replace(p, config=replace(p.config, round=1)), WrongBeacon),
    "a real model": (lambda p: replace(p, config=replace(p.config, model_hash=b"m" * 32)), WrongBeacon),
    "two coordinates": (lambda p: replace(p, config=replace(p.config, dim=2)), WrongBeacon),
    "one of three groups": (lambda p: replace(p, config=replace(p.config, groups=3)), WrongBeacon),
    "another roster": (lambda p: replace(p, config=replace(p.config, roster_hash=bytes(32))), RosterMismatch),
    "a low threshold": (lambda p: replace(p, config=replace(p.config, threshold=4, quorum=4)), PolicyViolation),
    "no plan": (lambda p: replace(p, config=replace(p.config, dp="{}")), MalformedMessage),
    "another attempt": (lambda p: replace(p, config=replace(p.config, attempt=1)), ProtocolViolation),
    "another plan": (lambda p: replace(p, config=replace(p.config, dp=SamplePlan(5).canonical())), ProtocolViolation),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_proof_proves_nothing(draw: Draw, proof: BeaconProof, forgery: str) -> None:
    forge, refusal = FORGERIES[forgery]
    with pytest.raises(refusal):
        BeaconProof.decode(forge(proof).encode()).verified(draw.roster, draw.own)


@pytest.mark.parametrize(
    "text", ["", "{}", '{"groups":1,"sample":true}', '{"sample":4,"groups":1}', '{"groups":0,"sample":4}']
)
def test_a_plan_has_one_form(text: str) -> None:
    with pytest.raises(MalformedMessage):
        SamplePlan.from_canonical(text)


# -- the sample -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: f"{case['size']} of {case['organizations']}")
def test_which_organizations_a_beacon_draws_is_frozen(case: dict[str, object]) -> None:
    beacon = bytes.fromhex(str(case["beacon"]))
    assert drawn(case["organizations"], beacon, case["round"], case["size"]) == case["drawn"]  # type: ignore[arg-type]


def test_every_pair_of_organizations_is_drawn_equally_often() -> None:
    """6,000 draws of 3 of 6: each pair in a fifth of them; chi squared over the pairs stays below 55 (p = 10^-6)."""
    pairs: Counter[tuple[int, int]] = Counter()
    for number in range(6000):
        a, b, c = sorted(drawn(6, number.to_bytes(32, "big"), 1, 3))
        pairs.update([(a, b), (a, c), (b, c)])
    assert sum((count - 1200) ** 2 / 1200 for count in pairs.values()) < 55
    assert len(pairs) == 15


def test_groups_share_a_sample_out_and_rounds_draw_anew(draw: Draw) -> None:
    beacon = b"b" * 32
    config = sampled_config(Draw(30, SamplePlan(17, 3)), beacon)
    roster = Draw(30).roster
    groups = [round_members(replace(config, group=group), roster) for group in range(3)]
    assert sorted(member for group in groups for member in group) == list(sampled(roster, beacon, 1, 17))
    assert [len(group) for group in groups] == [group_size(17, 3, group) for group in range(3)] == [6, 6, 5]
    assert round_members(replace(config, attempt=3), roster) == groups[0]  # an attempt is no trial
    assert sampled(roster, beacon, 2, 17) != sampled(roster, beacon, 1, 17)
    with pytest.raises(RosterMismatch, match="a sample of 31 organizations from a roster of 30"):
        sampled(roster, beacon, 1, 31)


def play(draw: Draw, config: RoundConfig) -> PlayedRound:
    members = round_members(config, draw.roster)
    vectors = [np.full(5, i / 100, np.float32) for i in range(len(draw.roster))]
    return PlayedRound(config, draw.own, draw.identities, draw.seeds, vectors, [1.0] * len(vectors), members)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_sample_sums_up_and_nobody_else_is_in_it(groups: int) -> None:
    draw = Draw(20, SamplePlan(17, groups))
    beacon = draw.proof().verified(draw.roster, draw.own)
    config = sampled_config(draw, beacon)
    members = round_members(config, draw.roster)
    result = play(draw, config).run({})
    assert result.clients == len(members) == group_size(17, groups, 0)
    assert np.abs(result.mean - np.mean(members) / 100).max() < 1e-4


def test_an_organization_joins_its_own_sample_alone(draw: Draw, proof: BeaconProof) -> None:
    beacon = proof.verified(draw.roster, draw.own)
    config = sampled_config(draw, beacon)
    members = round_members(config, draw.roster)
    for i in draw.members:
        arguments = config, draw.own, draw.roster, draw.identities[i]
        if i in members:
            assert SecAggClient(*arguments, last_round=(0, 0), beacon=beacon).next_stage == "advertise"
            for other in (None, b"", b"b" * 32):
                with pytest.raises(WrongBeacon, match="no proof of"):
                    SecAggClient(*arguments, last_round=(0, 0), beacon=other)
        else:
            with pytest.raises(UnknownIdentity, match="in a sample"):
                SecAggClient(*arguments, last_round=(0, 0), beacon=beacon)


# -- how many colluders a sample may hold -----------------------------------------------------------------


@pytest.mark.parametrize(("population", "sample"), [(20, 8), (60, 12), (300, 30), (1000, 100)])
@pytest.mark.parametrize("trials", [1, 2**20, 2**34])
def test_the_bound_is_the_smallest_that_the_definition_allows(population: int, sample: int, trials: int) -> None:
    bad = population // 10

    def exceeded(c: int) -> Fraction:
        ways = sum(comb(bad, x) * comb(population - bad, sample - x) for x in range(c + 1, min(bad, sample) + 1))
        return trials * Fraction(ways, comb(population, sample))

    c = colluders_in_sample(population, 0.1, sample, trials)
    assert exceeded(c) <= Fraction(1, 2**40)
    assert c == 1 or exceeded(c - 1) > Fraction(1, 2**40)


def test_more_beacons_more_rounds_and_more_groups_cost_the_sample_dropouts() -> None:
    assert [colluders_in_sample(1000, 0.1, 100, trials) for trials in (1, 2**20, 2 * 2**20 * 10_000)] == [34, 40, 45]
    assert colluders_in_sample(1000, 0.1, 1000, 2**34) == 100  # everybody is no sample
    assert colluders_in_sample(1000, 0.0, 100, 1) == 1  # one of them may collude, whatever the policy says
    assert ClientPolicy(trials=4).choices(groups=3) == 2 * 4 * 10_000 * 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"threshold": 68, "quorum": 68, "degree": 99}, "threshold 68 of 100 lets 45 colluders open both kinds"),
        ({"round": 10_001}, "round 10001 has a sample"),
        ({"sample": 1000}, "a sample must be smaller than all 1000 organizations"),
    ],
)
def test_a_sample_is_judged_by_the_colluders_it_may_hold(changes: dict[str, int], reason: str) -> None:
    roster = Roster(tuple(i.to_bytes(32, "big") for i in range(1000)))
    config = replace(sampled_config(Draw(20, SamplePlan(10)), b"b" * 32), roster_hash=roster.hash, sample=100)
    config = replace(config, degree=99, threshold=73, quorum=73)
    ClientPolicy().check(config, roster)
    with pytest.raises(PolicyViolation, match=reason):
        ClientPolicy().check(replace(config, **changes), roster)  # type: ignore[arg-type]


def test_a_configuration_has_a_beacon_with_a_sample_only() -> None:
    config = sampled_config(Draw(), b"b" * 32)
    assert RoundConfig.decode(config.encode()) == config
    for wrong in ({"sample": 0}, {"beacon": bytes(32)}, {"beacon": b""}, {"sample": 1}, {"groups": 5}, {"round": 0}):
        with pytest.raises(ValueError, match=r"beacon|sample"):
            replace(config, **wrong)  # type: ignore[arg-type]


def test_round_0_needs_no_noise_and_lets_nothing_else_do_without(draw: Draw, proof: BeaconProof) -> None:
    policy = ClientPolicy(min_noise=1.0, max_bits=16, max_clip=1e-9)
    policy.for_beacon().check(draw.config, draw.roster)
    with pytest.raises(PolicyViolation, match="noise multiplier"):
        policy.check(draw.config, draw.roster)
    assert proof.verified(draw.roster, policy) == proof.verified(draw.roster, draw.own)


def test_identities_of_another_roster_prove_nothing(proof: BeaconProof) -> None:
    roster = Roster(tuple(Identity.generate().public for _ in range(6)))
    with pytest.raises(RosterMismatch):
        proof.verified(roster, ClientPolicy())
