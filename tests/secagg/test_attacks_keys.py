"""Stage 1: a man in the middle, keys taken twice, phantoms, directories and graphs that are not everybody's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradtf_fl.secagg import (
    AdvertMismatch,
    BadKey,
    BadSignature,
    ClientPolicy,
    DuplicateKey,
    DuplicateMessage,
    Identity,
    IncompleteShares,
    InconsistentViews,
    OwnKeyMissing,
    ProtocolViolation,
    SecAggClient,
    TooFewMembers,
    UnknownIdentity,
    WrongRound,
)
from gradtf_fl.secagg.crypto import primitives as crypto
from gradtf_fl.secagg.graph import Graph
from gradtf_fl.secagg.wire.adverts import Directory
from gradtf_fl.secagg.wire.messages import MessageKind, SealedShares, signed
from gradtf_fl.secagg.wire.votes import Votes

from .federation import AnyGraphPolicy, Federation
from .forging import (
    BODY,
    accepted,
    adverts_of,
    delivery,
    directory,
    hashes_of,
    lie,
    opened,
    sealed_by,
    survivors,
    votes,
)


def test_a_man_in_the_middle_cannot_put_in_its_own_keys() -> None:
    """The server knows the private keys that it shows each side; it has no signature for them."""
    federation = Federation(n=3)
    adverts = adverts_of(federation)
    its = crypto.x25519_public(b"s" * 32), crypto.x25519_public(b"t" * 32)
    body = replace(opened(federation, adverts[1]), encryption_key=its[0], mask_key=its[1]).encode()
    by_hand = adverts[1][:41] + body + adverts[1][-64:]
    by_member_two = lie(federation, 2, MessageKind.ADVERT, body)[:37] + (1).to_bytes(4, "big") + body + bytes(64)
    server = Identity.generate(lambda size: b"s" * size)
    by_server = signed(server.sign, MessageKind.ADVERT, federation.commitment, 1, body)
    for forged in (by_hand, by_member_two, by_server):
        with pytest.raises(BadSignature):
            federation.reload(0).share(directory(federation, adverts | {1: forged}, 0))
        with pytest.raises(BadSignature):
            federation.server.receive_advert(forged)
    with pytest.raises(AdvertMismatch):  # nor under the hash of the true advert
        federation.reload(0).share(
            directory(federation, adverts | {1: lie(federation, 1, MessageKind.ADVERT, body)}, 0, hashes_of(adverts))
        )


def test_unknown_identities_have_no_advert() -> None:
    federation = Federation(n=3)
    adverts = adverts_of(federation)
    outsider = Identity.generate(lambda size: b"o" * size)
    for index, error in ((1, BadSignature), (3, UnknownIdentity)):
        foreign = signed(outsider.sign, MessageKind.ADVERT, federation.commitment, index, adverts[1][BODY])
        with pytest.raises(error):
            federation.server.receive_advert(foreign)
        with pytest.raises(error):
            federation.reload(0).share(directory(federation, adverts | {index: foreign}, 0))


@pytest.mark.parametrize("field", ["mask_key", "encryption_key"])
def test_a_key_cannot_be_taken_twice(field: str) -> None:
    """Else a liar who copies a victim's mask key could cancel its own mask, or be it when shares are asked."""
    federation = Federation(n=3)
    adverts = adverts_of(federation)
    for victim in (0, 1):  # the recipient, and another
        key = opened(federation, adverts[victim]).mask_key
        body = replace(opened(federation, adverts[2]), **{field: key}).encode()
        copied = lie(federation, 2, MessageKind.ADVERT, body)
        with pytest.raises(DuplicateKey):
            federation.reload(0).share(directory(federation, adverts | {2: copied}, 0))
        server = federation.fork().server
        server.receive_advert(adverts[victim])
        with pytest.raises(DuplicateKey):
            server.receive_advert(copied)
    one_for_both = opened(federation, adverts[2])
    one_for_both = replace(one_for_both, mask_key=one_for_both.encryption_key)
    with pytest.raises(DuplicateKey):
        federation.server.receive_advert(lie(federation, 2, MessageKind.ADVERT, one_for_both.encode()))


def test_one_member_cannot_advertise_twice() -> None:
    federation = Federation(n=3)
    adverts = adverts_of(federation)
    second = federation.client(1, seed=b"x" * 32).advertise()
    for shown in ((adverts[1], adverts[1], adverts[2]), (adverts[1], second, adverts[2])):
        with pytest.raises(DuplicateMessage):
            federation.reload(0).share(Directory(hashes_of(adverts), shown).encode(federation.commitment))
    federation.server.receive_advert(adverts[1])
    with pytest.raises(DuplicateMessage):
        federation.server.receive_advert(second)


@pytest.mark.parametrize("key", [bytes(32), bytes([1]) + bytes(31), b"\xff" * 32])
def test_weak_keys(key: bytes) -> None:
    federation = Federation(n=3)
    adverts = adverts_of(federation)
    body = replace(opened(federation, adverts[2]), encryption_key=key).encode()
    with pytest.raises(BadKey):
        federation.clients[0].share(
            directory(federation, adverts | {2: lie(federation, 2, MessageKind.ADVERT, body)}, 0)
        )


def test_a_weak_mask_key_is_refused_before_anything_is_masked() -> None:
    federation = Federation(n=3)
    adverts = adverts_of(federation)
    weak = replace(opened(federation, adverts[2]), mask_key=bytes(32)).encode()
    adverts |= {2: lie(federation, 2, MessageKind.ADVERT, weak)}
    sent = [federation.clients[i].share(directory(federation, adverts, i)) for i in (0, 1)]
    sealed = SealedShares.decode(sent[1][BODY]).by_peer[0]
    secrets = federation.secrets(2)  # the liar can seal proper shares: only its mask key is of low order
    plain = secrets.shares(range(3), 3)[0]
    its = sealed_by(federation, 2, 0, plain.self_share + plain.mask_share)
    federation.clients[0].accept(delivery(federation, (0, 1, 2), {1: sealed, 2: its}))
    with pytest.raises(BadKey):
        federation.clients[0].mask(accepted(federation, 0, 1, 2), federation.vectors[0])


@pytest.mark.parametrize("field", ["mask_key", "encryption_key"])
@pytest.mark.parametrize("key", [bytes(32), (2).to_bytes(32, "little")], ids=["low-order", "on-the-twist"])
def test_the_server_refuses_a_weak_key_so_that_its_owner_alone_is_out(field: str, key: bytes) -> None:
    """Passed on, it would make every other client refuse, and no complaint about its owner could be proved."""
    federation = Federation(n=4)
    adverts = adverts_of(federation)
    weak = replace(opened(federation, adverts[3]), **{field: key}).encode()
    with pytest.raises(BadKey):
        federation.receive("advertise", lie(federation, 3, MessageKind.ADVERT, weak))
    for i in range(3):
        federation.receive("advertise", adverts[i])
    federation.close("advertise")
    assert federation.run({"advertise": [3]}, start="share").clients == 3


# -- the directory ----------------------------------------------------------------------------------------


def test_the_own_advert_must_be_in_u1_unchanged() -> None:
    federation = Federation(n=4)
    adverts = adverts_of(federation)
    hashes = hashes_of(adverts | {0: federation.client(0, seed=b"x" * 32).advertise()})
    without = {i: advert for i, advert in adverts.items() if i}
    for wrong in (
        directory(federation, adverts, 0, hashes),
        Directory(hashes_of(without), tuple(without.values())).encode(federation.commitment),
    ):
        with pytest.raises(OwnKeyMissing):
            federation.reload(0).share(wrong)


def test_an_advert_must_be_the_one_in_the_directory() -> None:
    """Another valid advert of the same member: else neighbours could be shown two keys of it under one graph."""
    federation = Federation(n=4)
    adverts = adverts_of(federation)
    second = federation.client(2, seed=b"x" * 32).advertise()
    with pytest.raises(AdvertMismatch, match="member 2"):
        federation.reload(0).share(directory(federation, adverts | {2: second}, 0, hashes_of(adverts)))
    with pytest.raises(AdvertMismatch, match="member 2"):
        federation.reload(0).share(directory(federation, adverts, 0, hashes_of(adverts | {2: second})))
    listed = {i: value for i, value in hashes_of(adverts).items() if i != 2}
    shown = Directory(listed, (adverts[1], adverts[2], adverts[3]))
    with pytest.raises(AdvertMismatch, match="member 2"):  # not in U1 at all
        federation.reload(0).share(shown.encode(federation.commitment))


def test_adverts_must_come_from_exactly_the_neighbours() -> None:
    federation = Federation(n=4)
    adverts = adverts_of(federation)
    hashes, of = hashes_of(adverts), [adverts[i] for i in range(4)]
    for shown in ((of[1], of[2]), (of[1], of[3], of[2]), ()):
        with pytest.raises(IncompleteShares, match="exactly the neighbours"):
            federation.reload(0).share(Directory(hashes, shown).encode(federation.commitment))
    with pytest.raises(DuplicateKey):  # its own among them
        federation.reload(0).share(Directory(hashes, (*of,)).encode(federation.commitment))


def test_phantom_members_in_u1_have_no_advert_to_show() -> None:
    """The server counts in organizations that never came, to reach the quorum: here 2 of 5 where 4 are needed."""
    federation = Federation(n=5)
    adverts = adverts_of(federation)
    real = {i: adverts[i] for i in (0, 1)}
    phantoms = hashes_of(real) | {i: bytes([i]) * 32 for i in (2, 3)}
    with pytest.raises(IncompleteShares):
        federation.reload(0).share(directory(federation, real, 0, phantoms))
    invented = {i: adverts[1][:37] + i.to_bytes(4, "big") + adverts[1][41:] for i in (2, 3)}
    with pytest.raises(BadSignature):
        federation.reload(0).share(directory(federation, real | invented, 0))
    with pytest.raises(TooFewMembers):
        federation.reload(0).share(directory(federation, real, 0))
    with pytest.raises(UnknownIdentity):  # beyond the roster
        federation.reload(0).share(directory(federation, adverts, 0, hashes_of(adverts) | {9: bytes(32)}))


def test_too_few_in_u1() -> None:
    federation = Federation(n=5, policy=ClientPolicy(t_min=3), threshold=4)
    adverts = adverts_of(federation)
    for count in (2, 3):
        with pytest.raises(TooFewMembers):
            federation.reload(0).share(directory(federation, {i: adverts[i] for i in range(count)}, 0))


def test_messages_of_another_attempt_are_refused() -> None:
    """A replay of adverts, or of a whole directory, from an old round or attempt."""
    federation = Federation(n=3)
    for changes in ({"attempt": 1}, {"round": 2}, {"nonce": bytes(32)}):
        old = federation.make_config(**changes)
        foreign = federation.client(1, old).advertise()
        with pytest.raises(WrongRound):
            federation.server.receive_advert(foreign)
        fresh = federation.fork()
        adverts = adverts_of(fresh)
        with pytest.raises(WrongRound):
            fresh.reload(0).share(Directory(hashes_of(adverts), (adverts[1], adverts[2])).encode(old.commitment))
        with pytest.raises(WrongRound):
            fresh.reload(0).share(directory(fresh, adverts | {1: foreign}, 0))


def test_clients_with_different_global_models_do_not_meet() -> None:
    """An inconsistent model makes the victim's update tell it from the others': C binds the model's hash."""
    federation = Federation(n=3)
    lured = federation.client(0, replace(federation.config, model_hash=b"m" * 32))
    advert = lured.advertise()
    adverts = adverts_of(federation)
    with pytest.raises(WrongRound):
        federation.server.receive_advert(advert)
    with pytest.raises(WrongRound):
        federation.reload(1).share(directory(federation, adverts | {0: advert}, 1))
    relabelled = advert[:5] + federation.commitment + advert[37:]
    with pytest.raises(BadSignature):
        federation.server.receive_advert(relabelled)
    with pytest.raises(WrongRound):
        lured.share(directory(federation, adverts, 0))


# -- the graph --------------------------------------------------------------------------------------------


def circle() -> Federation:
    """n = 12, k = 6, t = 5, Q = 9."""
    return Federation(n=12, degree=6, threshold=5, quorum=9, policy=AnyGraphPolicy())


def root_of(federation: Federation, hashes: dict[int, bytes]) -> bytes:
    return Directory(hashes, ()).root(federation.commitment)


def outcome_of(client: SecAggClient, shown: bytes) -> type[ProtocolViolation] | None:
    try:
        client.share(shown)
    except ProtocolViolation as refusal:
        return type(refusal)
    return None


def test_neighbours_of_a_phantom_refuse_and_the_others_do_not_vote_with_them() -> None:
    """On a k-regular graph only the phantom's k neighbours see that it has no advert: they all leave."""
    federation = circle()
    adverts = adverts_of(federation)
    phantom = 11
    hashes = hashes_of(adverts) | {phantom: b"p" * 32}
    around = Graph(tuple(hashes), 6, root_of(federation, hashes)).neighbours(phantom)
    del adverts[phantom]
    for i in adverts:
        refusal = outcome_of(federation.clients[i], directory(federation, adverts, i, hashes))
        assert refusal is (IncompleteShares if i in around else None), i
    stay = [i for i in adverts if i not in around]
    assert len(stay) == 5 < federation.config.quorum  # so no quorum of real votes is left
    assert all(federation.clients[i].next_stage == "accept" for i in stay)


def test_two_clients_with_different_directories() -> None:
    """Member 0 sees another hash of a member that is its neighbour neither in its graph nor in the true one.

    It cannot know. The server that does its best to keep it in (U2 without those who sealed nothing for it) gets a
    masked vector, but member 0 opens nothing: all others sign for another U1.
    """
    federation = circle()
    true = federation.fork()
    true.play("advertise")
    adverts = adverts_of(federation)
    around = Graph(range(12), 6, root_of(federation, hashes_of(adverts))).neighbours(0)
    stranger = min(set(range(1, 12)) - set(around))
    for number in range(1000):
        hashes = hashes_of(adverts) | {stranger: number.to_bytes(32, "big")}
        lured = set(Graph(range(12), 6, root_of(federation, hashes)).neighbours(0))
        if stranger not in lured.union(around) and len(lured.difference(around)) == 2:
            break
    message = federation.clients[0].share(directory(federation, adverts, 0, hashes))
    assert SealedShares.decode(message[BODY]).by_peer.keys() == lured
    with pytest.raises(IncompleteShares):  # an honest server's graph has other neighbours
        true.receive("share", message)
    others = range(1, 12)
    sent = {i: true.answer("share", i) for i in others}
    for i in others:
        true.receive("share", sent[i])
    true.close("share")
    u2 = tuple(i for i in range(12) if i not in lured.difference(around))
    sealed = {i: SealedShares.decode(sent[i][BODY]).by_peer[0] for i in u2 if i in lured}
    federation.clients[0].accept(delivery(federation, u2, sealed))
    assert next(federation.clients[0].mask(accepted(federation, *u2), federation.vectors[0]))
    federation.clients[0].consistency(survivors(federation, *u2))
    true.play("accept", others)
    true.play("mask", others)
    true.play("consistency", others)
    signed_views = Votes.decode(true.sent["unmask"][1], federation.commitment).by_member
    with pytest.raises(InconsistentViews, match="did not sign this client's view"):
        federation.clients[0].unmask(votes(federation, {i: signed_views[i] for i in u2 if i}))
    assert true.finish(others).clients == 11
