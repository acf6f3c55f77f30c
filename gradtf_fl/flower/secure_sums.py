"""The attempts of a run at its rounds: numbers that are used once, the nodes asked, the sum, its gate, its record.

What `SecureAverage` and the federation of this project share. A round of either is `SecureSums.open`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from gradtf_fl.config import SumSettings
from gradtf_fl.errors import ConfigError, RoundAborted, RoundRejected
from gradtf_fl.flower.exchanges import CONNECT, TTL_MARGIN, patience, wait_for_nodes
from gradtf_fl.flower.groups import combine_groups, gate, groups_needed
from gradtf_fl.flower.records import EventKind, OnEvent, RoundEvent, RoundRecord
from gradtf_fl.flower.run_beacon import RunBeacon, colluders_of, keep_beacon, kept_beacon, sample_plan
from gradtf_fl.flower.run_state import RunState
from gradtf_fl.flower.secure_round import RoundLog, SecureRound
from gradtf_fl.secagg import (
    Floats,
    Roster,
    RoundConfig,
    SecureSum,
    Topology,
    certain_noisers,
    draw_config,
    group_size,
    topology,
)

log = logging.getLogger("flwr").info  # where a run's log comes from
RETURN_S = 20.0  # for a node that was started again between two rounds


def system_randomness(purpose: str) -> bytes:
    """32 bytes of the operating system's entropy, whatever for."""
    return os.urandom(32)


@dataclass(frozen=True)
class RoundStart:
    """What C binds of a round, besides how it is summed.

    Attributes:
        model_hash: SHA-256 of the model that it starts from.
        dim: coordinates of an update vector.
        dp: what each organization computes, as canonical JSON.
    """

    model_hash: bytes
    dim: int
    dp: str


@dataclass(frozen=True)
class Opened:
    """A finished sum.

    Attributes:
        configs: the attempt's configuration for each group.
        mean: float64 [dim] (float32 where it came in several pieces), the groups' means combined.
        sums: the groups' own.
        log: what happened on the way.
        asked: nodes that the round was opened at.
    """

    configs: Sequence[RoundConfig]
    mean: Floats
    sums: Sequence[SecureSum]
    log: RoundLog
    asked: int

    def record(self) -> RoundRecord:
        """The attempt's record, without what comes after the sum."""
        return self.log.record(self.configs[0], "completed")


@dataclass
class SecureSums:
    """A run's secure sums.

    Attributes:
        settings: how they are summed.
        roster: the organizations.
        rounds: of the run.
        state: the run's memory; replaced as it grows.
        save: keeps it where a killed process finds it again, before anything goes out.
        on_event: is told what happens.
        message_type: the one type under which all stages travel; None gives each its own.
        fresh: 32 bytes for a purpose, unpredictable but in a simulation.
        folder: where the run is kept, and with it the proof of its beacon; None keeps it in memory alone.
        beacon: draws the samples of the run; None before its first round, and for rounds of the whole roster.
    """

    settings: SumSettings
    roster: Roster
    rounds: int = 0
    state: RunState = field(default_factory=lambda: RunState("", {}))
    save: Callable[[RunState], None] = lambda state: None
    on_event: OnEvent | None = None
    message_type: str | None = None
    fresh: Callable[[str], bytes] = system_randomness
    folder: Path | None = None
    beacon: RunBeacon | None = None
    _gathered: bool = False  # whether the organizations were waited for, as before the first round

    def __post_init__(self) -> None:
        if len(self.roster) != self.settings.organizations:
            members = self.settings.organizations
            raise ConfigError(f"the roster has {len(self.roster)} keys, the plan {members} organizations")
        if self.settings.sample:
            _ = self.shapes  # ConfigError where a sample of that size may hold too many colluders

    @property
    def shapes(self) -> list[Topology]:
        """Graph, threshold and quorum of each group."""
        settings = self.settings
        if (t := settings.threshold) is not None:
            return [Topology(self._sizes()[0] - 1, t, t)]
        shares = settings.colluders, settings.dropouts
        return [topology(size, *shares, bad=colluders_of(settings, size)) for size in self._sizes()]

    @property
    def quorum(self) -> int:
        """Organizations without which no round can end."""
        return sum(sorted(shape.quorum for shape in self.shapes)[: groups_needed(self.settings.groups)])

    def next_attempt(self, number: int, start: RoundStart) -> list[RoundConfig]:
        """The round's next attempt, used up on disk before anyone hears of it; with a fresh nonce."""
        attempt, settings, shapes = self._attempt(number), self.settings, self.shapes
        nonce = self.fresh(f"nonce/{number}/{attempt}")
        noisers = [
            certain_noisers(size, shape, settings.colluders, colluders_of(settings, size))
            for size, shape in zip(self._sizes(), shapes, strict=True)
        ]
        return [
            RoundConfig(
                run_id=self.state.run_id,
                round=number,
                attempt=attempt,
                nonce=nonce,
                model_hash=start.model_hash,
                dim=start.dim,
                bits=settings.bits,
                clip=settings.clip,
                weight_rule=settings.weight_rule,
                dp=start.dp,
                roster_hash=self.roster.hash,
                groups=settings.groups,
                group=group,
                sample=settings.sample,
                beacon=bytes(32) if self.beacon is None else self.beacon.value,
                degree=shape.degree,
                threshold=shape.threshold,
                quorum=shape.quorum,
                noise_multiplier=settings.noise_multiplier,
                noisers=noisers[group] if settings.noise_multiplier > 0 else 0,
                deadline_s=settings.deadline_s,
            )
            for group, shape in enumerate(shapes)
        ]

    def _attempt(self, number: int) -> int:
        last_round, last_attempt = self.state.last
        attempt = last_attempt + 1 if last_round == number else 0
        self.keep(replace(self.state, last=(number, attempt)))
        return attempt

    def connected(self, grid: Grid, least: int | None = None) -> list[int]:
        """The nodes to ask. Who did not come to the first round is not waited for at length before every other one.

        Args:
            least: nodes without which there is nothing to do (default: the quorum).

        Raises:
            RoundAborted: fewer came in time.
        """
        all_s = RETURN_S if self._gathered else None
        least = self.quorum if least is None else least
        nodes = wait_for_nodes(grid, self.settings.organizations, least, self.settings.join_s, all_s)
        self._gathered = True
        return nodes

    def gathered(self, grid: Grid, number: int, attempt: int = 0, least: int = 0) -> list[int]:
        """`connected` before an attempt at a round, which is recorded as aborted where too few came."""
        try:
            return self.connected(grid, max(self.quorum, least))
        except RoundAborted as aborted:
            joined = aborted.counts["connected"]
            self.record(RoundRecord(number, attempt, "aborted", joined=joined, aborted_at=CONNECT))
            raise

    def open(
        self,
        grid: Grid,
        number: int,
        start: RoundStart,
        begin: Callable[[list[int], list[RoundConfig]], list[Message]],
        nodes: list[int] | None = None,
    ) -> Opened:
        """One attempt at a round. An aborted one is recorded here, a finished one by the caller.

        Args:
            begin: messages that open the round at these nodes; before the first round of a run with samples also those
                that open round 0, for which only the configuration matters.
            nodes: whom to ask; None asks all that are connected. Of a round with a sample, those that may be in it.

        Raises:
            RoundAborted: too few organizations, at some stage. RoundRejected: the gate rejects the sum.
        """
        self.tell("round", number)
        if self.settings.sample and (self.beacon is None or self.beacon.run_id != self.state.run_id):
            self.beacon = self._drawn(grid, begin)
        configs = self.next_attempt(number, start)
        config = configs[0]
        if nodes is None:
            nodes = self.gathered(grid, number, config.attempt)
        if self.beacon is not None:
            nodes = self.beacon.asked(nodes, configs, self.roster)
        secure = SecureRound(grid, configs, self.roster, self.rounds, self.on_event, self.message_type)
        try:
            sums = secure.sums(begin(nodes, configs))
            gate(sums, config, self.settings.max_norm)
        except RoundAborted as error:
            record = secure.log.record(config, "aborted")
            self.record(replace(record, aborted_at="gate") if isinstance(error, RoundRejected) else record)
            raise
        finally:
            if self.beacon is not None:
                self.beacon.organizations |= secure.log.organizations
                self.beacon.knowing |= secure.log.organizations.keys()
        return Opened(configs, combine_groups(sums, self.settings.combine), sums, secure.log, len(nodes))

    def _drawn(self, grid: Grid, begin: Callable[[list[int], list[RoundConfig]], list[Message]]) -> RunBeacon:
        """The run's beacon, from its folder or by round 0.

        Raises:
            ConfigError: rounds have begun without it. RoundAborted: too few organizations, at the last attempt.
        """
        settings, roster = self.settings, self.roster
        if self.folder is not None:
            kept = kept_beacon(self.folder, self.state.run_id, roster, settings)
            if kept is not None:
                return kept
        if self.state.last[0] > 0:
            raise ConfigError(
                "the run began without samples, or its beacon is lost: a run keeps either; begin a new one"
            )
        shape = topology(len(roster), settings.colluders, settings.dropouts)
        for left in reversed(range(settings.attempts)):
            attempt = self._attempt(0)
            config = draw_config(
                roster,
                sample_plan(settings),
                shape,
                run_id=self.state.run_id,
                attempt=attempt,
                nonce=self.fresh(f"nonce/0/{attempt}"),
                deadline_s=settings.deadline_s,
            )
            nodes = self.connected(grid, shape.quorum)
            secure = SecureRound(grid, [config], roster, self.rounds, None, self.message_type)
            try:
                beacon = RunBeacon.of(secure.draw(begin(nodes, [config])), roster, settings)
            except RoundAborted as aborted:
                if left == 0:
                    raise
                log("%s; %s more attempts at the beacon", aborted, left)
                continue
            beacon.organizations |= secure.log.organizations
            if self.folder is not None:
                keep_beacon(self.folder, beacon)
            return beacon
        raise AssertionError("the beacon has at least one attempt")

    def proof_for(self, node: int) -> bytes:
        """What the first message of a round brings to ``node`` for its sample."""
        return b"" if self.beacon is None else self.beacon.proof_for(node)

    def ttl(self, grid: Grid, nodes: int) -> float:
        """Seconds that a message to this many nodes lives."""
        return patience(grid, self.settings.deadline_s, nodes) + TTL_MARGIN

    def record(self, record: RoundRecord) -> None:
        """Keep an attempt's record, and report that it is over."""
        self.keep(self.state.recorded(record))
        self.tell("end", record.round, record=record)

    def keep(self, state: RunState) -> None:
        """Replace the run's memory."""
        self.state = state
        self.save(state)

    def tell(self, kind: EventKind, number: int, **values: Any) -> None:
        """Live progress."""
        if self.on_event is not None:
            self.on_event(RoundEvent(kind, number, self.rounds, **values))

    def _sizes(self) -> list[int]:
        groups, members = self.settings.groups, self.settings.sample or len(self.roster)
        return [group_size(members, groups, group) for group in range(groups)]
