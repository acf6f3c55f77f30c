"""Whose vectors a round sums: the whole roster, a sample of it that the run's beacon draws, or a group of either.

`round_members` is the one answer to that question, for clients, servers and charges alike.
"""

from __future__ import annotations

from gradtf_fl.secagg.crypto.primitives import USAGE_SAMPLE, digest
from gradtf_fl.secagg.graph import group_members, shuffled
from gradtf_fl.secagg.roster import Roster
from gradtf_fl.secagg.round_config import RoundConfig
from gradtf_fl.secagg.violations import RosterMismatch


def round_members(config: RoundConfig, roster: Roster) -> tuple[int, ...]:
    """Roster indices of the members of ``config``, in increasing order; n is their number.

    A group inside a sample is every ``groups``-th organization in the order of drawing, so it is a sample itself.

    Raises:
        RosterMismatch: a sample of more organizations than the roster has.
    """
    if config.sample == 0:
        return group_members(roster, config.groups, config.group)
    order = drawn(len(roster), config.beacon, config.round, config.sample)
    return tuple(sorted(order[config.group :: config.groups]))


def group_size(organizations: int, groups: int, group: int) -> int:
    """Members of group number ``group`` where this many organizations are split into ``groups``."""
    return len(range(group, organizations, groups))


def sampled(roster: Roster, beacon: bytes, round_number: int, size: int) -> tuple[int, ...]:
    """Roster indices of ``size`` organizations that ``beacon`` [32 bytes] draws for a round, in increasing order.

    >>> from gradtf_fl import Identity, Roster
    >>> from gradtf_fl.secagg import sampled
    >>> roster = Roster(tuple(Identity.generate().public for _ in range(6)))
    >>> len(sampled(roster, bytes(32), 1, 4))
    4

    Raises:
        RosterMismatch: ``size`` is above the roster's.
    """
    return tuple(sorted(drawn(len(roster), beacon, round_number, size)))


def drawn(population: int, beacon: bytes, round_number: int, size: int) -> list[int]:
    """``size`` of the numbers below ``population``, without replacement, in the order in which they are drawn.

    Each number gets 128 bits of AES-256-CTR under H(beacon, round) as its sort key, and the smallest keys are taken:
    every subset is as likely as every other one, but for equal keys (below 2^-108 for 1,000 organizations).

    Raises:
        RosterMismatch: ``size`` is above ``population``.
    """
    if size > population:
        raise RosterMismatch(f"a sample of {size} organizations from a roster of {population}")
    return shuffled(range(population), digest(USAGE_SAMPLE, beacon, round_number.to_bytes(8, "big")))[:size]
