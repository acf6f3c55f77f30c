"""The organization's own rules. They come from its own file, and no server can lower them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradtf_fl.errors import ConfigError
from gradtf_fl.secagg.packing import BIT_WIDTHS
from gradtf_fl.secagg.roster import Roster
from gradtf_fl.secagg.round_config import RoundConfig, default_threshold, smallest_threshold
from gradtf_fl.secagg.violations import PolicyViolation, RosterMismatch, StaleRound, TooFewMembers


@dataclass(frozen=True, kw_only=True)
class ClientPolicy:
    """Limits of what this organization takes part in.

    Attributes:
        n_min: organizations that must be in a sum. 2 needs ``allow_two``: each learns the other's update.
        t_min: smallest threshold; None is `default_threshold`. Never effective below a majority.
        max_bits: largest residue width.
        max_clip: largest L2 bound that a round may ask for.
        max_weight: largest weight that a round may allow.
        allow_two: lets ``n_min`` be 2.
    """

    n_min: int = 3
    t_min: int | None = None
    max_bits: int = 32
    max_clip: float = 64.0
    max_weight: float = 1.0
    allow_two: bool = False

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
        n = len(roster)
        if n < self.n_min:
            raise TooFewMembers(f"{n} organizations on the roster, policy wants {self.n_min}")
        reasons = []
        if config.degree != n - 1:
            reasons.append(f"degree {config.degree}: the complete graph of {n} organizations has {n - 1}")
        members = config.degree + 1
        t_min = max(self.t_min or default_threshold(members), smallest_threshold(members))
        if config.threshold < t_min:
            reasons.append(f"threshold {config.threshold} is below {t_min}")
        if config.bits > self.max_bits:
            reasons.append(f"{config.bits} bits are more than {self.max_bits}")
        if not config.clip <= self.max_clip or not math.isfinite(config.clip):
            reasons.append(f"clip {config.clip} is above {self.max_clip}")
        if not config.max_weight <= self.max_weight:
            reasons.append(f"max_weight {config.max_weight} is above {self.max_weight}")
        if reasons:
            raise PolicyViolation(reasons)

    def check_members(self, count: int) -> None:
        """`TooFewMembers` where fewer than ``n_min`` organizations are left."""
        if count < self.n_min:
            raise TooFewMembers(f"{count} organizations left, policy wants {self.n_min}")
