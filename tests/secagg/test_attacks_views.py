"""Stages 3 and 4: lists that overlap or differ, both shares of one victim, votes that do not count, second requests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gradtf_fl.secagg import (
    InconsistentViews,
    MalformedMessage,
    OwnKeyMissing,
    SecAggClient,
    StageOrder,
    SurvivorsNotSubset,
    TooFewMembers,
    TooFewNeighbours,
    UnknownIdentity,
)
from gradtf_fl.secagg.wire.encoding import Writer
from gradtf_fl.secagg.wire.messages import MessageKind, Unmasking, header
from gradtf_fl.secagg.wire.votes import Votes, view_digest

from .federation import AnyGraphPolicy, Federation
from .forging import BODY, adverts_of, directory, survivors, votes

MAJORITY = AnyGraphPolicy()  # lets 3 of 5 pass, which no policy does: the votes must hold all the same


def test_u3_must_be_a_set_within_u2_with_oneself() -> None:
    federation = Federation(n=5, threshold=3, policy=MAJORITY).until("share")
    federation.play("share", [0, 1, 2, 3])
    federation.play("accept", [0, 1, 2, 3])
    federation.play("mask", [0, 1, 2, 3])
    for members, error in (
        ((0, 1, 2, 4), SurvivorsNotSubset),
        ((1, 2, 3), OwnKeyMissing),
        ((0, 1), TooFewMembers),
        ((), OwnKeyMissing),
    ):
        with pytest.raises(error):
            federation.reload(0).consistency(survivors(federation, *members))


def test_too_few_neighbours_in_u3() -> None:
    circle = Federation(n=12, degree=6, threshold=5, quorum=8, policy=AnyGraphPolicy()).until("consistency")
    gone = circle.server._around[0][:3]
    with pytest.raises(TooFewNeighbours, match="4 of the neighbourhood left, 5 needed"):
        circle.clients[0].consistency(survivors(circle, *(i for i in range(12) if i not in gone)))


@pytest.mark.parametrize("members", [(0, 1, 1, 2), (0, 2, 1), (0, 1, 2, 3, 0)])
def test_active_and_dead_lists_that_overlap_cannot_be_written(members: tuple[int, ...]) -> None:
    """There is one list, U3, strictly increasing; who is dead is U2 without it. Nobody can be on both or twice."""
    federation = Federation(n=4).until("consistency")
    with pytest.raises(MalformedMessage, match="strictly increasing"):
        federation.clients[0].consistency(survivors(federation, *members))


def test_a_second_list_behind_the_first_is_refused() -> None:
    federation = Federation(n=4).until("consistency")
    two = (
        Writer().fixed(header(MessageKind.SURVIVORS, federation.commitment)).indices((0, 1, 2, 3)).indices((3,)).done()
    )
    with pytest.raises(MalformedMessage, match="too many"):
        federation.clients[0].consistency(two)


def test_both_shares_of_a_victim_cannot_be_asked() -> None:
    """The attack on Flower's protocol: list the victim as alive for some and as dropped for others."""
    federation = Federation(n=5, threshold=3, policy=MAJORITY).until("consistency")
    victim, everyone, without = 4, (0, 1, 2, 3, 4), (0, 1, 2, 3)
    signature = {i: federation.clients[i].consistency(survivors(federation, *everyone))[-64:] for i in (0, 1, 4)}
    signature |= {i: federation.clients[i].consistency(survivors(federation, *without))[-64:] for i in (2, 3)}
    views = votes(federation, {i: signature[i] for i in (0, 1, 4)})
    assert federation.reload(0).unmask(views)  # a majority agrees that the victim is in the sum
    with pytest.raises(InconsistentViews):  # and nobody opens the other view
        federation.reload(2).unmask(votes(federation, {i: signature[i] for i in (0, 1, 2)}))
    with pytest.raises(UnknownIdentity):
        federation.reload(2).unmask(views)
    with pytest.raises(InconsistentViews, match="2 signed views"):
        federation.reload(2).unmask(votes(federation, {i: signature[i] for i in (2, 3)}))
    with pytest.raises(InconsistentViews):
        federation.reload(2).unmask(votes(federation, {i: signature[i] for i in (1, 2, 3)}))
    with pytest.raises(UnknownIdentity):
        federation.reload(2).unmask(votes(federation, {i: signature[i] for i in (2, 3, victim)}))
    with pytest.raises(StageOrder):  # a second view from the same client
        federation.clients[0].consistency(survivors(federation, *without))


def test_different_u3_to_different_clients_open_nothing() -> None:
    """With the default threshold neither half of a split reaches it: no client gives a single share."""
    federation = Federation(n=6).until("consistency")
    halves = {(0, 1, 2, 3, 4, 5): (0, 1, 2), (0, 1, 2, 3, 4): (3, 4)}
    signature = {
        i: federation.clients[i].consistency(survivors(federation, *u3))[-64:]
        for u3, half in halves.items()
        for i in half
    }
    for half in halves.values():
        for shown in (half, (0, 1, 2, 3, 4)):
            with pytest.raises(InconsistentViews):
                federation.reload(half[0]).unmask(votes(federation, {i: signature[i] for i in shown}))


def test_the_share_kind_follows_from_u3() -> None:
    federation = Federation(n=4).until("mask")
    federation.play("mask", [0, 1, 2])
    federation.play("consistency", [0, 1, 2])
    given = Unmasking.decode(federation.answer("unmask", 0)[BODY]).by_owner
    for owner in range(4):
        held = federation.secrets(owner).shares(range(4), 3)[0]
        assert given[owner] == (held.self_share if owner < 3 else held.mask_share)


def test_a_second_unmask_finds_nothing() -> None:
    federation = Federation(n=3).until("unmask")
    client = federation.clients[0]
    first = client.unmask(federation.sent["unmask"][0])
    for again in (client, federation.reload(0)):
        with pytest.raises(StageOrder):
            again.unmask(federation.sent["unmask"][0])
    assert sorted(Unmasking.decode(first[BODY]).by_owner) == [0, 1, 2]  # exactly one share for each


def test_views_differ_when_u1_or_u2_differed() -> None:
    """A server that shows two sets of adverts, or two U2, cannot collect one set of views."""
    federation = Federation(n=5, threshold=3, policy=MAJORITY)
    adverts = adverts_of(federation)
    roots = []
    for count in (5, 4):
        client = federation.reload(0)
        client.share(directory(federation, {i: adverts[i] for i in range(count)}, 0))
        roots.append(client._state.adverts_root)
    views = {
        view_digest(commitment, root, u2, u3)
        for commitment in (federation.commitment, bytes(32))
        for root in roots
        for u2, u3 in (((0, 1, 2), (0, 1)), ((0, 1, 2), (0, 1, 2)), ((0, 1), (0, 1)), ((0, 1), (0, 1, 2)))
    }
    assert len(views) == 2 * 2 * 4


def test_votes_from_another_attempt_do_not_count() -> None:
    federation, other = Federation(n=3).until("unmask"), Federation(n=3, attempt=1).until("unmask")
    stale = Votes.decode(other.sent["unmask"][0], other.commitment).encode(federation.commitment)
    with pytest.raises(InconsistentViews):
        federation.clients[0].unmask(stale)


def test_too_few_votes() -> None:
    federation = Federation(n=4).until("unmask")
    signed_views = Votes.decode(federation.sent["unmask"][0], federation.commitment).by_member
    with pytest.raises(InconsistentViews, match="3 needed"):
        federation.clients[0].unmask(votes(federation, {1: signed_views[1]}))


# -- order ------------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[SecAggClient, Federation], bytes]] = {
    "advertise": lambda client, federation: client.advertise(),
    "share": lambda client, federation: client.share(federation.sent["share"][0]),
    "accept": lambda client, federation: client.accept(federation.sent["accept"][0]),
    "mask": lambda client, federation: next(client.mask(federation.sent["mask"][0], federation.vectors[0])),
    "consistency": lambda client, federation: client.consistency(federation.sent["consistency"][0]),
    "unmask": lambda client, federation: client.unmask(federation.sent["unmask"][0]),
}


@pytest.mark.parametrize("due", [*CALLS, "finished"])
def test_every_stage_runs_once_and_in_its_turn(due: str) -> None:
    """A stage restarted, or called early: no second answer, whatever the server asks."""
    complete = Federation(n=3).until("unmask")
    client = Federation(n=3).clients[0]
    for stage, call in CALLS.items():
        if stage == due:
            break
        call(client, complete)
    for stage, call in CALLS.items():
        if stage != due:
            with pytest.raises(StageOrder):
                call(client, complete)
    assert client.next_stage == due  # a call out of turn does not end an honest round
    if due != "finished":
        CALLS[due](client, complete)


def test_a_refusal_is_final() -> None:
    federation = Federation(n=3).until("share")
    client = federation.clients[0]
    with pytest.raises(MalformedMessage):
        client.share(b"nonsense")
    assert client.next_stage == "refused"
    assert federation.seeds[0] not in client.to_bytes()
    with pytest.raises(StageOrder):
        client.share(federation.sent["share"][0])


def test_a_stage_that_runs_again_from_the_same_store_answers_the_same() -> None:
    """After a crash between storing and sending, a different answer would be a second sharing of one secret."""
    federation = Federation(n=3).until("unmask")
    fresh = Federation(n=3)
    for stage, call in CALLS.items():
        one, two = fresh.reload(0), fresh.reload(0)
        answer = call(fresh.clients[0], federation)
        assert call(one, federation) == call(two, federation) == answer, stage
    np.testing.assert_array_equal(federation.finish().mean, federation.expected(range(3)))
