"""Everything in the protocol that takes bytes from outside, each with honest bytes to mutate."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gradtf_fl.errors import RoundAborted
from gradtf_fl.round_messages import STAGES, Stage
from gradtf_fl.secagg import (
    BeaconProof,
    ProtocolViolation,
    RoundConfig,
    SecAggClient,
    commitment_of,
    decode_configs,
    encode_configs,
)
from gradtf_fl.secagg.wire.adverts import Advert, Directory
from gradtf_fl.secagg.wire.messages import (
    Accepted,
    Complaints,
    Delivery,
    MessageKind,
    SealedShares,
    Survivors,
    Unmasking,
)
from gradtf_fl.secagg.wire.votes import Votes

from .drawing import Draw
from .federation import Federation
from .forging import BODY, lie
from .mutants import mutants, rearranged, subset

KINDS = dict(
    zip(
        STAGES,
        (
            MessageKind.ADVERT,
            MessageKind.SHARES,
            MessageKind.COMPLAINTS,
            MessageKind.MASKED,
            MessageKind.VOTE,
            MessageKind.UNMASKING,
        ),
        strict=True,
    )
)
Stream = Callable[[random.Random], Iterator[bytes]]


@dataclass
class Target:
    """Something that takes bytes, and where they come from. ``hermetic``: no mutant at all can be right."""

    name: str
    mutants: Stream
    call: Callable[[bytes], object]
    hermetic: bool = False


def mutations(*pool: bytes) -> Stream:
    return lambda rng: mutants(pool, rng)


@dataclass
class Moment:
    """A round just before a stage, and what honest members will answer."""

    stage: Stage
    federation: Federation
    stored: dict[int, bytes]
    answers: dict[int, bytes]

    def received(self) -> dict[int, bytes]:
        """What the server has sent to each member for this stage."""
        return self.federation.sent.get(self.stage, {})

    def client(self, stored: bytes, i: int = 0) -> SecAggClient:
        federation = self.federation
        return SecAggClient.from_bytes(stored, federation.policy, federation.roster, federation.identities[i])

    def call(self, client: SecAggClient, message: bytes) -> bytes:
        if self.stage == "advertise":
            return client.advertise()
        if self.stage == "mask":
            return next(client.mask(message, self.federation.vectors[0]))
        answer: bytes = getattr(client, self.stage)(message)
        return answer


def moments(settings: dict[str, Any]) -> list[Moment]:
    """A whole honest round."""
    federation, found = Federation(**settings), []
    for stage in STAGES:
        stored = {i: client.to_bytes() for i, client in federation.clients.items()}
        before = federation.fork()
        found.append(Moment(stage, before, stored, {i: federation.answer(stage, i) for i in federation.members}))
        for message in found[-1].answers.values():
            federation.receive(stage, message)
        federation.close(stage)
    return found


def targets_at(moment: Moment, label: str) -> Iterator[Target]:
    """The server, with messages as they are and with bodies that a member signs; a client; its stored state."""
    stage, federation = moment.stage, moment.federation
    name, answers = f"{label}/{stage}", tuple(moment.answers.values())
    yield Target(f"{name}/server", mutations(*answers), lambda m: federation.receive(stage, m), hermetic=True)

    liar, lied_to = federation.n - 1, federation.fork()

    def signed_lie(body: bytes) -> None:
        lied_to.receive(stage, lie(federation, liar, KINDS[stage], body))
        lied_to.server = copy.deepcopy(federation.server)  # it was taken: a fresh server for the next

    yield Target(f"{name}/server/signed", mutations(*(answer[BODY] for answer in answers)), signed_lie)

    received = moment.received()
    if received:

        def client_stage(message: bytes) -> None:
            moment.call(moment.client(moment.stored[0]), message)

        hermetic = stage == "share" and label != "regular"
        yield Target(f"{name}/client", mutations(*received.values()), client_stage, hermetic)
        yield Target(f"{name}/client/wellformed", lambda rng: wellformed(moment, rng), client_stage)

    def stored_state(data: bytes) -> None:
        client = moment.client(data)
        if client.next_stage == stage:
            try:
                moment.call(client, received.get(0, b""))
            except ProtocolViolation:
                raise
            except ValueError as error:  # nobody but the organization itself writes there: no name is owed
                raise ProtocolViolation("the store is damaged") from error

    yield Target(f"{name}/state", mutations(moment.stored[0]), stored_state)


def wellformed(moment: Moment, rng: random.Random) -> Iterator[bytes]:
    """What a lying server can make of honest material: it decodes, and lists, keys or signatures are wrong."""
    received = moment.received()
    while True:
        lying = rewritten(moment.stage, received, moment.federation.commitment, rng)
        if lying != received[0]:
            yield lying


def rewritten(stage: str, received: dict[int, bytes], c: bytes, rng: random.Random) -> bytes:
    message = received[0]
    match stage:
        case "share":
            honest = Directory.decode(message, c)
            hashes = rearranged(honest.hashes, rng) if rng.random() < 0.5 else honest.hashes
            adverts = list(honest.adverts)
            for _ in range(rng.randrange(3)):
                other = Directory.decode(received[rng.choice(sorted(received))], c).adverts
                adverts[rng.randrange(len(adverts))] = rng.choice(other)
            return Directory(hashes, tuple(adverts)).encode(c)
        case "accept":
            delivery = Delivery.decode(message, c)
            members = subset(delivery.members, rng)
            sealed = {j: s for j, s in delivery.sealed.by_peer.items() if j in members}
            if rng.random() < 0.7:
                sealed = rearranged(delivery.sealed.by_peer, rng)
            return Delivery(tuple(members), SealedShares(sealed)).encode(c)
        case "mask":
            members = subset({*Accepted.decode(message, c).members, rng.randrange(30)}, rng, leave_out=6)
            return Accepted(tuple(members)).encode(c)
        case "consistency":
            members = subset({*Survivors.decode(message, c).members, rng.randrange(30)}, rng, leave_out=6)
            return Survivors(tuple(members)).encode(c)
    return Votes(rearranged(Votes.decode(message, c).by_member, rng)).encode(c)


def ends(found: list[Moment]) -> Iterator[Target]:
    """A lying member's masked vector or shares are taken, and the round runs to its end: a sum or `RoundAborted`."""

    def at(number: int) -> Callable[[bytes], None]:
        moment = found[number]
        pristine, liar = copy.deepcopy(moment.federation.server), moment.federation.n - 1

        def call(body: bytes) -> None:
            federation = copy.copy(moment.federation)
            federation.server = copy.deepcopy(pristine)
            federation.receive(moment.stage, lie(federation, liar, KINDS[moment.stage], body))
            with suppress(RoundAborted):
                for later in found[number:]:
                    for i, message in later.answers.items():
                        if (later.stage, i) != (moment.stage, liar):
                            federation.receive(later.stage, message)
                    federation.close(later.stage)

        return call

    for number in (2, 3, 5):
        pool = tuple(answer[BODY] for answer in found[number].answers.values())
        yield Target(f"{found[number].stage}/to the end", mutations(*pool), at(number))


def canonical(decode: Callable[[bytes], Any], encode: Callable[[Any], bytes]) -> Callable[[bytes], None]:
    """What is decoded has no second encoding."""

    def call(data: bytes) -> None:
        assert encode(decode(data)) == data

    return call


def decoders(rounds: dict[str, list[Moment]]) -> Iterator[Target]:
    """Every value with an encoding of its own."""
    everything = [moment for found in rounds.values() for moment in found]
    bodies = {s: [a[BODY] for m in everything if m.stage == s for a in m.answers.values()] for s in STAGES}
    last = {label: found[-1].federation for label, found in rounds.items()}
    regular, c = last["regular"], last["regular"].commitment
    signed: dict[str, Any] = {"advertise": Advert, "share": SealedShares, "accept": Complaints, "unmask": Unmasking}
    for stage, value in signed.items():
        yield Target(value.__name__, mutations(*bodies[stage]), canonical(value.decode, lambda v: v.encode()))
    sent: dict[Any, dict[int, bytes]] = {
        Directory: regular.sent["share"],
        Delivery: regular.sent["accept"],
        Accepted: regular.sent["mask"],
        Survivors: regular.sent["consistency"],
        Votes: regular.sent["unmask"],
    }
    for value, messages in sent.items():
        call = canonical(lambda data, value=value: value.decode(data, c), lambda v: v.encode(c))
        yield Target(value.__name__, mutations(*messages.values()), call)
    configs = [federation.config for federation in last.values()]
    encoded = (config.encode() for config in configs)
    yield Target("RoundConfig", mutations(*encoded), canonical(RoundConfig.decode, lambda v: v.encode()))
    several = (encode_configs(configs), encode_configs(configs[:1]))
    yield Target("configs", mutations(*several), canonical(decode_configs, encode_configs))
    proof = Draw().proof().encode()
    yield Target("BeaconProof", mutations(proof), canonical(BeaconProof.decode, lambda v: v.encode()))
    yield Target("commitment_of", mutations(*(m[:60] for m in regular.sent["unmask"].values())), commitment_of)
