"""The organization's own rules. They come from its own file, and no server can lower them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

from gradtf_fl.errors import ConfigError
from gradtf_fl.secagg.degree import (
    GRINDING_BITS,
    PRIVACY_BITS,
    Topology,
    certain_noisers,
    colluders_in_sample,
    colluding,
    privacy_failure_log2,
)
from gradtf_fl.secagg.graph import COMPLETE_BELOW
from gradtf_fl.secagg.members import round_members
from gradtf_fl.secagg.packing import BIT_WIDTHS
from gradtf_fl.secagg.roster import Roster
from gradtf_fl.secagg.round_config import RoundConfig, default_threshold, smallest_threshold
from gradtf_fl.secagg.vectors import encoding_of
from gradtf_fl.secagg.violations import PolicyViolation, RosterMismatch, StaleRound, TooFewMembers

GROUP_MIN = 5
TRIALS = 2**20
MOST_SAMPLED_ROUNDS = 10_000
"""Number of the last round that may have a sample: a server that knows the beacon may skip to the one it likes."""
_ROUNDING_BITS = 1e-6  # of log-gamma, which may differ from machine to machine


@dataclass(frozen=True, kw_only=True)
class ClientPolicy:
    """Limits of what this organization takes part in.

    >>> from gradtf_fl import ClientPolicy, ConfigError
    >>> ClientPolicy(n_min=5).bad(40)  # members out of 40 that may collude with the server
    4
    >>> try:
    ...     ClientPolicy(n_min=2)
    ... except ConfigError as error:
    ...     print(error)
    n_min: 2 lets each organization learn the other's update; set allow_two to accept that

    Attributes:
        n_min: organizations that must be in a sum. 2 needs ``allow_two``: each learns the other's update.
        t_min: smallest threshold; None is `default_threshold` on a complete graph and what `degree.topology`'s
            conditions ask on a k-regular one. On a complete graph 2t > n + 1 in any case.
        max_bits: largest residue width.
        max_clip: largest L2 bound that a round may ask for.
        max_weight: largest weight that a round may allow.
        allow_two: lets ``n_min`` be 2.
        colluders: share of the members that may collude with the server; rounded up, and at least one of them. Of a
            sample it is the share of the whole roster, and the sample's own number is bounded (`colluders_of`).
        trials: beacons that this organization helps to draw, over all runs, before it refuses; each is a sample that a
            server may look at and drop.
        min_noise: smallest noise multiplier of the distributed DP layer; 0 takes part without it.
    """

    n_min: int = 3
    t_min: int | None = None
    max_bits: int = 32
    max_clip: float = 64.0
    max_weight: float = 1.0
    allow_two: bool = False
    colluders: float = 0.1
    trials: int = TRIALS
    min_noise: float = 0.0

    def __post_init__(self) -> None:
        problems = []
        if self.n_min < 2:
            problems.append("n_min: a sum over fewer than two organizations hides nothing")
        if self.n_min == 2 and not self.allow_two:
            problems.append("n_min: 2 lets each organization learn the other's update; set allow_two to accept that")
        if self.t_min is not None and self.t_min < 2:
            problems.append("t_min: must be at least 2")
        if self.max_bits < BIT_WIDTHS[0]:
            problems.append(f"max_bits: must be at least {BIT_WIDTHS[0]}")
        if not (self.max_clip > 0 and self.max_weight > 0):
            problems.append("max_clip and max_weight must be positive")
        if not 0 <= self.colluders < 1:
            problems.append("colluders: a share of the members, at least 0 and below 1")
        if self.trials < 1:
            problems.append("trials: at least one beacon has to be drawn")
        if not (math.isfinite(self.min_noise) and self.min_noise >= 0):
            problems.append("min_noise: a finite number, at least 0")
        if problems:
            raise ConfigError(problems)

    def check(self, config: RoundConfig, roster: Roster, last_round: tuple[int, int] | None = None) -> None:
        """Raises unless this organization may take part in ``config`` on its pinned ``roster``.

        Args:
            last_round: (round, attempt) of the last round it took part in; None skips that check.

        Raises:
            RosterMismatch, StaleRound, TooFewMembers, PolicyViolation (all reasons at once).
        """
        if config.roster_hash != roster.hash:
            raise RosterMismatch("the round is for another roster than the pinned one")
        if last_round is not None and (config.round, config.attempt) <= last_round:
            raise StaleRound(f"round {config.round} attempt {config.attempt} is not above {last_round}")
        n, bad = len(round_members(config, roster)), self.colluders_of(config, roster)
        least = self.n_min if config.groups == 1 else max(self.n_min, GROUP_MIN)
        if n < least:
            raise TooFewMembers(f"{n} organizations in the round, policy wants {least}")
        reasons = [*self._sample_reasons(config, roster), *self._graph_reasons(config, n, bad)]
        reasons += [*self._limit_reasons(config), *self._noise_reasons(config, n, bad)]
        try:
            encoding_of(config, n)
        except ValueError as error:
            reasons.append(str(error))
        if reasons:
            raise PolicyViolation(reasons)

    def for_beacon(self) -> Self:
        """This policy for round 0, which draws the beacon: no bound of an update matters, as none is in it."""
        return replace(self, min_noise=0.0, max_clip=math.inf, max_weight=math.inf, max_bits=BIT_WIDTHS[-1])

    def choices(self, groups: int) -> int:
        """Samples that a server can look at before it uses one: 2 * trials * `MOST_SAMPLED_ROUNDS` * groups.

        Every beacon needs Q - c honest votes of N - c honest organizations, each of which gives ``trials`` of them. As
        2Q > N + c, there are fewer than 2 * trials beacons. Each draws one sample, or ``groups`` of them, a round; and
        an attempt that failed has the sample of its round, so that attempts are no trials.
        """
        return 2 * self.trials * MOST_SAMPLED_ROUNDS * groups

    def colluders_of(self, config: RoundConfig, roster: Roster) -> int:
        """c: members of ``config`` that may collude with the server; in a sample except with probability 2^-40."""
        n = len(round_members(config, roster))
        if config.sample == 0:
            return self.bad(n)
        return colluders_in_sample(len(roster), self.colluders, n, self.choices(config.groups))

    def _sample_reasons(self, config: RoundConfig, roster: Roster) -> Iterator[str]:
        if config.sample == len(roster):
            yield f"a sample must be smaller than all {len(roster)} organizations"
        if config.sample and config.round > MOST_SAMPLED_ROUNDS:
            yield f"round {config.round} has a sample, which no round above {MOST_SAMPLED_ROUNDS} has"

    def _graph_reasons(self, config: RoundConfig, n: int, bad: int) -> Iterator[str]:
        if config.degree == n - 1:
            t_min = max(self.t_min or default_threshold(n), smallest_threshold(n))
            if config.threshold < t_min:
                yield f"threshold {config.threshold} is below {t_min}"
            elif 2 * config.threshold <= n + bad:
                yield f"threshold {config.threshold} of {n} lets {bad} colluders open both kinds of shares"
            if config.quorum != config.threshold:
                yield f"quorum {config.quorum} is not the threshold {config.threshold} of a complete graph"
            return
        if n < COMPLETE_BELOW or config.degree > n - 1 or config.degree % 2:
            yield f"degree {config.degree}: the complete graph of {n} organizations has {n - 1}"
            return
        if config.threshold < (self.t_min or 0):
            yield f"threshold {config.threshold} is below {self.t_min}"
        if 2 * config.quorum <= n + bad or config.quorum > n:
            yield f"quorum {config.quorum} of {n} lets {bad} colluders show two views of the round"
            return
        shape = Topology(config.degree, config.threshold, config.quorum)
        bits = -privacy_failure_log2(n, shape, self.colluders, bad) - GRINDING_BITS
        if not bits >= PRIVACY_BITS - _ROUNDING_BITS:
            what = f"degree {config.degree} and threshold {config.threshold}"
            yield f"{what} fail with probability 2^-{bits:.0f}, not 2^-{PRIVACY_BITS}"

    def _limit_reasons(self, config: RoundConfig) -> Iterator[str]:
        if config.bits > self.max_bits:
            yield f"{config.bits} bits are more than {self.max_bits}"
        if not config.clip <= self.max_clip or not math.isfinite(config.clip):
            yield f"clip {config.clip} is above {self.max_clip}"
        if not config.max_weight <= self.max_weight:
            yield f"max_weight {config.max_weight} is above {self.max_weight}"

    def _noise_reasons(self, config: RoundConfig, n: int, bad: int) -> Iterator[str]:
        if config.noise_multiplier < self.min_noise:
            yield f"noise multiplier {config.noise_multiplier} is below {self.min_noise}"
        shape = Topology(config.degree, config.threshold, config.quorum)
        honest = certain_noisers(n, shape, self.colluders, bad)
        if config.noise_multiplier > 0 and config.noisers > honest:
            yield f"noise is shared by {config.noisers}, but only {honest} honest organizations are sure to add theirs"

    def bad(self, n: int) -> int:
        """c: members out of ``n`` that may collude with the server."""
        return colluding(n, self.colluders)

    def check_members(self, count: int, quorum: int) -> None:
        """`TooFewMembers` where fewer than ``n_min`` organizations or the round's quorum are left."""
        if count < max(self.n_min, quorum):
            raise TooFewMembers(f"{count} organizations left, {max(self.n_min, quorum)} needed")
