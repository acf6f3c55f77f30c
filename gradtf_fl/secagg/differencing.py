"""What several sums together reveal about one organization, and when a sum is refused for that.

The server knows who is in each sum. Two sums whose members differ by one organization differ by its update, as far as
the others' updates are alike: exactly as far as training is the same for two attempts from one model, and roughly for
two rounds. More sums make a system of linear equations, and `identifiability` says how well it can be solved.

Sums from one model are looked at together, whatever their run, round, attempt, sample or group. Organizations that the
same of these sums hold form a class: no combination tells them apart. A combination that is about fewer than
`SAME_START` organizations is about small classes alone, so a new sum is refused where one exists: where the system has
a smaller rank without the small classes' columns. An organization can look at no other sums than its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from gradtf_fl.secagg.violations import TooSmallDifference

SAME_START = 3
"""Organizations that every combination of sums from one model is about, at least: one, one more, and one colluder."""

Member = TypeVar("Member", str, bytes)


@dataclass(frozen=True)
class TakenSum:
    """A sum that this organization has signed for, and that may have been opened.

    Attributes:
        start: SHA-256 of the model that it started from.
        roster: identity keys of the organizations that could be in it.
        members: identity keys of the organizations in it.
    """

    start: bytes
    roster: frozenset[bytes]
    members: frozenset[bytes]


def check_difference(new: TakenSum, earlier: Iterable[TakenSum], minimum: int) -> None:
    """`TooSmallDifference` where ``new`` and earlier sums differ, but by too few organizations.

    >>> from gradtf_fl.secagg import TakenSum, check_difference
    >>> roster = frozenset({b"a", b"b", b"c", b"d", b"e", b"f"})
    >>> first = TakenSum(bytes(32), roster, roster)
    >>> check_difference(TakenSum(bytes(32), roster, frozenset({b"a", b"b", b"c"})), [first], 1)

    Args:
        minimum: of the policy; 1 allows any difference. All combinations of sums from one model are about
            `SAME_START` organizations at least, or about ``minimum`` where that is more. Where their rosters differ,
            that is said of the organizations on all of them: who came or left is what the new roster is about.
    """
    known = list(earlier)
    for old in known:
        apart = len(new.members ^ old.members)
        if 0 < apart < minimum:
            raise TooSmallDifference(
                f"this sum's members differ from an earlier sum's by {apart}, at least {minimum} are needed"
            )
    alike = [old for old in known if old.start == new.start]
    always = new.roster.intersection(*(old.roster for old in alike))
    sums, least = {one.members & always for one in (*alike, new)} - {frozenset()}, max(minimum, SAME_START)
    if len(sums) > 1 and _singles_out(list(sums), least):
        raise TooSmallDifference(
            f"together with earlier sums from one model this sum would be about fewer than {least} organizations"
        )


def _singles_out(sums: Sequence[frozenset[Member]], least: int) -> bool:
    """Whether some combination of ``sums`` is about classes of fewer than ``least`` members alone."""
    patterns: dict[Member, list[bool]] = {member: [] for members in sums for member in members}
    for members in sums:
        for member, pattern in patterns.items():
            pattern.append(member in members)
    sizes = Counter(map(tuple, patterns.values()))
    system = np.array(list(sizes), dtype=float).T  # [sums, classes]
    large = np.array([size >= least for size in sizes.values()])
    return bool(np.linalg.matrix_rank(system[:, large]) < np.linalg.matrix_rank(system)) if large.any() else True


@dataclass(frozen=True)
class Identifiability(Generic[Member]):
    """How much of each organization's update the sums fix, if it sent the same one each time.

    Attributes:
        rank: of the system of sums: independent equations.
        shares: organization -> the part of its unit vector that lies in the space of the sums, between 0 and 1. One
            sum over n gives 1 / n. 1: its update can be computed from the sums.
    """

    rank: int
    shares: dict[Member, float]

    @property
    def identified(self) -> tuple[Member, ...]:
        """Organizations whose update the sums give exactly, but for noise."""
        return tuple(name for name, share in self.shares.items() if share > 1 - 1e-9)


def identifiability(sums: Sequence[Collection[Member]]) -> Identifiability[Member]:
    """Of every organization that is in one of ``sums``, each given by its members.

    >>> from gradtf_fl.secagg import identifiability
    >>> round(identifiability([["a", "b", "c"]]).shares["a"], 3)
    0.333
    >>> identifiability([["a", "b", "c"], ["a", "b"]]).identified
    ('c',)
    """
    names = sorted({name for members in sums for name in members})
    place = {name: column for column, name in enumerate(names)}
    distinct = sorted({tuple(sorted(place[name] for name in members)) for members in sums if members})
    if not distinct:
        return Identifiability(0, {})
    system = np.zeros((len(distinct), len(names)))
    for row, columns in enumerate(distinct):
        system[row, list(columns)] = 1.0
    _, sizes, directions = np.linalg.svd(system, full_matrices=False)
    rank = int(np.count_nonzero(sizes > 1e-9 * sizes[0]))
    found = np.sum(directions[:rank] ** 2, axis=0)
    return Identifiability(rank, {name: round(float(found[place[name]]), 12) for name in names})
