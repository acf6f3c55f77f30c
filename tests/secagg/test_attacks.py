"""An active server and lying peers: every refusal of the stage table, each with its own exception."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from gradtf_fl.errors import ConfigError, RoundAborted
from gradtf_fl.secagg import (
    BadKey,
    BadSignature,
    ClientPolicy,
    DuplicateKey,
    DuplicateMessage,
    Identity,
    IncompleteShares,
    InconsistentViews,
    LateMessage,
    MalformedMessage,
    OwnKeyMissing,
    PolicyViolation,
    ProtocolViolation,
    ReconstructionMismatch,
    Roster,
    RosterMismatch,
    SecAggClient,
    SecAggServer,
    StageOrder,
    StaleRound,
    SurvivorsNotSubset,
    TooFewMembers,
    TooFewNeighbours,
    UndecryptableShare,
    UnknownIdentity,
    UpdateRejected,
    WrongRound,
)
from gradtf_fl.secagg import primitives as crypto
from gradtf_fl.secagg.encoding import Writer
from gradtf_fl.secagg.messages import (
    Advert,
    AdvertList,
    Delivery,
    Kind,
    SealedShares,
    Survivors,
    Unmasking,
    Votes,
    header,
    open_signed,
    signed,
    view_digest,
)

from .federation import Federation


def adverts_of(federation: Federation) -> list[bytes]:
    return [client.advertise() for client in federation.clients]


def advert_list(federation: Federation, adverts: list[bytes]) -> bytes:
    return AdvertList(tuple(adverts)).encode(federation.config.commitment)


def opened(federation: Federation, message: bytes) -> Advert:
    return Advert.decode(open_signed(message, Kind.ADVERT, federation.config.commitment, federation.roster)[1])


def signed_advert(federation: Federation, i: int, advert: Advert) -> bytes:
    """Member i lies in its own advert: the signature is right."""
    return signed(federation.identities[i].sign, Kind.ADVERT, federation.config.commitment, i, advert.encode())


# -- stage 0: policy --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "changes", "reason"),
    [
        (ClientPolicy(), {"threshold": 3}, "threshold 3 is below 4"),
        (ClientPolicy(t_min=2), {"threshold": 2}, "threshold 2 is below 3"),  # never below a majority
        (ClientPolicy(), {"bits": 32}, None),
        (ClientPolicy(max_bits=24), {"bits": 32}, "32 bits"),
        (ClientPolicy(max_clip=8.0), {"clip": 9.0}, "clip 9.0"),
        (ClientPolicy(), {"weight_rule": "examples", "max_weight": 2.0}, "max_weight 2.0"),
        (ClientPolicy(), {"degree": 3, "threshold": 4}, "degree 3"),
    ],
)
def test_the_policy_overrides_the_server(policy: ClientPolicy, changes: dict[str, object], reason: str | None) -> None:
    federation = Federation(n=5)
    config = federation.make_config(**changes)
    arguments = (config, policy, federation.roster, federation.identities[0])
    if reason is None:
        assert SecAggClient(*arguments, last_round=(0, 0)).next_stage == "advertise"
    else:
        with pytest.raises(PolicyViolation, match=reason):
            SecAggClient(*arguments, last_round=(0, 0))


def test_all_policy_reasons_are_given_at_once() -> None:
    federation = Federation(n=5)
    policy = ClientPolicy(max_bits=16, max_clip=0.5, t_min=5)
    with pytest.raises(PolicyViolation) as refusal:
        SecAggClient(federation.config, policy, federation.roster, federation.identities[0], last_round=(0, 0))
    assert len(refusal.value.reasons) == 3


def test_two_organizations_need_an_explicit_flag() -> None:
    with pytest.raises(ConfigError, match="allow_two"):
        ClientPolicy(n_min=2)
    federation = Federation(n=2)
    arguments = (federation.config, ClientPolicy(), federation.roster, federation.identities[0])
    with pytest.raises(TooFewMembers):
        SecAggClient(*arguments, last_round=(0, 0))


def test_rounds_only_go_up() -> None:
    federation = Federation(n=3)
    for last, fresh in (((0, 9), True), ((1, 0), False), ((1, 1), False), ((2, 0), False)):
        arguments = (federation.config, federation.policy, federation.roster, federation.identities[0])
        if fresh:
            SecAggClient(*arguments, last_round=last)
        else:
            with pytest.raises(StaleRound):
                SecAggClient(*arguments, last_round=last)


def test_the_roster_is_pinned() -> None:
    federation = Federation(n=3)
    outsider = Identity.generate(lambda size: b"o" * size)
    sybil = Roster((*federation.roster.keys, outsider.public))
    config = federation.make_config(roster_hash=sybil.hash, degree=3, threshold=3)
    policy, me = federation.policy, federation.identities[0]
    with pytest.raises(RosterMismatch):
        SecAggClient(config, policy, federation.roster, me, last_round=(0, 0))
    with pytest.raises(RosterMismatch):
        SecAggServer(config, federation.roster)
    with pytest.raises(UnknownIdentity):
        SecAggClient(federation.config, policy, federation.roster, outsider, last_round=(0, 0))


def test_the_policy_is_checked_again_when_state_is_loaded() -> None:
    federation = Federation(n=3).until("share")
    stored = federation.clients[0].to_bytes()
    for policy, error in ((ClientPolicy(max_clip=0.5), PolicyViolation), (ClientPolicy(n_min=4), TooFewMembers)):
        with pytest.raises(error):
            SecAggClient.from_bytes(stored, policy, federation.roster, federation.identities[0])


# -- stage 1: adverts -------------------------------------------------------------------------------------


def test_adverts_must_be_signed_by_the_roster() -> None:
    federation = Federation(n=3)
    adverts = adverts_of(federation)
    middle = signed_advert(federation, 0, replace(opened(federation, adverts[1]), mask_key=bytes([9]) + bytes(31)))
    forged = middle[:37] + (1).to_bytes(4, "big") + middle[41:]  # member 0's signature in member 1's name
    with pytest.raises(BadSignature):
        federation.reload(0).share(advert_list(federation, [adverts[0], forged, adverts[2]]))
    with pytest.raises(BadSignature):
        federation.server.receive_advert(forged)
    outsider = Identity.generate(lambda size: b"o" * size)
    for index, error in ((1, BadSignature), (3, UnknownIdentity)):
        body = opened(federation, adverts[1]).encode()
        foreign = signed(outsider.sign, Kind.ADVERT, federation.config.commitment, index, body)
        with pytest.raises(error):
            federation.reload(0).share(advert_list(federation, [adverts[0], foreign]))
        with pytest.raises(error):
            federation.server.receive_advert(foreign)


@pytest.mark.parametrize("field", ["mask_key", "encryption_key"])
def test_a_key_cannot_be_taken_twice(field: str) -> None:
    """Else a liar who copies a victim's mask key could cancel its own mask, or be it when shares are asked."""
    federation = Federation(n=3)
    adverts = adverts_of(federation)
    victim = opened(federation, adverts[1])
    copied = signed_advert(federation, 2, replace(opened(federation, adverts[2]), **{field: victim.mask_key}))
    with pytest.raises(DuplicateKey):
        federation.reload(0).share(advert_list(federation, [adverts[0], adverts[1], copied]))
    federation.server.receive_advert(adverts[1])
    with pytest.raises(DuplicateKey):
        federation.server.receive_advert(copied)


def test_one_member_cannot_advertise_twice() -> None:
    federation = Federation(n=3)
    adverts = adverts_of(federation)
    second = federation.client(1, seed=b"x" * 32).advertise()
    with pytest.raises(DuplicateMessage):
        federation.reload(0).share(advert_list(federation, [adverts[0], adverts[1], second, adverts[2]]))
    federation.server.receive_advert(adverts[1])
    with pytest.raises(DuplicateMessage):
        federation.server.receive_advert(second)


@pytest.mark.parametrize(
    ("key", "error"),
    [(bytes(32), BadKey), (bytes([1]) + bytes(31), BadKey), (b"\xff" * 32, BadKey)],
)
def test_weak_keys(key: bytes, error: type[ProtocolViolation]) -> None:
    federation = Federation(n=3)
    adverts = adverts_of(federation)
    lying = signed_advert(federation, 2, replace(opened(federation, adverts[2]), encryption_key=key))
    with pytest.raises(error):
        federation.clients[0].share(advert_list(federation, [*adverts[:2], lying]))


def test_a_weak_mask_key_is_refused_before_anything_is_masked() -> None:
    federation = Federation(n=3)
    adverts = adverts_of(federation)
    lying = signed_advert(federation, 2, replace(opened(federation, adverts[2]), mask_key=bytes(32)))
    federation.adverts = advert_list(federation, [*adverts[:2], lying])
    sealed = []
    for i in range(2):
        message = federation.clients[i].share(federation.adverts)
        body = open_signed(message, Kind.SHARES, federation.config.commitment, federation.roster)[1]
        sealed.append(SealedShares.decode(body))
    # the liar can seal proper shares: only its mask key is of low order
    plain = federation.secrets(2).shares(range(3), 3)[0]
    its = crypto.seal(
        federation.secrets(2).encryption_private,
        opened(federation, adverts[0]).encryption_key,
        federation.config.commitment,
        2,
        0,
        plain.self_share + plain.mask_share,
    )
    delivery = Delivery((0, 1, 2), SealedShares({1: sealed[1].by_peer[0], 2: its}))
    with pytest.raises(BadKey):
        federation.clients[0].mask(delivery.encode(federation.config.commitment), federation.vectors[0])


def test_the_own_advert_must_be_in_u1_unchanged() -> None:
    federation = Federation(n=4)
    adverts = adverts_of(federation)
    other_self = federation.client(0, seed=b"x" * 32).advertise()
    for listed in (adverts[1:], [other_self, *adverts[1:]]):
        with pytest.raises(OwnKeyMissing):
            federation.reload(0).share(advert_list(federation, listed))


def test_too_few_in_u1() -> None:
    federation = Federation(n=5, policy=ClientPolicy(t_min=3), threshold=4)
    adverts = adverts_of(federation)
    with pytest.raises(TooFewNeighbours):
        federation.reload(0).share(advert_list(federation, adverts[:3]))
    with pytest.raises(TooFewMembers):
        federation.reload(0).share(advert_list(federation, adverts[:2]))


def test_messages_of_another_attempt_are_refused() -> None:
    federation = Federation(n=3)
    retry = federation.make_config(attempt=1)
    foreign = federation.client(1, retry).advertise()
    with pytest.raises(WrongRound):
        federation.server.receive_advert(foreign)
    adverts = adverts_of(federation)
    with pytest.raises(WrongRound):
        federation.reload(0).share(AdvertList(tuple(adverts)).encode(retry.commitment))
    with pytest.raises(WrongRound):
        federation.reload(0).share(advert_list(federation, [adverts[0], foreign, adverts[2]]))


# -- stage 2: ciphertexts ---------------------------------------------------------------------------------


def mask_with(federation: Federation, members: tuple[int, ...], sealed: dict[int, bytes]) -> bytes:
    delivery = Delivery(members, SealedShares(sealed)).encode(federation.config.commitment)
    return federation.reload(0).mask(delivery, federation.vectors[0])


def test_ciphertexts_must_be_the_neighbours_own_and_complete() -> None:
    federation = Federation(n=4).until("mask")
    good = Delivery.decode(federation.deliveries[0], federation.config.commitment)
    other = Delivery.decode(federation.deliveries[1], federation.config.commitment)
    sealed, members = good.sealed.by_peer, good.members
    assert mask_with(federation, members, sealed)
    with pytest.raises(UndecryptableShare):  # of the right source, for another target
        mask_with(federation, members, sealed | {2: other.sealed.by_peer[2]})
    with pytest.raises(UndecryptableShare):  # swapped
        mask_with(federation, members, sealed | {1: sealed[2], 2: sealed[1]})
    with pytest.raises(IncompleteShares):
        mask_with(federation, members, {k: v for k, v in sealed.items() if k != 2})
    with pytest.raises(IncompleteShares):
        mask_with(federation, (0, 1, 2), sealed)
    with pytest.raises(OwnKeyMissing):
        mask_with(federation, (1, 2, 3), sealed)
    with pytest.raises(TooFewNeighbours):
        mask_with(federation, (0, 1), {1: sealed[1]})


def test_u2_must_lie_within_u1() -> None:
    federation = Federation(n=4)
    for i in range(3):
        federation.server.receive_advert(federation.clients[i].advertise())
    federation.adverts = federation.server.close_advertise()
    federation.share(range(3))
    sealed = Delivery.decode(federation.deliveries[0], federation.config.commitment).sealed.by_peer
    with pytest.raises(SurvivorsNotSubset):
        mask_with(federation, (0, 1, 2, 3), sealed | {3: sealed[1]})


@pytest.mark.parametrize(
    ("vector", "weight"),
    [
        (np.array([np.nan, 0, 0, 0, 0]), 1.0),
        (np.array([np.inf, 0, 0, 0, 0]), 1.0),
        (np.zeros(4), 1.0),
        (np.zeros((5, 1)), 1.0),
        (np.zeros(5, dtype=np.int64), 1.0),
        (None, 1.0),
        (np.zeros(5), 0.5),
    ],
)
def test_a_bad_own_vector_leaves_the_round_locally(vector: np.ndarray, weight: float) -> None:  # type: ignore[type-arg]
    federation = Federation(n=4).until("mask")
    client = federation.clients[0]
    with pytest.raises(UpdateRejected):
        client.mask(federation.deliveries[0], vector, weight)
    assert client.next_stage == "refused"
    assert federation.seeds[0] not in client.to_bytes()
    # the others go on without it
    federation.mask([1, 2, 3])
    federation.consistency([1, 2, 3])
    np.testing.assert_array_equal(federation.unmask([1, 2, 3]).mean, federation.expected([1, 2, 3]))


# -- stages 3 and 4: survivors and votes ------------------------------------------------------------------


def survivors(federation: Federation, *members: int) -> bytes:
    return Survivors(members).encode(federation.config.commitment)


def test_u3_must_be_a_set_within_u2_with_oneself() -> None:
    federation = Federation(n=5, threshold=3, policy=ClientPolicy(t_min=3))
    federation.until("share").share([0, 1, 2, 3])
    federation.mask([0, 1, 2, 3])
    client = federation.reload
    for members, error in (
        ((0, 1, 2, 4), SurvivorsNotSubset),
        ((1, 2, 3), OwnKeyMissing),
        ((0, 1), TooFewMembers),
        ((0, 1, 1, 2), MalformedMessage),  # overlapping lists cannot even be written
        ((0, 2, 1), MalformedMessage),
    ):
        with pytest.raises(error):
            client(0).consistency(survivors(federation, *members))
    strict = Federation(n=5).until("consistency")
    with pytest.raises(TooFewNeighbours):
        strict.clients[0].consistency(survivors(strict, 0, 1, 2))


def test_both_shares_of_a_victim_cannot_be_asked() -> None:
    """The attack on Flower's protocol: list the victim as alive for some and as dropped for others."""
    federation = Federation(n=5, threshold=3, policy=ClientPolicy(t_min=3)).until("consistency")
    victim, everyone, without = 4, (0, 1, 2, 3, 4), (0, 1, 2, 3)
    messages = [federation.clients[i].consistency(survivors(federation, *everyone)) for i in (0, 1, 4)]
    messages += [federation.clients[i].consistency(survivors(federation, *without)) for i in (2, 3)]
    signature = {i: m[-64:] for i, m in zip((0, 1, 4, 2, 3), messages, strict=True)}
    commitment = federation.config.commitment
    views = Votes({i: signature[i] for i in (0, 1, 4)}).encode(commitment)
    assert federation.reload(0).unmask(views)  # a majority agrees that the victim is in the sum
    with pytest.raises(InconsistentViews):  # and nobody opens the other view
        federation.reload(2).unmask(views)
    with pytest.raises(InconsistentViews, match="2 signed views"):
        federation.reload(2).unmask(Votes({i: signature[i] for i in (2, 3)}).encode(commitment))
    with pytest.raises(InconsistentViews):
        federation.reload(2).unmask(Votes({i: signature[i] for i in (1, 2, 3)}).encode(commitment))
    with pytest.raises(UnknownIdentity):
        federation.reload(2).unmask(Votes({i: signature[i] for i in (2, 3, victim)}).encode(commitment))
    with pytest.raises(StageOrder):  # a second view from the same client
        federation.clients[0].consistency(survivors(federation, *without))


def test_a_second_unmask_finds_nothing() -> None:
    federation = Federation(n=3).until("unmask")
    client = federation.clients[0]
    first = client.unmask(federation.votes)
    with pytest.raises(StageOrder):
        client.unmask(federation.votes)
    with pytest.raises(StageOrder):
        federation.reload(0).unmask(federation.votes)
    body = open_signed(first, Kind.UNMASKING, federation.config.commitment, federation.roster)[1]
    assert sorted(Unmasking.decode(body).by_owner) == [0, 1, 2]  # exactly one share for each


def test_the_share_kind_follows_from_u3() -> None:
    federation = Federation(n=4).until("mask")
    federation.mask([0, 1, 2])
    federation.consistency([0, 1, 2])
    message = federation.clients[0].unmask(federation.votes)
    body = open_signed(message, Kind.UNMASKING, federation.config.commitment, federation.roster)[1]
    given = Unmasking.decode(body).by_owner
    for owner in range(4):
        held = federation.secrets(owner).shares(range(4), 3)[0]
        assert given[owner] == (held.self_share if owner < 3 else held.mask_share)


def test_views_differ_when_u1_or_u2_differed() -> None:
    """A server that shows two sets of adverts, or two U2, cannot collect one set of views."""
    federation = Federation(n=5, threshold=3, policy=ClientPolicy(t_min=3))
    adverts = adverts_of(federation)
    seen = []
    for listed in (adverts, adverts[:4]):
        client = federation.reload(0)
        client.share(advert_list(federation, listed))
        seen.append(client._state.adverts_view)
    assert seen[0] != seen[1]
    views = {
        view_digest(commitment, adverts_view, u2, u3)
        for commitment in (federation.config.commitment, bytes(32))
        for adverts_view in seen
        for u2, u3 in (((0, 1, 2), (0, 1)), ((0, 1, 2), (0, 1, 2)), ((0, 1), (0, 1)), ((0, 1), (0, 1, 2)))
    }
    assert len(views) == 2 * 2 * 4


def test_votes_from_another_attempt_do_not_count() -> None:
    federation = Federation(n=3).until("unmask")
    other = Federation(n=3)
    other.config = other.make_config(attempt=1)
    other.clients = [other.client(i) for i in range(3)]
    other.server = SecAggServer(other.config, other.roster)
    other.until("unmask")
    stale = Votes.decode(other.votes, other.config.commitment).encode(federation.config.commitment)
    with pytest.raises(InconsistentViews):
        federation.clients[0].unmask(stale)


def test_too_few_votes() -> None:
    federation = Federation(n=4).until("unmask")
    votes = Votes.decode(federation.votes, federation.config.commitment).by_member
    few = Votes({1: votes[1]}).encode(federation.config.commitment)
    with pytest.raises(InconsistentViews, match="3 needed"):
        federation.clients[0].unmask(few)


# -- order ------------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[SecAggClient, Federation], bytes]] = {
    "advertise": lambda client, federation: client.advertise(),
    "share": lambda client, federation: client.share(federation.adverts),
    "mask": lambda client, federation: client.mask(federation.deliveries[0], federation.vectors[0]),
    "consistency": lambda client, federation: client.consistency(federation.survivors),
    "unmask": lambda client, federation: client.unmask(federation.votes),
}


@pytest.mark.parametrize("due", [*CALLS, "finished"])
def test_every_stage_runs_once_and_in_its_turn(due: str) -> None:
    complete = Federation(n=3).until("unmask")
    federation = Federation(n=3)
    for name, value in vars(complete).items():
        if name in ("adverts", "deliveries", "survivors", "votes"):
            setattr(federation, name, value)
    client = federation.clients[0]
    for stage, call in CALLS.items():
        if stage == due:
            break
        call(client, federation)
    for stage, call in CALLS.items():
        if stage != due:
            with pytest.raises(StageOrder):
                call(client, federation)
    assert client.next_stage == due  # a call out of turn does not end an honest round


def test_a_refusal_is_final() -> None:
    federation = Federation(n=3).until("share")
    client = federation.clients[0]
    with pytest.raises(MalformedMessage):
        client.share(b"nonsense")
    assert client.next_stage == "refused"
    assert federation.seeds[0] not in client.to_bytes()
    with pytest.raises(StageOrder):
        client.share(federation.adverts)


# -- the server against lying clients ---------------------------------------------------------------------


def test_the_server_refuses_late_early_and_double_messages() -> None:
    federation = Federation(n=4)
    first = federation.clients[0].advertise()
    federation.server.receive_advert(first)
    with pytest.raises(DuplicateMessage):
        federation.server.receive_advert(first)
    for i in (1, 2):
        federation.server.receive_advert(federation.clients[i].advertise())
    late = federation.clients[3].advertise()
    federation.adverts = federation.server.close_advertise()
    with pytest.raises(LateMessage):
        federation.server.receive_advert(late)
    with pytest.raises(StageOrder):
        federation.server.close_mask()
    federation.share([0, 1, 2])
    message = federation.clients[0].mask(federation.deliveries[0], federation.vectors[0])
    federation.server.receive_masked(message)
    with pytest.raises(DuplicateMessage):  # must not be folded twice
        federation.server.receive_masked(message)
    masked = [federation.clients[i].mask(federation.deliveries[i], federation.vectors[i]) for i in (1, 2)]
    for each in masked:
        federation.server.receive_masked(each)
    federation.survivors = federation.server.close_mask()
    with pytest.raises(LateMessage):
        federation.server.receive_masked(masked[0])
    federation.consistency([0, 1, 2])
    np.testing.assert_array_equal(federation.unmask([0, 1, 2]).mean, federation.expected([0, 1, 2]))


def test_a_late_vector_is_never_part_of_the_sum() -> None:
    federation = Federation(n=4).until("mask")
    late = federation.clients[3].mask(federation.deliveries[3], federation.vectors[3])
    federation.mask([0, 1, 2])
    with pytest.raises(LateMessage):
        federation.server.receive_masked(late)
    federation.consistency([0, 1, 2])
    np.testing.assert_array_equal(federation.unmask([0, 1, 2]).mean, federation.expected([0, 1, 2]))


def test_another_view_is_not_counted() -> None:
    federation = Federation(n=4).until("consistency")
    lying = federation.clients[3].consistency(survivors(federation, 0, 1, 3))
    with pytest.raises(InconsistentViews):
        federation.server.receive_consistency(lying)
    federation.consistency([0, 1, 2])
    assert federation.unmask([0, 1, 2]).clients == 4


def test_members_who_left_stay_out() -> None:
    federation = Federation(n=4).until("consistency")
    vote = federation.clients[3].consistency(federation.survivors)
    federation.consistency([0, 1, 2])
    message = federation.clients[0].unmask(federation.votes)
    body = bytes(message[41:-64])
    forged = signed(federation.identities[3].sign, Kind.UNMASKING, federation.config.commitment, 3, body)
    with pytest.raises(UnknownIdentity):
        federation.server.receive_unmask(forged)
    with pytest.raises(LateMessage):
        federation.server.receive_consistency(vote)


@pytest.mark.parametrize(("dropped", "what"), [(3, "mask key"), (None, "self-mask secret")])
def test_a_lying_share_is_found_and_named(dropped: int | None, what: str) -> None:
    federation = Federation(n=4).until("mask")
    alive = [i for i in range(4) if i != dropped]
    federation.mask(alive)
    federation.consistency(alive)
    owner = 3
    for i in alive:
        message = federation.clients[i].unmask(federation.votes)
        if i == 1:
            shares = Unmasking.decode(message[41:-64]).by_owner
            shares[owner] = bytes(31) + b"\x05"
            body = Unmasking(shares).encode()
            message = signed(federation.identities[i].sign, Kind.UNMASKING, federation.config.commitment, i, body)
        federation.server.receive_unmask(message)
    with pytest.raises(ReconstructionMismatch, match=what) as mismatch:
        federation.server.close_unmask()
    assert (mismatch.value.owner, mismatch.value.holders) == (owner, (0, 1, 2))
    assert isinstance(mismatch.value, RoundAborted)
    with pytest.raises(StageOrder):
        federation.server.close_unmask()


def test_shares_of_exactly_the_neighbourhood() -> None:
    federation = Federation(n=4).until("unmask")
    message = federation.clients[0].unmask(federation.votes)
    shares = Unmasking.decode(message[41:-64]).by_owner
    for wrong in ({k: v for k, v in shares.items() if k}, shares | {7: shares[1]}):
        body = Unmasking(wrong).encode()
        lying = signed(federation.identities[0].sign, Kind.UNMASKING, federation.config.commitment, 0, body)
        with pytest.raises(IncompleteShares):
            federation.server.receive_unmask(lying)


def test_an_impossible_total_weight_aborts() -> None:
    federation = Federation(n=3).until("mask")
    for i in range(3):
        message = federation.clients[i].mask(federation.deliveries[i], federation.vectors[i])
        if i == 0:  # adds 1 to its masked weight: not what the rule "uniform" allows
            body = bytearray(message[41:-64])
            body[-3] ^= 1
            message = signed(federation.identities[0].sign, Kind.MASKED, federation.config.commitment, 0, bytes(body))
        federation.server.receive_masked(message)
    federation.survivors = federation.server.close_mask()
    federation.consistency()
    with pytest.raises(RoundAborted, match="total weight"):
        federation.unmask()


def test_signatures_cover_kind_and_sender() -> None:
    federation = Federation(n=3)
    message = federation.clients[0].advertise()
    body = message[41:-64]
    head = header(Kind.ADVERT, federation.config.commitment)
    assert message == head + bytes(4) + body + message[-64:]
    as_shares = header(Kind.SHARES, federation.config.commitment) + message[37:]
    as_other = head + Writer().u32(1).done() + message[41:]
    for kind, forged in ((Kind.SHARES, as_shares), (Kind.ADVERT, as_other)):
        with pytest.raises(BadSignature):
            open_signed(forged, kind, federation.config.commitment, federation.roster)


def test_everything_in_the_configuration_is_bound() -> None:
    federation = Federation(n=3)
    base = federation.config
    changes: dict[str, object] = {
        "run_id": "other",
        "round": 2,
        "attempt": 1,
        "nonce": b"n" * 32,
        "model_hash": b"m" * 32,
        "dim": 6,
        "bits": 32,
        "clip": 2.0,
        "weight_rule": "examples",
        "dp": '{"sigma":1}',
        "roster_hash": b"r" * 32,
        "degree": 4,
        "threshold": 2,
        "deadline_s": 1.0,
    }
    commitments = {base.commitment}
    for name, value in changes.items():
        changed = replace(base, **{name: value})
        assert type(base).decode(changed.encode()) == changed
        commitments.add(changed.commitment)
    heavier = replace(base, weight_rule="examples", max_weight=2.0)
    commitments.add(heavier.commitment)
    assert len(commitments) == len(changes) + 2
    label = b"gradtf/sa/v1/config"
    assert base.commitment == hashlib.sha256(bytes([len(label)]) + label + base.encode()).digest()
