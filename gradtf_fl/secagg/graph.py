"""Who shares secrets and masks with whom, and which organizations sum up together.

Below `COMPLETE_BELOW` members everyone is everyone's neighbour. Above, members stand on a circle in an order
that the adverts of all of them decide, and each is linked to the k/2 next on either side: a random relabelling of
a Harary graph, as in Bell et al. (CCS 2020). `topology` in degree.py says how large k has to be.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gradtf_fl.secagg.crypto.primitives import USAGE_GRAPH, USAGE_GROUPS, digest, index_bytes, keystream
from gradtf_fl.secagg.roster import Roster

COMPLETE_BELOW = 100
_KEY_BYTES = 16  # sort keys of 128 bits: two are equal with probability below 2^-108 for 1,000 members


def point(member: int) -> int:
    """The point at which a member's shares are evaluated: non-zero and the same in every neighbourhood."""
    return member + 1


def shuffled(members: Collection[int], key: bytes) -> list[int]:
    """``members`` in an order that AES-256-CTR under ``key`` [32 bytes] decides."""
    stream = keystream(key, _KEY_BYTES * len(members))
    chunks = (stream[at : at + _KEY_BYTES] for at in range(0, len(stream), _KEY_BYTES))
    return [member for _, member in sorted(zip(chunks, sorted(members), strict=True))]


class Graph:
    """The communication graph over U1.

    Args:
        members: U1.
        degree: k, even; with k >= |U1| - 1 the graph is complete.
        root: digest [32] of all adverts: nobody chooses it alone.
    """

    def __init__(self, members: Sequence[int], degree: int, root: bytes) -> None:
        self._members, self._degree = tuple(sorted(members)), degree
        self._complete = degree >= len(members) - 1
        self._circle = () if self._complete else tuple(shuffled(members, digest(USAGE_GRAPH, root)))
        self._position = {member: at for at, member in enumerate(self._circle)}

    def neighbours(self, member: int) -> tuple[int, ...]:
        """Members of U1 linked to ``member``, itself left out, in increasing order."""
        if self._complete:
            return tuple(other for other in self._members if other != member)
        at, half, size = self._position[member], self._degree // 2, len(self._circle)
        steps = (*range(-half, 0), *range(1, half + 1))
        return tuple(sorted(self._circle[(at + step) % size] for step in steps))


def group_members(roster: Roster, groups: int, group: int) -> tuple[int, ...]:
    """Members of group number ``group`` of ``groups`` of a whole roster: a partition that the roster alone decides.

    For one number of groups it lasts as long as the roster: no server can re-group organizations at will.
    Sizes differ by at most one.
    """
    order = shuffled(range(len(roster)), digest(USAGE_GROUPS, roster.hash, index_bytes(groups)))
    return tuple(sorted(order[group::groups]))
