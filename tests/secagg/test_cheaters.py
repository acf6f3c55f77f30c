"""A member that seals garbage, or accuses without cause, is named and shut out; the round goes on without it."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import replace

import numpy as np
import pytest

from gradtf_fl.errors import RoundAborted
from gradtf_fl.secagg import (
    BadKey,
    BadProof,
    BadSignature,
    DuplicateMessage,
    Evidence,
    MalformedMessage,
    ProtocolViolation,
    SecureSum,
    UndecryptableShare,
    UnjustEvidence,
    UnknownIdentity,
    WrongRound,
)
from gradtf_fl.secagg.crypto import agreement_proof as curve
from gradtf_fl.secagg.crypto import primitives as crypto
from gradtf_fl.secagg.crypto.agreement_proof import (
    ORDER,
    AgreementProof,
    check_possession,
    check_provable,
    prove,
    prove_possession,
    verify_proof,
)
from gradtf_fl.secagg.crypto.shamir import PRIME
from gradtf_fl.secagg.evidence import channel_context
from gradtf_fl.secagg.wire.adverts import Directory
from gradtf_fl.secagg.wire.messages import (
    CIPHERTEXT_BYTES,
    Complaints,
    Delivery,
    MessageKind,
    SealedShares,
    sealed_statement,
)

from .federation import AnyGraphPolicy, Federation
from .forging import BODY, accepted, adverts_of, delivery, lie, opened, sealed_by, signed_by


def garbled(federation: Federation, liar: int, targets: tuple[int, ...]) -> bytes:
    """The liar's shares, with signed noise for ``targets``."""
    sealed = SealedShares.decode(federation.answer("share", liar)[BODY]).by_peer
    for target in targets:
        sealed[target] = signed_by(federation, liar, target, bytes([target]) * CIPHERTEXT_BYTES)
    return lie(federation, liar, MessageKind.SHARES, SealedShares(sealed).encode())


def sealed_garbage(federation: Federation, liar: int, targets: tuple[int, ...]) -> Federation:
    """The round up to "accept", in which ``liar`` sealed noise for ``targets``."""
    federation.until("share")
    for i in federation.members:
        federation.receive("share", garbled(federation, i, targets) if i == liar else federation.answer("share", i))
    federation.close("share")
    return federation


def finished(federation: Federation, out: set[int]) -> SecureSum:
    """From "mask" to the sum, without ``out``."""
    return federation.run({"accept": sorted(out)}, start="mask")


def complaints(federation: Federation, accuser: int, proofs: dict[int, bytes]) -> bytes:
    return lie(
        federation, accuser, MessageKind.COMPLAINTS, Complaints(federation.server._adverts_root, proofs).encode()
    )


def proof_of(federation: Federation, accuser: int, accused: int) -> bytes:
    """A true proof of the secret that both share, whatever it is used for."""
    key = crypto.x25519_public(federation.secrets(accused).encryption_private)
    context = channel_context(federation.commitment, accused, accuser)
    return prove(federation.secrets(accuser).encryption_private, key, context).encode()


def named(federation: Federation) -> set[int]:
    """Who is out; each piece of evidence convicts the one it is filed under, for anybody who reads it again."""
    found = set()
    for key, evidence in federation.server.cheaters.items():
        cheater = Evidence.decode(evidence.encode()).cheater(federation.roster)
        assert federation.roster.keys[cheater] == key
        found.add(cheater)
    return found


# -- a liar that seals garbage ----------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [(0,), (0, 3), (0, 1, 2, 3)], ids=["one", "two", "all"])
def test_garbage_names_its_sender_and_the_round_goes_on(targets: tuple[int, ...]) -> None:
    """Garbage to one cost that one its place; to two, the whole round after everybody had trained."""
    federation = sealed_garbage(Federation(n=5), 4, targets)
    federation.play("accept")
    assert named(federation) == {4}
    result = finished(federation, {4})
    np.testing.assert_array_equal(result.mean, federation.expected([0, 1, 2, 3]))


def test_garbage_on_a_regular_graph() -> None:
    federation = Federation(n=12, degree=6, threshold=5, quorum=9, policy=AnyGraphPolicy()).until("share")
    around = federation.server._around[7]
    for i in federation.members:
        federation.receive("share", garbled(federation, i, around[:4]) if i == 7 else federation.answer("share", i))
    federation.close("share")
    federation.play("accept")
    assert named(federation) == {7}
    rest = [i for i in range(12) if i != 7]
    np.testing.assert_array_equal(finished(federation, {7}).mean, federation.expected(rest))


@pytest.mark.parametrize("place", [0, 1], ids=["b", "s"])
def test_a_number_outside_the_field_is_garbage(place: int) -> None:
    federation = Federation(n=4).until("share")
    plain = (PRIME.to_bytes(32, "big"), bytes(32))
    sealed = SealedShares.decode(federation.answer("share", 3)[BODY]).by_peer
    sealed[0] = sealed_by(federation, 3, 0, plain[place] + plain[1 - place])
    for i in range(3):
        federation.receive("share", federation.answer("share", i))
    federation.receive("share", lie(federation, 3, MessageKind.SHARES, SealedShares(sealed).encode()))
    federation.close("share")
    federation.play("accept")
    assert named(federation) == {3}


def test_a_badly_signed_ciphertext_never_leaves_the_server() -> None:
    """Else its recipient could prove nothing, and would have to leave."""
    federation = Federation(n=4).until("share")
    sealed = SealedShares.decode(federation.answer("share", 3)[BODY]).by_peer
    sealed[0] = sealed[0][:-1] + bytes([sealed[0][-1] ^ 1])
    with pytest.raises(BadSignature):
        federation.receive("share", lie(federation, 3, MessageKind.SHARES, SealedShares(sealed).encode()))
    assert federation.run({"share": [3]}, start="share").clients == 3


def test_more_liars_than_the_quorum_bears_abort_before_anything_is_masked() -> None:
    federation = Federation(n=5).until("share")
    for i in range(5):
        message = garbled(federation, i, (0, 1)) if i in (3, 4) else federation.answer("share", i)
        federation.receive("share", message)
    federation.close("share")
    with pytest.raises(RoundAborted) as aborted:
        federation.play("accept")
    assert (aborted.value.stage, named(federation)) == ("accept", {3, 4})


# -- accusers that lie ------------------------------------------------------------------------------------


def accused_by(federation: Federation, accuser: int, proofs: dict[int, bytes]) -> Federation:
    for i in federation.members:
        message = complaints(federation, i, proofs) if i == accuser else federation.answer("accept", i)
        federation.receive("accept", message)
    federation.close("accept")
    return federation


def wrong_proofs(federation: Federation) -> dict[str, bytes]:
    """Member 4's complaints about member 0, who sealed as it should."""
    true = AgreementProof.decode(proof_of(federation, 4, 0))
    other = AgreementProof.decode(proof_of(federation, 4, 1))
    twisted = next(n.to_bytes(32, "little") for n in range(2, 99) if not on_curve(n.to_bytes(32, "little")))
    return {
        "a true secret under which it opens": true.encode(),
        "another's secret": replace(true, secret=other.secret).encode(),
        "another's proof": other.encode(),
        "a secret of low order": replace(true, secret=bytes(32)).encode(),
        "a secret on the twist": replace(true, secret=twisted).encode(),
        "another sign": replace(true, signs=true.signs ^ 2).encode(),
        "another response": replace(true, response=(true.response + 1) % ORDER).encode(),
        "no proof at all": bytes(97),
        "a number beyond the order": true.encode()[:-32] + b"\xff" * 32,
    }


def on_curve(public: bytes) -> bool:
    try:
        check_provable(public)
    except BadKey:
        return False
    return True


@pytest.mark.parametrize("name", wrong_proofs(Federation(n=5)))
def test_a_false_accuser_is_named_in_the_accused_s_place(name: str) -> None:
    federation = Federation(n=5).until("accept")
    accused_by(federation, 4, {0: wrong_proofs(federation)[name]})
    assert named(federation) == {4}
    np.testing.assert_array_equal(finished(federation, {4}).mean, federation.expected([0, 1, 2, 3]))


def test_a_liar_that_accuses_everybody() -> None:
    federation = Federation(n=5).until("accept")
    accused_by(federation, 2, {i: proof_of(federation, 2, i) for i in (0, 1, 3, 4)})
    assert named(federation) == {2}
    assert finished(federation, {2}).clients == 4


def test_a_liar_that_is_right_about_another_liar() -> None:
    """Both are out; a true complaint stays true."""
    federation = sealed_garbage(Federation(n=8), 7, (6,))
    accused_by(federation, 6, {0: bytes(97), 7: proof_of(federation, 6, 7)})
    assert named(federation) == {6}  # it lied first, and its other complaint was not looked at
    federation = sealed_garbage(Federation(n=8), 0, (6,))
    accused_by(federation, 6, {0: proof_of(federation, 6, 0), 7: bytes(97)})
    assert named(federation) == {0, 6}
    assert finished(federation, {0, 6}).clients == 6


def test_an_accusation_of_another_attempt_proves_nothing() -> None:
    """A true complaint, sent again in the next attempt: the message is refused, and its proof is a false one there."""
    before = sealed_garbage(Federation(n=5), 4, (0,))
    old = before.answer("accept", 0)
    retry = Federation(n=5, attempt=1).until("accept")
    with pytest.raises(WrongRound):
        retry.receive("accept", old)
    accused_by(retry, 0, Complaints.decode(old[BODY]).by_source)
    assert named(retry) == {0}


def test_complaints_come_once_and_about_neighbours() -> None:
    federation = Federation(n=5).until("accept")
    for about in (4, 5):  # oneself, nobody
        with pytest.raises(UnknownIdentity, match="complains about others"):
            federation.receive("accept", complaints(federation, 4, {about: bytes(97)}))
    federation.receive("accept", federation.answer("accept", 4))
    with pytest.raises(DuplicateMessage):
        federation.receive("accept", complaints(federation, 4, {0: bytes(97)}))


# -- a server that lies -----------------------------------------------------------------------------------


def test_a_server_that_alters_a_ciphertext_is_shown_no_secret() -> None:
    """Else it would open the true ciphertext with the secret: a share of every member for each altered one."""
    federation = Federation(n=4).until("accept")
    honest = sealed_for(federation, 0)
    for altered in (
        bytes(CIPHERTEXT_BYTES) + honest[1][CIPHERTEXT_BYTES:],  # under the signature of the true one
        signed_by(federation, 3, 0, bytes(CIPHERTEXT_BYTES)),  # under another member's
        sealed_for(federation, 2)[1],  # the same member's, for another
    ):
        client = federation.reload(0)
        with pytest.raises(UndecryptableShare, match="did not sign it"):
            client.accept(delivery(federation, (0, 1, 2, 3), honest | {1: altered}))
        assert client.next_stage == "refused"


def sealed_for(federation: Federation, i: int) -> dict[int, bytes]:
    return Delivery.decode(federation.sent["accept"][i], federation.commitment).sealed.by_peer


def test_a_server_that_keeps_a_cheater_in_gets_no_masked_vector_of_the_cheated() -> None:
    federation = sealed_garbage(Federation(n=5), 4, (0,))
    federation.answer("accept", 0)
    with pytest.raises(UndecryptableShare, match="are left"):
        federation.clients[0].mask(accepted(federation, 0, 1, 2, 3, 4), federation.vectors[0])


def test_a_complaint_opens_what_the_two_share_and_nothing_else() -> None:
    """The secret shown is that of the pair: with any other member's ciphertext it fails."""
    federation = sealed_garbage(Federation(n=5), 4, (0,))
    shown = AgreementProof.decode(Complaints.decode(federation.answer("accept", 0)[BODY]).by_source[4]).secret
    for source, target in ((1, 0), (0, 1), (2, 1), (4, 1)):
        ciphertext = sealed_for(federation, target)[source][:CIPHERTEXT_BYTES]
        with pytest.raises(UndecryptableShare):
            crypto.unsealed(shown, federation.commitment, source, target, ciphertext)


def test_a_key_made_of_another_member_s_makes_no_complaint_tell_that_member_s_secrets() -> None:
    """Member 4 advertises 2 E, where E is member 1's key, and seals garbage: whoever shows what it shares with 4 shows
    twice what it shares with 1, under which 1's shares lie. With all of them 1's vector is open."""
    federation = Federation(n=5)
    *adverts, own = adverts_of(federation).values()
    victim = curve.lifted(opened(federation, adverts[1]).encryption_key, 0)
    twice = replace(opened(federation, own), encryption_key=key_at(victim, 2)).encode()
    for advert in (*adverts, lie(federation, 4, MessageKind.ADVERT, twice)):
        federation.receive("advertise", advert)
    federation.close("advertise")
    garbage = {i: signed_by(federation, 4, i, bytes(CIPHERTEXT_BYTES)) for i in range(4)}
    for i in range(4):
        federation.receive("share", federation.answer("share", i))
    federation.receive("share", lie(federation, 4, MessageKind.SHARES, SealedShares(garbage).encode()))
    federation.close("share")
    sent = {i: federation.answer("accept", i) for i in range(4)}
    for i in (0, 2, 3):
        (shown,) = Complaints.decode(sent[i][BODY]).by_source.values()
        with contextlib.suppress(BadKey):
            half = key_at(curve.lifted(shown[1:33], 0), (ORDER + 1) // 2)
            with pytest.raises(UndecryptableShare):
                crypto.unsealed(half, federation.commitment, 1, i, sealed_for(federation, i)[1][:CIPHERTEXT_BYTES])
    for message in sent.values():
        federation.receive("accept", message)
    federation.close("accept")
    assert named(federation) == {4}
    np.testing.assert_array_equal(finished(federation, {4}).mean, federation.expected([0, 1, 2, 3]))


@pytest.mark.parametrize("seed", range(4))
def test_a_proof_of_possession_holds_for_its_own_key_and_place_alone(seed: int) -> None:
    replay = Federation(n=2, seed=bytes([seed])).randomness
    private, other = replay(32), replay(32)
    own = crypto.x25519_public(private)
    proof = prove_possession(private, b"context")
    check_possession(proof, own, b"context")
    twice = key_at(curve.lifted(own, 0), 2)
    changed = proof[:-1] + bytes([proof[-1] ^ 1])
    for wrong in (
        (proof, own, b"contexts"),
        (proof, crypto.x25519_public(other), b"context"),
        (proof, twice, b"context"),
        (changed, own, b"context"),
        (b"\xff" * 64, own, b"context"),
        (bytes(64), own, b"context"),
        (proof, (2).to_bytes(32, "little"), b"context"),
    ):
        with pytest.raises(BadProof):
            check_possession(*wrong)


def key_at(point: curve.Point, times: int) -> bytes:
    """The X25519 key of a multiple of a point."""
    _, y = curve._affine(curve._multiple(times, point))
    return ((1 + y) * pow(1 - y, -1, 2**255 - 19) % (2**255 - 19)).to_bytes(32, "little")


def test_evidence_is_about_one_accused_and_one_accuser() -> None:
    federation = sealed_garbage(Federation(n=5), 4, (0, 1))
    federation.play("accept", [0, 1, 2, 3])
    (evidence,) = federation.server.cheaters.values()
    twin = sealed_garbage(Federation(n=5), 4, (0, 1))
    other_advert = Federation(n=5).answer("advertise", 2)
    for wrong in (
        replace(evidence, accused_advert=other_advert),
        replace(evidence, accuser_advert=other_advert),
        replace(evidence, shares=twin.answer("accept", 3)),
        replace(evidence, complaints=complaints(federation, 0, {})),
        replace(evidence, commitment=bytes(32)),
    ):
        with pytest.raises((UnjustEvidence, WrongRound, ValueError)):
            wrong.cheater(federation.roster)


def test_who_signs_two_adverts_frames_nobody() -> None:
    """The server and member 4: what was sealed for, or said about, one of its adverts is no evidence with the other."""
    federation = sealed_garbage(Federation(n=5), 4, (0,))
    federation.play("accept")
    (evidence,) = federation.server.cheaters.values()
    another = federation.client(4, seed=b"x" * 32).advertise()
    hashes = dict(evidence.hashes) | {4: hashlib.sha256(another).digest()}
    root, noise = Directory(hashes, ()).root(federation.commitment), bytes(CIPHERTEXT_BYTES)
    garbage = noise + federation.identities[4].sign(sealed_statement(root, 4, 0, noise))
    shares = lie(federation, 4, MessageKind.SHARES, SealedShares({0: garbage}).encode())
    with pytest.raises(UnjustEvidence, match="other adverts"):  # else 0 would have accused without cause
        replace(evidence, accused_advert=another, shares=shares, hashes=hashes).cheater(federation.roster)

    federation = Federation(n=5).until("share")
    advert, shares = federation.client(0).advertise(), federation.answer("share", 0)
    federation.seeds = [*federation.seeds[:4], b"x" * 32]
    body = Complaints(root, {0: proof_of(federation, 4, 0)}).encode()
    sent = lie(federation, 4, MessageKind.COMPLAINTS, body)
    with pytest.raises(UnjustEvidence, match="has not signed"):  # else 0 would have sealed what does not open
        Evidence(federation.commitment, advert, shares, another, sent, hashes).cheater(federation.roster)


def test_no_byte_of_evidence_can_be_changed() -> None:
    federation = sealed_garbage(Federation(n=5), 4, (0,))
    federation.play("accept")
    (evidence,) = federation.server.cheaters.values()
    data = evidence.encode()
    for at in range(0, len(data), 23):
        with pytest.raises(MalformedMessage):
            Evidence.decode(data[:at])
        flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(ProtocolViolation):
            Evidence.decode(flipped).cheater(federation.roster)


# -- the proof --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_secret_is_the_one_of_x25519_and_the_proof_holds_for_it_alone(seed: int) -> None:
    replay = Federation(n=2, seed=bytes([seed])).randomness
    one, other, third = (replay(32) for _ in range(3))
    own, peer = crypto.x25519_public(one), crypto.x25519_public(other)
    proof = prove(one, peer, b"context")
    assert proof.secret == crypto.x25519(other, own)
    verify_proof(AgreementProof.decode(proof.encode()), own, peer, b"context")
    assert prove(one, peer, b"context") == proof  # one nonce for one statement
    for wrong in ((own, peer, b"contexts"), (peer, own, b"context"), (crypto.x25519_public(third), peer, b"context")):
        with pytest.raises(BadProof):
            verify_proof(proof, *wrong)


def test_a_torsion_component_in_an_advertised_key_gives_no_second_secret() -> None:
    """K + T is as good as K for a liar who grinds; only the one of prime order is let through."""
    replay = Federation(n=2).randomness
    one, peer = replay(32), crypto.x25519_public(replay(32))
    proof = prove(one, peer, b"")
    torsion = (0, -1 % (2**255 - 19), 1, 0)  # order 2
    x, y = curve._affine(curve._sum(curve.lifted(proof.secret, proof.signs >> 1), torsion))
    u = (1 + y) * pow(1 - y, -1, 2**255 - 19) % (2**255 - 19)
    moved = replace(proof, secret=u.to_bytes(32, "little"), signs=(proof.signs & 1) | (x & 1) << 1)
    with pytest.raises(BadProof, match="prime order"):
        verify_proof(moved, crypto.x25519_public(one), peer, b"")
