"""What a lying server can do in the rounds of any member: one suite for all kinds of member.

`HostileServer` is what the suite needs of a kind; `RoundMoves` is inherited by a test class that has a fixture
``hostile`` of that kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pytest

from gradtf_fl.round_messages import Stage
from gradtf_fl.secagg import RoundConfig, SamplePlan, encode_configs

ATTEMPTS = 4  # of the default policy


class HostileServer(Protocol):
    """A server, and one member with the default policy and a roster of five, fresh for each move."""

    def config(self, round_number: int = 1, start: int = 0, **changes: Any) -> RoundConfig:
        """An honest round's configuration from the ``start``-th model, but for ``changes``; a new attempt each time."""

    def begin_code(self, configs: object, start: int = 0) -> str | None:
        """Refusal code of a begin with the ``start``-th model; None for an advert."""

    def stage_code(self, stage: str, payload: bytes = b"") -> str | None:
        """Refusal code of a message of a stage of round 1, attempt 0."""

    def log(self) -> str:
        """What the member noted at home."""

    def trained(self) -> int:
        """How often it has trained."""

    def change(self, **policy: Any) -> None:
        """Set keys of its policy."""


@dataclass(frozen=True)
class Move:
    """What a server does, the codes that come back, and how often the member has trained then."""

    play: Callable[[HostileServer], list[str | None]]
    codes: tuple[str | None, ...]
    trained: int = 0
    says: str = ""


def config(code: str | None, says: str = "", trained: int = 0, **changes: Any) -> Move:
    """One begin with such a configuration."""
    return Move(lambda server: [server.begin_code(encode_configs([server.config(**changes)]))], (code,), trained, says)


def configs(make: Callable[[HostileServer], object], code: str, says: str = "") -> Move:
    """One begin with such configurations."""
    return Move(lambda server: [server.begin_code(make(server))], (code,), 0, says)


def three_groups(server: HostileServer) -> bytes:
    config = server.config(groups=3, degree=1, threshold=2, quorum=2)
    return encode_configs([replace(config, group=group) for group in range(3)])


def old_version(server: HostileServer) -> bytes:
    data = bytearray(server.config().encode())
    data[7] = 1
    return len(data).to_bytes(4, "big").join([(1).to_bytes(4, "big"), bytes(data)])


def attempts(*numbers: int) -> Callable[[HostileServer], list[str | None]]:
    return lambda server: [server.begin_code(encode_configs([server.config(attempt=number)])) for number in numbers]


def stages(*names: str) -> Callable[[HostileServer], list[str | None]]:
    """A begin where the first is "advertise", then these stages with nothing in them."""

    def play(server: HostileServer) -> list[str | None]:
        first = [server.begin_code(encode_configs([server.config()]))] if names[0] == "advertise" else []
        return [*first, *(server.stage_code(name) for name in names[len(first) :])]

    return play


def twice(server: HostileServer) -> list[str | None]:
    begin = encode_configs([server.config()])
    return [server.begin_code(begin), server.begin_code(begin)]


def an_older_round(server: HostileServer) -> list[str | None]:
    first, second = (encode_configs([server.config(number)]) for number in (1, 2))
    return [server.begin_code(second), server.begin_code(first)]


def another_start(server: HostileServer) -> list[str | None]:
    """The second attempt at a round starts from another model, which its configuration agrees with."""
    return [server.begin_code(encode_configs([server.config(2, start)]), start) for start in (0, 1)]


def junk_then_again(server: HostileServer) -> list[str | None]:
    first = server.begin_code(encode_configs([server.config()]))
    return [first, *(server.stage_code("share", b"junk") for _ in range(2))]


def draws(server: HostileServer) -> list[str | None]:
    """Two attempts at a beacon, and the first one again: no model comes along, and nothing is trained."""
    draw = {"round": 0, "dim": 1, "model_hash": bytes(32), "dp": SamplePlan(4).canonical()}
    begins = [encode_configs([server.config(attempt=attempt, **draw)]) for attempt in (0, 1, 0)]
    return [server.begin_code(begin) for begin in begins]


def a_long_message(server: HostileServer) -> list[str | None]:
    return [server.begin_code(encode_configs([server.config()])), server.stage_code("share", bytes(3_000_000))]


MOVES: dict[str, Move] = {
    "honest": config(None, trained=1),
    # the configuration
    "examples": config("policy", "weight rule examples is not among uniform", weight_rule="examples"),
    "a tiny largest weight": config(
        "policy", "max_weight 1e-300 is below 1e-06", weight_rule="examples", max_weight=1e-300
    ),
    "a largest weight of 2": config("policy", "max_weight 2.0 is above 1", weight_rule="examples", max_weight=2.0),
    "three groups": configs(three_groups, "policy", "split into 3 groups, not 1"),
    "round 0 with a model": config("policy", "in a round 0 over one zero", round=0, attempt=0),
    "round 0": config(None, round=0, dim=1, model_hash=bytes(32), dp=SamplePlan(4).canonical()),
    "round 0 twice": Move(draws, (None, None, "stale")),
    "round 0 with a low threshold": config(
        "policy",
        "threshold 3 is below 4",
        round=0,
        dim=1,
        model_hash=bytes(32),
        dp=SamplePlan(4).canonical(),
        threshold=3,
        quorum=3,
    ),
    "a sample by a beacon of its own": config(
        "policy", "sample", sample=4, beacon=b"b" * 32, degree=3, threshold=4, quorum=4
    ),
    "clip 100": config("policy", "clip 100.0 is above 64", clip=100.0),
    "clip denormal": config("policy", "clip of 1e-310 is below", clip=1e-310),
    "threshold 2": config("policy", "threshold 2 is below 4", threshold=2, quorum=2),
    "another roster": config("policy", "another roster", roster_hash=bytes(32)),
    "another model": config("model_hash", model_hash=bytes(32)),
    "dim 5": config("model_hash", dim=5),
    "dim 2^31 - 1": config("model_hash", dim=2**31 - 1),
    "a run's name of 60 kB": config("protocol", "the run's name", run_id="r" * 60_000),
    "a run's name with escapes": config("protocol", "the run's name", run_id="\x1b[2J"),
    "a plan that is no JSON": config("protocol", dp="{"),
    "a plan of brackets": config("protocol", dp="[" * 60_000),
    "an empty plan": config("protocol", dp="{}"),
    "no patience": config(None, deadline_s=1e-300, trained=1),
    "a nonce of zeros": config(None, nonce=bytes(32), trained=1),
    "noise that overflows": config("policy", "bits", noise_multiplier=1e6, noisers=2),
    "protocol version 1": configs(old_version, "protocol", "version must be 3"),
    "3 MB of configurations": configs(lambda _: bytes(3_000_000), "protocol", "3000000 bytes are more than"),
    "no configuration": configs(lambda _: encode_configs([]), "policy", "no configuration"),
    "junk for a configuration": configs(lambda _: b"junk", "protocol"),
    "a number for configurations": configs(lambda _: 1, "protocol"),
    # again, and out of order
    "a begin twice": Move(twice, (None, "stale"), 1),
    "an older round": Move(an_older_round, (None, "stale"), 1),
    "a lower attempt": Move(attempts(5, 4), (None, "stale"), 1),
    "six attempts": Move(  # one update, never masked, is trained once
        attempts(0, 1, 7, 2**20, 2**31, 2**32 - 1),
        (None,) * ATTEMPTS + ("policy",) * 2,
        1,
        f"had {ATTEMPTS} attempts here, not fewer than",
    ),
    "another start for an attempt": Move(another_start, (None, "model_hash"), 1, "started from another model"),
    "share without a begin": Move(stages("share"), ("stale",)),
    "unmask without a begin": Move(stages("unmask"), ("stale",)),
    "mask after the begin": Move(stages("advertise", "mask", "mask"), (None, "protocol", "stale"), 1),
    "consistency after the begin": Move(stages("advertise", "consistency"), (None, "protocol"), 1),
    "unmask after the begin": Move(stages("advertise", "unmask", "share"), (None, "protocol", "stale"), 1),
    "junk, then again": Move(junk_then_again, (None, "protocol", "stale"), 1),
    "a message of 3 MB": Move(a_long_message, (None, "protocol"), 1, "a message of 3000000 bytes"),
    "an unknown stage": Move(stages("evil"), ("protocol",)),
}

LIMITS: dict[str, tuple[dict[str, Any], str]] = {
    "weight_rules": ({"weight_rules": ("examples",)}, "weight rule uniform is not among examples"),
    "groups": ({"groups": 3}, "split into 1 groups, not 3"),
    "t_min": ({"t_min": 5}, "threshold 4 is below 5"),
    "max_bits": ({"max_bits": 16}, "24 bits are more than 16"),
    "max_clip": ({"max_clip": 1e-3}, "is above 0.001"),
    "min_noise": ({"min_noise": 1.0}, "noise multiplier 0.0 is below 1"),
    "colluders": ({"colluders": 0.45}, "lets 3 colluders"),
}


class RoundMoves:
    """Every kind of member refuses each of these, or is not harmed by it, and trains no more often than it should."""

    @pytest.mark.parametrize("name", MOVES)
    def test_a_move_is_refused_or_harmless(self, hostile: HostileServer, name: str) -> None:
        move = MOVES[name]
        assert tuple(move.play(hostile)) == move.codes
        assert hostile.trained() == move.trained
        assert move.says in hostile.log()
        assert len(hostile.log()) < 5000

    @pytest.mark.parametrize("name", LIMITS)
    def test_a_limit_of_its_own_file_is_kept(self, hostile: HostileServer, name: str) -> None:
        policy, says = LIMITS[name]
        hostile.change(**policy)
        assert hostile.begin_code(encode_configs([hostile.config()])) == "policy"
        assert says in hostile.log()
        assert hostile.trained() == 0

    @pytest.mark.parametrize("stage", ["share", "accept", "mask", "consistency", "unmask"])
    def test_a_wrong_message_ends_the_round(self, hostile: HostileServer, stage: Stage) -> None:
        assert hostile.begin_code(encode_configs([hostile.config()])) is None
        assert hostile.stage_code(stage, b"junk") == "protocol"
        assert hostile.stage_code(stage, b"junk") == "stale"
