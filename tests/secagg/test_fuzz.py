"""Mutated bytes: nothing but a `ProtocolViolation` ever comes out, and an honest round goes on afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import pytest

from gradtf_fl.secagg import MalformedMessage, ProtocolViolation, RoundConfig, SecAggClient
from gradtf_fl.secagg.messages import Kind, signed

from .federation import Federation

MUTANTS = 300  # of each message


def mutants(message: bytes, seed: int, count: int = MUTANTS) -> Iterator[bytes]:
    """Flipped bits, overwritten lengths, cuts, insertions, doubled regions; never the message itself."""
    rng = random.Random(seed)
    while count:
        data = bytearray(message)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            at = rng.randrange(len(data) + 1)
            match rng.randrange(6):
                case 0 if at < len(data):
                    data[at] ^= 1 << rng.randrange(8)
                case 1:
                    data[at : at + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\0\0\0\1", b"\x7f\xff\xff\xff"))
                case 2:
                    del data[at:]
                case 3:
                    del data[at : at + rng.randrange(1, 40)]
                case 4:
                    data[at:at] = rng.randbytes(rng.randrange(1, 9))
                case 5:
                    data[at:at] = data[at : at + rng.randrange(1, 80)]
            if not data:
                data = bytearray(b"\0")
        if bytes(data) != message:
            count -= 1
            yield bytes(data)


def refused(call: Callable[[bytes], object], message: bytes, seed: int) -> int:
    """How many mutants were refused; any exception but a ProtocolViolation fails the test."""
    number = 0
    for mutant in mutants(message, seed):
        try:
            call(mutant)
        except ProtocolViolation:
            number += 1
    return number


def test_clients_refuse_mutated_broadcasts() -> None:
    federation = Federation(n=4).until("share")
    assert refused(lambda m: federation.reload(0).share(m), federation.adverts, 1) == MUTANTS
    federation.share()
    delivery, vector = federation.deliveries[0], federation.vectors[0]
    assert refused(lambda m: federation.reload(0).mask(m, vector), delivery, 2) == MUTANTS
    federation.mask()
    assert refused(lambda m: federation.reload(0).consistency(m), federation.survivors, 3) > MUTANTS * 0.9
    federation.consistency()
    assert refused(lambda m: federation.reload(0).unmask(m), federation.votes, 4) > MUTANTS * 0.9
    np.testing.assert_array_equal(federation.unmask().mean, federation.expected(range(4)))


KINDS = {
    "advertise": (Kind.ADVERT, "receive_advert"),
    "share": (Kind.SHARES, "receive_shares"),
    "mask": (Kind.MASKED, "receive_masked"),
    "consistency": (Kind.VOTE, "receive_consistency"),
    "unmask": (Kind.UNMASKING, "receive_unmask"),
}


@pytest.mark.parametrize("bits", [20, 24])
def test_the_server_refuses_mutated_messages_and_survives(bits: int) -> None:
    """Each message mutated as a whole, then its body mutated and signed again by a lying member."""
    federation = Federation(n=4, bits=bits)

    def answer(i: int, stage: str) -> bytes:
        client = federation.clients[i]
        match stage:
            case "advertise":
                return client.advertise()
            case "share":
                return client.share(federation.adverts)
            case "mask":
                return client.mask(federation.deliveries[i], federation.vectors[i])
            case "consistency":
                return client.consistency(federation.survivors)
        return client.unmask(federation.votes)

    for number, (stage, (kind, receive)) in enumerate(KINDS.items()):
        honest = [answer(i, stage) for i in range(4)]
        assert refused(getattr(federation.server, receive), honest[0], number) == MUTANTS
        server = federation.copy_of_server()
        for body in mutants(honest[3][41:-64], 10 + number, 100):
            lie = signed(federation.identities[3].sign, kind, federation.config.commitment, 3, body)
            with suppress(ProtocolViolation):
                getattr(server, receive)(lie)
                server = federation.copy_of_server()
        for message in honest:
            getattr(federation.server, receive)(message)
        match stage:
            case "advertise":
                federation.adverts = federation.server.close_advertise()
            case "share":
                by_key = federation.server.close_share()
                federation.deliveries = [by_key[key] for key in federation.roster.keys]
            case "mask":
                federation.survivors = federation.server.close_mask()
            case "consistency":
                federation.votes = federation.server.close_consistency()
    np.testing.assert_array_equal(federation.server.close_unmask().mean, federation.expected(range(4)))


def test_mutated_configurations_and_states() -> None:
    federation = Federation(n=4).until("unmask")
    honest = federation.config.encode()
    for mutant in mutants(honest, 20, 600):
        try:
            config = RoundConfig.decode(mutant)
        except ProtocolViolation:
            continue
        assert config.encode() == mutant  # one encoding for each configuration
        assert config.commitment != federation.config.commitment
    stored = federation.clients[0].to_bytes()
    for mutant in mutants(stored, 21, 600):
        with suppress(ProtocolViolation):
            SecAggClient.from_bytes(mutant, federation.policy, federation.roster, federation.identities[0])


@pytest.mark.parametrize("junk", [b"", b"\0", b"GSA1", "text", None, 7, [1], memoryview(bytes(8))[::2]])
def test_junk(junk: bytes) -> None:
    federation = Federation(n=3).until("share")
    for call in (federation.reload(0).share, federation.server.receive_shares, RoundConfig.decode):
        with pytest.raises(MalformedMessage):
            call(junk)


def test_counts_cannot_make_anyone_allocate() -> None:
    federation = Federation(n=3).until("share")
    bomb = federation.adverts[:37] + b"\xff\xff\xff\xff"
    with pytest.raises(MalformedMessage, match="announced"):
        federation.clients[0].share(bomb)
