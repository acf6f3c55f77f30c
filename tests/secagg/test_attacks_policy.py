"""A server that proposes too little: what a client refuses before it makes a key."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from gradtf_fl.errors import ConfigError
from gradtf_fl.secagg import (
    ClientPolicy,
    Identity,
    MalformedMessage,
    PolicyViolation,
    Roster,
    RosterMismatch,
    RoundConfig,
    SecAggClient,
    SecAggServer,
    StaleRound,
    TooFewMembers,
    UnknownIdentity,
    topology,
)
from gradtf_fl.secagg.graph import group_members
from gradtf_fl.secagg.wire.messages import MessageKind

from .federation import Federation
from .forging import BODY, adverts_of, directory, lie


def join(config: RoundConfig, policy: ClientPolicy, federation: Federation, i: int = 0) -> SecAggClient:
    return SecAggClient(config, policy, federation.roster, federation.identities[i], last_round=(0, 0))


@pytest.mark.parametrize(
    ("policy", "changes", "reason"),
    [
        (ClientPolicy(), {"threshold": 3, "quorum": 3}, "threshold 3 is below 4"),
        (ClientPolicy(t_min=2), {"threshold": 2, "quorum": 2}, "threshold 2 is below 4"),  # 2t > n + 1 in any case
        (ClientPolicy(), {"threshold": 4, "quorum": 5}, "quorum 5 is not the threshold 4"),
        (ClientPolicy(), {"bits": 32}, None),
        (ClientPolicy(max_bits=24), {"bits": 32}, "32 bits"),
        (ClientPolicy(max_clip=8.0), {"clip": 9.0}, "clip 9.0"),
        (ClientPolicy(), {"weight_rule": "examples", "max_weight": 2.0}, "max_weight 2.0"),
        (ClientPolicy(), {"degree": 3, "threshold": 4}, "degree 3"),
        (ClientPolicy(), {"degree": 4, "threshold": 5, "quorum": 5}, None),
        (ClientPolicy(min_noise=1.0), {}, "noise multiplier 0.0 is below 1.0"),
        (ClientPolicy(t_min=3), {"threshold": 3, "quorum": 3}, "threshold 3 is below 4"),  # one member is enough
        (ClientPolicy(colluders=0.0), {"threshold": 3, "quorum": 3}, "threshold 3 is below 4"),  # at least one
        (ClientPolicy(), {"noise_multiplier": 1.0, "noisers": 3}, None),
        (ClientPolicy(), {"noise_multiplier": 1.0, "noisers": 4}, "only 3 honest"),
        (ClientPolicy(colluders=0.21), {"noise_multiplier": 1.0, "noisers": 3}, "only 2 honest"),
    ],
)
def test_the_policy_overrides_the_server(policy: ClientPolicy, changes: dict[str, object], reason: str | None) -> None:
    """Threshold, modulus, clip, weight, graph and noise below policy."""
    federation = Federation(n=5)
    config = federation.make_config(**changes)
    if reason is None:
        assert join(config, policy, federation).next_stage == "advertise"
    else:
        with pytest.raises(PolicyViolation, match=reason):
            join(config, policy, federation)


def test_all_policy_reasons_are_given_at_once() -> None:
    federation = Federation(n=5)
    with pytest.raises(PolicyViolation) as refusal:
        join(federation.config, ClientPolicy(max_bits=16, max_clip=0.5, t_min=5), federation)
    assert len(refusal.value.reasons) == 3


@pytest.mark.parametrize(
    ("honest", "forged"),
    [
        ({"threshold": 4}, 1),  # one share would open a secret
        ({"threshold": 4}, 0),
        ({"bits": 24}, 1),
        ({"bits": 24}, 2),
        ({"bits": 24}, 8),
        ({"bits": 24}, 64),
    ],
)
def test_a_threshold_or_modulus_that_no_round_has_is_not_even_decoded(honest: dict[str, int], forged: int) -> None:
    federation = Federation(n=5)
    (name,) = honest
    config = federation.make_config(**honest)
    with pytest.raises(ConfigError):
        replace(config, **{name: forged})
    object.__setattr__(config, name, forged)  # what a server may put on the wire all the same
    with pytest.raises(MalformedMessage, match=name):
        RoundConfig.decode(config.encode())


def test_a_modulus_too_small_for_the_members_is_refused() -> None:
    """16 bits for 40,000 organizations leave no integer to a client: a sum would wrap."""
    roster = Roster(tuple(hashlib.sha256(i.to_bytes(4, "big")).digest() for i in range(40_000)))
    config = replace(
        Federation(n=5).config, roster_hash=roster.hash, bits=16, degree=39_999, threshold=26_667, quorum=26_667
    )
    with pytest.raises(PolicyViolation, match="16 bits are too few"):
        ClientPolicy().check(config, roster)
    ClientPolicy().check(replace(config, bits=20), roster)
    with pytest.raises(ConfigError, match="16 bits are too few"):
        SecAggServer(config, roster)


def test_two_organizations_need_an_explicit_flag() -> None:
    with pytest.raises(ConfigError, match="allow_two"):
        ClientPolicy(n_min=2)
    federation = Federation(n=2)
    with pytest.raises(TooFewMembers):
        join(federation.config, ClientPolicy(), federation)


def test_n_below_n_min() -> None:
    federation = Federation(n=6)
    with pytest.raises(TooFewMembers, match="6 organizations in the round, policy wants 7"):
        join(federation.config, ClientPolicy(n_min=7), federation)


def test_rounds_only_go_up() -> None:
    """An old round or attempt cannot be replayed."""
    federation = Federation(n=3)
    for last, fresh in (((0, 9), True), ((1, 0), False), ((1, 1), False), ((2, 0), False)):
        arguments = (federation.config, federation.policy, federation.roster, federation.identities[0])
        if fresh:
            SecAggClient(*arguments, last_round=last)
        else:
            with pytest.raises(StaleRound):
                SecAggClient(*arguments, last_round=last)


def test_the_roster_is_pinned() -> None:
    """A Sybil on the server's own roster; and somebody who is on none."""
    federation = Federation(n=3)
    outsider = Identity.generate(lambda size: b"o" * size)
    sybil = Roster((*federation.roster.keys, outsider.public))
    config = federation.make_config(roster_hash=sybil.hash, degree=3)
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


# -- groups -----------------------------------------------------------------------------------------------


def outsider_of(federation: Federation) -> int:
    return next(i for i in range(federation.n) if i not in federation.members)


def test_a_client_is_not_drawn_into_a_group_that_is_not_its_own() -> None:
    """Else a server could sum it with others and subtract. The roster alone makes the groups."""
    federation = Federation(n=15, groups=3, group=1)
    with pytest.raises(UnknownIdentity, match="not in group 1 of 3"):
        join(federation.config, ClientPolicy(), federation, outsider_of(federation))


def test_members_of_other_groups_are_not_in_the_round() -> None:
    federation = Federation(n=15, groups=3, group=1)
    stranger, me = outsider_of(federation), federation.members[0]
    adverts = adverts_of(federation)
    foreign = lie(federation, stranger, MessageKind.ADVERT, adverts[me][BODY])  # on the roster, and well signed
    with pytest.raises(UnknownIdentity, match="not in this stage"):
        federation.server.receive_advert(foreign)
    with pytest.raises(UnknownIdentity, match="not in this round"):
        federation.clients[me].share(directory(federation, adverts | {stranger: foreign}, me))


@pytest.mark.parametrize(("n", "refused"), [(14, True), (15, False)])
def test_a_group_of_fewer_than_five_is_refused(n: int, refused: bool) -> None:
    federation = Federation(n=n)
    group, members = min(enumerate(group_members(federation.roster, 3, g) for g in range(3)), key=lambda g: len(g[1]))
    size, shape = len(members), topology(len(members))
    config = federation.make_config(
        groups=3, group=group, degree=size - 1, threshold=shape.threshold, quorum=shape.quorum
    )
    if refused:
        with pytest.raises(TooFewMembers, match="4 organizations in the round, policy wants 5"):
            join(config, ClientPolicy(), federation, members[0])
    else:
        assert join(config, ClientPolicy(), federation, members[0])
    with pytest.raises(TooFewMembers, match="policy wants 6"):
        join(config, ClientPolicy(n_min=6), federation, members[0])


def test_groups_are_summed_apart() -> None:
    sums = [Federation(n=15, groups=3, group=group).run({}) for group in range(3)]
    for group, result in enumerate(sums):
        federation = Federation(n=15, groups=3, group=group)
        np.testing.assert_array_equal(result.mean, federation.expected(federation.members))
        assert result.clients == 5
