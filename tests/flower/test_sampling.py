"""A member's part in sampling, against servers that lie about beacons, samples, rounds and runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gradtf_fl.flower import (
    Member,
    MemberStore,
    OpenRound,
    Refused,
    RoundKey,
    beacon_of,
    draw,
    permitted_client,
    rest_reasons,
)
from gradtf_fl.round_messages import STAGES, MalformedFields, PieceRequest, Refusal, Stage, StagePayload
from gradtf_fl.secagg import (
    BeaconProof,
    ClientPolicy,
    PolicyViolation,
    ReplayRandomness,
    RoundConfig,
    SamplePlan,
    SecAggClient,
    SecAggServer,
    WrongBeacon,
    draw_config,
    round_members,
    topology,
)
from gradtf_fl.secagg.run import new_identities, roster_of
from tests.secagg.drawing import Draw, sampled_config

N = 6
Members = list[Member]


@pytest.fixture
def members(tmp_path: Path) -> Members:
    identities = new_identities(N, ReplayRandomness(b"identities"))
    roster, policy = roster_of(identities), ClientPolicy(trials=3)
    stores = [MemberStore(tmp_path / f"{i}.sqlite", durable=False) for i in range(N)]
    return [Member(one, roster, policy, store) for one, store in zip(identities, stores, strict=True)]


def round_0(members: Members, attempt: int = 0, run_id: str = "run", plan: SamplePlan | None = None) -> RoundConfig:
    roster = members[0].roster
    nonce = bytes([attempt + 1]) * 32
    return draw_config(
        roster, plan or SamplePlan(4), topology(N), run_id=run_id, attempt=attempt, nonce=nonce, deadline_s=9.0
    )


def request(config: RoundConfig, stage: Stage, payload: bytes) -> StagePayload:
    """The server's message: at "mask" for the first and only piece."""
    key = config.round, config.attempt, payload
    return PieceRequest(*key, 0) if stage == "mask" else StagePayload(*key)


def play(members: Members, config: RoundConfig, begin: Callable[[Member], StagePayload]) -> SecAggServer:
    """The round over its members' stores, to the end of "unmask"."""
    server = SecAggServer(config, members[0].roster)
    who = [members[i] for i in round_members(config, members[0].roster)]
    for member in who:
        server.receive_advert(begin(member).payload)
    sent = server.close_advertise()
    closes = server.close_share, server.close_accept, server.close_mask, server.close_consistency
    receives = server.receive_shares, server.receive_accept, server.receive_masked, server.receive_consistency
    for stage, receive, close in zip(STAGES[1:5], receives, closes, strict=True):
        for member in who:
            receive(member.answer(stage, request(config, stage, sent[member.identity.public])).payload)
        sent = close()
    for member in who:
        message = request(config, "unmask", sent[member.identity.public])
        server.receive_unmask(member.answer("unmask", message).payload)
    return server


def drawn(members: Members, config: RoundConfig | None = None) -> BeaconProof:
    return play(
        members, config or round_0(members), lambda member: draw(member, config or round_0(members), OS)
    ).close_draw()


def OS(size: int) -> bytes:
    return np.random.default_rng().bytes(size)


def begun(member: Member, config: RoundConfig, proof: bytes) -> StagePayload:
    """As an organization begins a round of training, without the training."""
    if reasons := list(rest_reasons(member, config)):
        raise Refused(Refusal.POLICY, "; ".join(reasons))
    key = RoundKey(config.run_id, config.round, config.attempt)
    client = SecAggClient(
        config,
        member.policy,
        member.roster,
        member.identity,
        last_round=member.store.last_round(config.run_id),
        randomness=OS,
        beacon=beacon_of(member, config, proof),
    )
    member.store.claim(key, config.dp, b"training", start=config.model_hash)
    advert = client.advertise()
    member.store.open(OpenRound(key, client.to_bytes(), np.full(config.dim, 0.1, "<f4"), 1.0), b"training")
    return StagePayload(config.round, config.attempt, advert)


def trained(members: Members, config: RoundConfig, proof: BeaconProof) -> SecAggServer:
    return play(members, config, lambda member: begun(member, config, proof.encode()))


def test_a_run_draws_its_beacon_once_and_sums_samples_by_it(members: Members) -> None:
    proof = drawn(members)
    beacon = proof.verified(members[0].roster, members[0].policy)
    assert [member.store.drawn() for member in members] == [1] * N
    assert all(member.store.sums() == [] for member in members)  # a sum of zeros tells nothing
    for number in (1, 2):
        config = sampled_config(Draw(N), beacon, number, model_hash=bytes([number]) * 32)
        sent = proof.encode() if number == 1 else b""
        result = trained(members, config, proof).close_unmask()
        assert result.clients == 4
        for i in round_members(config, members[0].roster):
            assert beacon_of(members[i], config, sent) == beacon  # verified once, then known


def test_a_beacon_of_the_servers_own_is_refused(members: Members) -> None:
    proof = drawn(members)
    beacon, config = proof.verified(members[0].roster, members[0].policy), round_0(members)
    real = sampled_config(Draw(N), beacon)
    lies = {
        "no proof of the beacon": (real, b""),
        "or of another beacon": (replace(real, beacon=b"b" * 32), proof.encode()),
        "of another run's beacon": (replace(real, run_id="other"), proof.encode()),
        "samples of another size": (replace(real, sample=5), proof.encode()),
    }
    for says, (lie, sent) in lies.items():
        with pytest.raises(WrongBeacon, match=says):
            beacon_of(members[0], lie, sent)
        assert members[0].store.sampling(lie.run_id) is None, says
    assert config.round == 0


def test_a_round_that_is_refused_reads_no_proof_and_pins_nothing(members: Members) -> None:
    proof = drawn(members)
    beacon = proof.verified(members[0].roster, members[0].policy)
    config = sampled_config(Draw(N), beacon)
    member = members[round_members(config, members[0].roster)[0]]
    for reasons, asked in ((["too dear"], config), ([], replace(config, clip=100.0))):
        with pytest.raises(Refused, match=r"too dear|clip 100\.0") as refused:
            permitted_client(member, asked, reasons, OS, b"no proof")
        assert refused.value.code is Refusal.POLICY
    assert member.store.sampling("run") is None
    with pytest.raises(MalformedFields, match="3000000 bytes"):
        permitted_client(member, config, [], OS, bytes(3_000_000))
    assert member.store.sampling("run") is None
    assert permitted_client(member, config, [], OS, proof.encode()).next_stage == "advertise"
    assert member.store.sampling("run") is not None


def test_a_run_keeps_its_beacon_its_sample_and_its_groups(members: Members) -> None:
    """Two beacons of one run would give two samples from one model: the first round that a member takes decides."""
    first = drawn(members)
    second = drawn(members, round_0(members, attempt=1))
    one, other = (proof.verified(members[0].roster, members[0].policy) for proof in (first, second))
    assert one != other
    config = sampled_config(Draw(N), one)
    assert beacon_of(members[0], config, first.encode()) == one
    whole = replace(config, sample=0, beacon=bytes(32))
    for lie in (replace(config, beacon=other), replace(config, sample=5), whole):
        with pytest.raises(WrongBeacon, match="in another way"):
            beacon_of(members[0], lie, second.encode())
    assert beacon_of(members[1], whole, b"") is None
    with pytest.raises(WrongBeacon, match="in another way"):
        beacon_of(members[1], config, first.encode())


def test_a_server_gets_no_more_beacons_than_the_policy_has_trials(members: Members) -> None:
    """Counted over all runs, at the vote: without a quorum of votes there is no proof."""
    for attempt in range(3):
        drawn(members, round_0(members, attempt, run_id=f"run{attempt}"))
    with pytest.raises(Refused, match="trials") as refused:
        draw(members[0], round_0(members, run_id="run3"), OS)
    assert refused.value.code is Refusal.POLICY
    generous = [replace(member, policy=ClientPolicy(trials=4)) for member in members]
    late = [draw(member, round_0(members, run_id="run4"), OS) for member in generous]
    server = SecAggServer(round_0(members, run_id="run4"), members[0].roster)
    for advert in late:
        server.receive_advert(advert.payload)
    sent = server.close_advertise()
    stages: tuple[tuple[Stage, Callable[[bytes], bytes], Callable[[], dict[bytes, bytes]]], ...] = (
        ("share", server.receive_shares, server.close_share),
        ("accept", server.receive_accept, server.close_accept),
        ("mask", server.receive_masked, server.close_mask),
    )
    for stage, receive, close in stages:
        for member in generous:
            receive(member.answer(stage, request(server.config, stage, sent[member.identity.public])).payload)
        sent = close()
    with pytest.raises(Refused, match="trials"):  # the policy changed between two messages
        members[0].answer("consistency", StagePayload(0, 0, sent[members[0].identity.public]))
    assert members[0].store.drawn() == 3


def test_round_0_is_no_way_around_the_policy(members: Members) -> None:
    honest = round_0(members)
    for lie in (
        replace(honest, dim=2),
        replace(honest, model_hash=b"m" * 32),
        replace(honest, dp="{}"),
        replace(honest, threshold=4, quorum=4),
        replace(honest, roster_hash=bytes(32)),
    ):
        with pytest.raises(Refused, match="round 0"):
            draw(members[0], lie, OS)
    draw(members[0], honest, OS)
    with pytest.raises(Refused, match="not above") as stale:
        draw(members[0], honest, OS)
    assert stale.value.code is Refusal.STALE
    draw(members[0], round_0(members, attempt=1), OS)
    with pytest.raises(Refused):  # a round that trains does not open as round 0
        members[0].answer("share", StagePayload(1, 0, b""))


def test_an_organization_rests_after_a_round_that_it_masked_for(members: Members) -> None:
    proof = drawn(members)
    beacon = proof.verified(members[0].roster, members[0].policy)
    resting = [replace(member, rest_rounds=2) for member in members]
    config = sampled_config(Draw(N), beacon, 3)
    trained(resting, config, proof)
    i = round_members(config, members[0].roster)[0]
    said = {number: list(rest_reasons(resting[i], replace(config, round=number))) for number in range(3, 7)}
    assert [number for number, reasons in said.items() if reasons] == [4, 5]
    assert "rest_rounds is 2" in said[4][0]
    assert not list(rest_reasons(resting[i], replace(config, round=4, run_id="other")))
    assert not list(rest_reasons(members[i], replace(config, round=4)))
    out = next(j for j in range(N) if j not in round_members(config, members[0].roster))
    assert not list(rest_reasons(resting[out], replace(config, round=4)))


def test_a_sample_with_too_low_a_threshold_is_refused(members: Members) -> None:
    proof = drawn(members)
    beacon = proof.verified(members[0].roster, members[0].policy)
    config = replace(sampled_config(Draw(N), beacon), threshold=2, quorum=2)
    i = round_members(config, members[0].roster)[0]
    with pytest.raises(PolicyViolation, match="threshold 2 is below"):
        begun(members[i], config, proof.encode())


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"attempt": 1}, id="another attempt"),
        pytest.param({"round": 7}, id="a round number that jumps"),
        pytest.param({"run_id": "other"}, id="another run"),
        pytest.param({"run_id": "other", "round": 7, "groups": 1}, id="both"),
    ],
)
def test_a_second_sum_from_one_model_without_one_is_never_opened(members: Members, changes: dict[str, int]) -> None:
    """The first sum is opened, and said to have been lost. Whatever the second one is called, nobody signs for it."""
    roster, shape = members[0].roster, topology(N)
    config = replace(
        sampled_config(Draw(N), b"b" * 32),
        sample=0,
        beacon=bytes(32),
        degree=shape.degree,
        threshold=shape.threshold,
        quorum=shape.quorum,
    )
    proof = drawn(members)
    assert trained(members, config, proof).close_unmask().clients == N
    again = replace(config, nonce=bytes(32), **changes)  # type: ignore[arg-type]
    server, who = SecAggServer(again, roster), members[:-1]
    for member in who:
        server.receive_advert(begun(member, again, b"").payload)
    sent = server.close_advertise()
    closes = server.close_share, server.close_accept, server.close_mask
    for stage, receive, close in zip(
        STAGES[1:4], (server.receive_shares, server.receive_accept, server.receive_masked), closes, strict=True
    ):
        for member in who:
            message = request(again, stage, sent[member.identity.public])
            receive(member.answer(stage, message).payload)
        sent = close()
    for member in who:
        with pytest.raises(Refused, match="fewer than 3 organizations"):
            member.answer("consistency", StagePayload(again.round, again.attempt, sent[member.identity.public]))
        assert len(member.store.sums()) == 1
