"""Mutated bytes at every decoder and every stage: nothing but a `ProtocolViolation`, no hang, no growth."""

from __future__ import annotations

import gc
import random
import tracemalloc

import numpy as np
import pytest

from gradtf_fl.round_messages import STAGES
from gradtf_fl.secagg import MalformedMessage, RoundConfig
from gradtf_fl.secagg.wire.adverts import Directory
from gradtf_fl.secagg.wire.messages import Accepted, Delivery, MemberList, Survivors
from gradtf_fl.secagg.wire.votes import Votes

from .federation import AnyGraphPolicy, Federation
from .fuzz_targets import Moment, Target, decoders, ends, moments, targets_at
from .mutants import Tally

ROUNDS: dict[str, dict[str, object]] = {
    "complete": {"n": 4, "bits": 20},
    "regular": {"n": 12, "degree": 6, "threshold": 5, "quorum": 9, "policy": AnyGraphPolicy()},
    "noise": {"n": 3, "noise_multiplier": 0.5, "noisers": 2},
}


def peak_rss() -> int:
    """Largest resident size of this process so far, in the system's own unit."""
    resource = pytest.importorskip("resource")
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def fuzz(count: int, seed: int) -> Tally:
    """At least ``count`` mutants, spread evenly over all targets; then the fuzzed servers end their honest rounds."""
    rounds = {label: moments(settings) for label, settings in ROUNDS.items()}
    targets = [t for label, found in rounds.items() for moment in found for t in targets_at(moment, label)]
    targets += [*ends(rounds["complete"]), *decoders(rounds)]
    assert len({target.name for target in targets}) == len(targets)
    times = -(-count // len(targets))
    tally = shoot(targets, times, seed)
    for target in targets:
        assert tally.tried[target.name] == times
        assert not (target.hermetic and tally.accepted[target.name]), target.name
    for found in rounds.values():
        finish_honestly(found)
    return tally


def shoot(targets: list[Target], times: int, seed: int) -> Tally:
    """``times`` mutants at each target, in turn. Memory: traced for a tenth of them, resident for all after that."""
    tally = Tally()
    streams = [target.mutants(random.Random(f"{seed}/{target.name}")) for target in targets]

    def turns(number: int) -> None:
        for _ in range(number):
            for target, stream in zip(targets, streams, strict=True):
                tally.take(target.name, target.call, next(stream))

    tenth = min(times // 10, 200)
    turns(tenth)
    gc.collect()
    tracemalloc.start()
    turns(tenth)
    gc.collect()
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 500_000  # bytes
    assert peak < 5_000_000
    resident = peak_rss()
    turns(times - 2 * tenth)
    assert peak_rss() < 1.1 * resident
    return tally


def finish_honestly(found: list[Moment]) -> None:
    """Each server that was fuzzed at a stage ends its round with the honest messages, bit by bit."""
    for number, moment in enumerate(found):
        federation, result = moment.federation, None
        for later in found[number:]:
            for message in later.answers.values():
                federation.receive(later.stage, message)
            result = federation.close(later.stage)
        assert result is not None
        np.testing.assert_array_equal(result.mean, federation.expected(federation.members))


@pytest.mark.long
@pytest.mark.parametrize("count", [20_000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_thousands_of_mutants(count: int) -> None:
    tally = fuzz(count, seed=1)
    assert tally.tried.total() >= count
    assert tally.refusals.total() + tally.accepted.total() == tally.tried.total()
    assert tally.refusals.total() > 0.7 * tally.tried.total()
    assert tally.refusals.keys() >= REACHED


REACHED = {  # refusals that lie deep enough to show that mutants get there
    "MalformedMessage",
    "WrongRound",
    "BadSignature",
    "UnknownIdentity",
    "BadKey",
    "DuplicateKey",
    "AdvertMismatch",
    "OwnKeyMissing",
    "IncompleteShares",
    "UndecryptableShare",
    "SurvivorsNotSubset",
    "TooFewMembers",
    "TooFewNeighbours",
    "InconsistentViews",
    "RosterMismatch",
    "PolicyViolation",
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_mutants() -> None:
    tally = fuzz(1_000_000, seed=2)
    assert tally.tried.total() >= 1_000_000
    assert tally.refusals.keys() >= REACHED


@pytest.mark.parametrize("junk", [b"", b"\0", b"GSA1", "text", None, 7, [1], memoryview(bytes(8))[::2]])
def test_junk(junk: bytes) -> None:
    federation = Federation(n=3).until("share")
    for call in (federation.reload(0).share, federation.server.receive_shares, RoundConfig.decode):
        with pytest.raises(MalformedMessage):
            call(junk)


@pytest.mark.parametrize("value", [Directory, Delivery, Accepted, Survivors, Votes])
def test_counts_cannot_make_anyone_allocate(value: type[Directory | Delivery | MemberList | Votes]) -> None:
    federation = Federation(n=3).until("unmask")
    stages = {Directory: "share", Delivery: "accept", Accepted: "mask", Survivors: "consistency", Votes: "unmask"}
    message = federation.sent[stages[value]][0]
    for count in (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x63"):
        with pytest.raises(MalformedMessage, match="announced"):
            value.decode(message[:37] + count + message[41:], federation.commitment)


def test_every_stage_and_role_is_a_target() -> None:
    names = {t.name for moment in moments({"n": 3}) for t in targets_at(moment, "x")}
    assert names >= {f"x/{stage}/{role}" for stage in STAGES for role in ("server", "server/signed", "state")}
    assert names >= {f"x/{stage}/client" for stage in STAGES[1:]}
