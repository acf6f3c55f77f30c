"""Who shares secrets and masks with whom: today the complete graph. Both sides only ask `neighbours`."""

from __future__ import annotations

from collections.abc import Collection


def neighbours(member: int, members: Collection[int]) -> tuple[int, ...]:
    """Members of U1 that ``member`` shares secrets and masks with, itself left out, in increasing order."""
    return tuple(sorted(other for other in members if other != member))


def point(member: int) -> int:
    """The point at which a member's shares are evaluated: non-zero and the same in every neighbourhood."""
    return member + 1
