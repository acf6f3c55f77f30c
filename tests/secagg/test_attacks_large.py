"""The k-regular graph of 110 members against a server that lowers its parameters, splits it or forges votes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from gradtf_fl.secagg import (
    ClientPolicy,
    InconsistentViews,
    PolicyViolation,
    SecAggClient,
    SecAggServer,
    TooFewMembers,
    topology,
)
from gradtf_fl.secagg.wire.messages import Unmasking
from gradtf_fl.secagg.wire.votes import Votes, sample

from .federation import Federation
from .forging import BODY, survivors, votes

N = 110
COLLUDERS = 11


@pytest.fixture(scope="module")
def trunk() -> Federation:
    """k = 46, t = 14, Q = 99, everyone's vector masked."""
    federation = Federation(n=N, dim=1)
    assert federation.shape() == topology(N, colluders=COLLUDERS / N)
    assert federation.config.degree < N - 1
    return federation.until("consistency")


@pytest.mark.parametrize(
    ("policy", "changes", "reason"),
    [
        (ClientPolicy(), {}, None),
        (ClientPolicy(), {"degree": 48}, None),
        (ClientPolicy(), {"threshold": 15}, None),
        (ClientPolicy(), {"degree": 109, "threshold": 74, "quorum": 74}, None),
        (ClientPolicy(), {"degree": 20}, "degree 20 and threshold 14 fail with probability 2\\^-"),
        (ClientPolicy(), {"degree": 44}, "degree 44 and threshold 14 fail with probability 2\\^-"),
        (ClientPolicy(), {"threshold": 13}, "degree 46 and threshold 13 fail with probability 2\\^-"),
        (ClientPolicy(), {"threshold": 2}, "degree 46 and threshold 2 fail with probability 2\\^-"),
        (ClientPolicy(), {"degree": 47}, "degree 47: the complete graph of 110 organizations has 109"),
        (ClientPolicy(), {"quorum": 60}, "quorum 60 of 110 lets 11 colluders show two views"),
        (ClientPolicy(), {"quorum": 61}, "fail with probability"),
        (ClientPolicy(), {"quorum": 111}, "quorum 111 of 110"),
        (ClientPolicy(colluders=0.2), {}, "fail with probability"),
        (ClientPolicy(colluders=0.8), {}, "lets 88 colluders show two views"),
        (ClientPolicy(t_min=20), {}, "threshold 14 is below 20"),
        (ClientPolicy(), {"degree": 109, "threshold": 73, "quorum": 73}, "threshold 73 is below 74"),
    ],
)
def test_regular_graphs_below_policy(
    trunk: Federation, policy: ClientPolicy, changes: dict[str, object], reason: str | None
) -> None:
    config = trunk.make_config(**changes)
    arguments = (config, policy, trunk.roster, trunk.identities[0])
    if reason is None:
        assert SecAggClient(*arguments, last_round=(0, 0)).next_stage == "advertise"
    else:
        with pytest.raises(PolicyViolation, match=reason):
            SecAggClient(*arguments, last_round=(0, 0))


def test_fewer_than_the_quorum_in_u3(trunk: Federation) -> None:
    with pytest.raises(TooFewMembers, match="98 organizations left, 99 needed"):
        trunk.reload(0).consistency(survivors(trunk, *range(98)))
    assert trunk.reload(0).consistency(survivors(trunk, *range(99)))


# -- two views --------------------------------------------------------------------------------------------


class Split:
    """A server that shows U3 with the victim to some and without it to others; colluders sign both views."""

    def __init__(self, trunk: Federation, with_victim: int) -> None:
        self.federation, self.victim = trunk.fork(), 0
        around = trunk.server._around[self.victim]
        assert len(around) == trunk.config.degree
        self.colluders = set(around[:COLLUDERS])  # the worst place for them
        honest = [i for i in range(N) if i not in self.colluders]  # the victim comes first
        self.views = {True: set(honest[:with_victim]), False: set(honest[with_victim:])}
        self.signatures: dict[bool, dict[int, bytes]] = {True: {}, False: {}}
        for alive, voters in self.views.items():
            shown = survivors(trunk, *(i for i in range(N) if alive or i != self.victim))
            for i in voters | self.colluders:
                self.signatures[alive][i] = self.federation.reload(i).consistency(shown)[-64:]
            for i in voters:
                self.federation.clients[i].consistency(shown)
        for i in self.colluders:
            self.federation.clients[i].consistency(survivors(trunk, *range(N)))

    def opened(self, alive: bool, shown: Mapping[int, bytes]) -> dict[int, bytes]:
        """Shares of the victim, by holder, that honest clients with the view ``alive`` give for these votes."""
        shares = {}
        for i in self.views[alive]:
            try:
                message = self.federation.reload(i).unmask(votes(self.federation, dict(sorted(shown.items()))))
            except InconsistentViews:
                continue
            given = Unmasking.decode(message[BODY]).by_owner
            shares |= {i: given[self.victim]} if self.victim in given else {}
        return shares

    def padded(self, alive: bool) -> dict[int, bytes]:
        """As many votes as the quorum: the true ones, and the other view's for those who did not sign this one."""
        others = {i: s for i, s in self.signatures[not alive].items() if i != self.victim}
        missing = self.federation.config.quorum - len(self.signatures[alive])
        fill = [i for i in others if i not in self.signatures[alive]][: max(missing, 0)]
        return self.signatures[alive] | {i: others[i] for i in fill}


@pytest.mark.parametrize("with_victim", [50, 70, 88])
def test_both_shares_of_a_victim_cannot_be_asked_from_two_views(trunk: Federation, with_victim: int) -> None:
    """99 honest members, 11 colluders next to the victim, Q = 99: at most one view gets its quorum.

    t = 14 shares of b need honest holders of the one view, 14 of s those of the other. Colluders hold 11 of either.
    """
    split = Split(trunk, with_victim)
    threshold, quorum = trunk.config.threshold, trunk.config.quorum
    assert len(split.colluders) < threshold
    b_shares = split.opened(True, split.signatures[True]) | split.opened(True, split.padded(True))
    s_shares = split.opened(False, split.signatures[False]) | split.opened(False, split.padded(False))
    assert s_shares == {}
    assert len(split.padded(False)) >= quorum
    if len(split.signatures[True]) >= quorum:  # 88 + 11: the one view that may be opened
        assert len(b_shares) >= threshold
    else:
        assert b_shares == {}


def test_too_small_a_list_of_votes(trunk: Federation) -> None:
    federation = trunk.fork()
    federation.play("consistency")
    by_member = Votes.decode(federation.sent["unmask"][0], federation.commitment).by_member
    few = {i: by_member[i] for i in range(1, 98)}  # 97 and its own are 98
    with pytest.raises(InconsistentViews, match="97 signed views, 99 needed"):
        federation.reload(0).unmask(votes(federation, few))


# -- forged votes and the sample that finds them ----------------------------------------------------------


@pytest.fixture(scope="module")
def voted(trunk: Federation) -> Federation:
    federation = trunk.fork()
    federation.play("consistency")
    return federation


def test_one_forged_vote_is_found_by_those_who_sample_it(voted: Federation) -> None:
    shown = Votes.decode(voted.sent["unmask"][0], voted.commitment)
    forged = Votes(shown.by_member | {7: shown.by_member[8]})
    found: dict[int, str] = {}
    for i in range(N):
        try:
            voted.reload(i).unmask(forged.encode(voted.commitment))
        except InconsistentViews as refusal:
            found[i] = str(refusal)
    samples = {i: sample(forged, N, COLLUDERS, voted.clients[i]._state.vote_key) or set() for i in range(N)}
    assert found.keys() == {i for i in range(N) if 7 in samples[i]}
    assert set(found.values()) == {"member 7 did not sign this client's view of the round"}
    assert 30 < len(found) < 80  # each samples 55 of 110


def test_samples_are_large_enough_and_everybodys_own(voted: Federation) -> None:
    """110 votes, of which an honest view's rival has at most (110 + 11) / 2: 55 draws fool one of 110 with 2^-40."""
    shown = Votes.decode(voted.sent["unmask"][0], voted.commitment)
    size = math.ceil((40 + math.log2(N)) / -math.log2((N + COLLUDERS) / (2 * N)))
    keys = [voted.clients[i]._state.vote_key for i in range(N)]
    samples = [sample(shown, N, COLLUDERS, key) or set() for key in keys]
    assert size == 55
    assert {len(drawn) for drawn in samples} == {size}
    assert len({frozenset(drawn) for drawn in samples}) == N
    times = [sum(i in drawn for drawn in samples) for i in range(N)]
    assert min(times) > 25
    assert max(times) < 85  # mean 55, deviation 5.2
    assert sample(Votes({i: b"" for i in range(99)}), N, COLLUDERS, keys[0]) != samples[0]
    assert sample(Votes({i: b"" for i in range(60)}), N, COLLUDERS, keys[0]) is None  # cannot tell: verify all


def test_samples_cannot_be_foretold_from_what_is_sent() -> None:
    """The key comes from the client's seed alone: the same public data with another seed is another sample."""
    one, two = (Federation(n=4, seed=b"same") for _ in range(2))
    two.seeds[0] = b"other seed of the same member 0!"
    assert one.config == two.config
    keys = [federation.secrets(0).vote_key for federation in (one, two)]
    shown = Votes({i: bytes(64) for i in range(N)})
    assert sample(shown, N, COLLUDERS, keys[0]) != sample(shown, N, COLLUDERS, keys[1])
    one.until("unmask")
    assert one.clients[0]._state.vote_key == keys[0]
    sent = [message for by_member in one.sent.values() for message in by_member.values()]
    assert not any(key in message for message in sent for key in (keys[0], one.seeds[0]))


def test_enough_forged_votes_are_found_by_all(voted: Federation) -> None:
    """49 forged of 110, as many as a second view would need."""
    shown = Votes.decode(voted.sent["unmask"][0], voted.commitment)
    forged = votes(voted, shown.by_member | {i: bytes(64) for i in range(1, 50)})
    for i in range(N):
        with pytest.raises(InconsistentViews):
            voted.reload(i).unmask(forged)


def test_complete_graphs_verify_every_vote() -> None:
    federation = Federation(n=9).until("unmask")
    shown = Votes.decode(federation.sent["unmask"][0], federation.commitment).by_member
    for i in range(1, 9):
        with pytest.raises(InconsistentViews, match=f"member {i} "):
            federation.reload(0).unmask(votes(federation, shown | {i: shown[0]}))


def test_the_honest_round_still_ends(voted: Federation) -> None:
    federation = voted.fork()
    assert federation.finish().clients == N
    assert isinstance(federation.server, SecAggServer)
