"""Several sums: what they fix of one organization, and which new one is refused."""

from __future__ import annotations

import hashlib
from itertools import combinations

import numpy as np
import pytest

from gradtf_fl.secagg import Roster, TakenSum, TooSmallDifference, check_difference, identifiability
from gradtf_fl.secagg.graph import group_members

START, LATER = b"s" * 32, b"t" * 32
EVERYBODY = "abcdefghijklmnopqrstuvwxyz"


def keys(letters: str) -> frozenset[bytes]:
    return frozenset(letter.encode() * 32 for letter in letters)


def taken(members: str, start: bytes = START, roster: str = EVERYBODY) -> TakenSum:
    return TakenSum(start, keys(roster), keys(members))


@pytest.mark.parametrize(
    ("new", "minimum", "refused"),
    [
        pytest.param(taken("abcde"), 1, False, id="the same members again"),
        pytest.param(taken("abcd"), 1, True, id="one fewer, from the same model"),
        pytest.param(taken("abcdef"), 1, True, id="one more, from the same model"),
        pytest.param(taken("abc"), 1, True, id="two fewer, of whom one may collude"),
        pytest.param(taken("abcdf"), 1, True, id="one left and another came, of whom one may collude"),
        pytest.param(taken("abcdefgh"), 1, False, id="three more, from the same model"),
        pytest.param(taken("fghij"), 1, False, id="others altogether"),
        pytest.param(taken("abcd", LATER), 1, False, id="one fewer, a round later"),
        pytest.param(taken("abcd", LATER), 2, True, id="one fewer, a round later, the policy wants two"),
        pytest.param(taken("abcf", LATER), 3, False, id="three apart"),
        pytest.param(taken("abcf", LATER), 4, True, id="three apart, the policy wants four"),
        pytest.param(taken("abcdk", roster="abcdk"), 1, False, id="a new roster, where one left and another came"),
        pytest.param(taken("abcd", roster="abcd"), 1, False, id="a new roster without one"),
        pytest.param(taken("abcd", roster="abcdek"), 1, True, id="a new roster, and one of the old one is silent"),
        pytest.param(taken("abcdk", roster="abcdek"), 1, True, id="a new roster, and a newcomer for a silent one"),
        pytest.param(taken("abcd", roster="abcd"), 2, True, id="a new roster, the policy wants two"),
    ],
)
def test_which_sum_is_refused(new: TakenSum, minimum: int, refused: bool) -> None:
    earlier = [taken("vwxyz", LATER), taken("abcde", roster="abcdefghij")]
    if refused:
        with pytest.raises(TooSmallDifference, match="earlier sum"):
            check_difference(new, earlier, minimum)
    else:
        check_difference(new, earlier, minimum)


def test_no_combination_of_sums_from_one_model_is_about_fewer_than_three() -> None:
    """Every two of these sums differ by six or more; first - second - third + fourth is one organization's update."""
    sums = [taken(members) for members in ("axyzpqr", "xyzuvw", "pqrklm", "uvwklm")]
    for number in (1, 2):
        check_difference(sums[number], sums[:number], 1)
    assert identifiability([one.members for one in sums]).identified == (b"a" * 32,)
    with pytest.raises(TooSmallDifference, match="fewer than 3 organizations"):
        check_difference(sums[3], sums[:3], 1)
    check_difference(taken("uvwklm", LATER), sums[:3], 1)


def test_many_large_sums_with_a_few_silent_each_are_taken() -> None:
    """A class of one alone refuses nothing, where no combination is about it: 8 sums of 300, ten silent in each."""
    rng = np.random.default_rng(5)
    everybody = [bytes([number // 256, number % 256]) for number in range(300)]
    earlier: list[TakenSum] = []
    for _ in range(8):
        silent = {everybody[i] for i in rng.choice(300, 10, replace=False)}
        new = TakenSum(START, frozenset(everybody), frozenset(everybody) - silent)
        check_difference(new, earlier, 1)
        earlier.append(new)
    assert max(identifiability([one.members for one in earlier]).shares.values()) < 0.5


def test_six_rounds_with_another_silent_one_each_identify_everybody() -> None:
    """9 of 15 private rules were named so. With a minimum of two the second of these sums is refused."""
    names = "abcdef"
    sums = [names.replace(silent, "") for silent in names]
    found = identifiability(sums)
    assert found.rank == 6
    assert found.identified == tuple(names)
    with pytest.raises(TooSmallDifference):
        check_difference(taken(names, LATER), [taken(sums[0])], 2)
    check_difference(taken(sums[1], LATER), [taken(sums[0])], 2)  # two apart: one left, another came
    with pytest.raises(TooSmallDifference):
        check_difference(taken(sums[1], LATER), [taken(sums[0])], 3)


def test_another_number_of_groups_each_round_identifies_everybody_and_a_pinned_one_nobody() -> None:
    """60 organizations, up to 12 groups: rank 60. `[policy] groups` pins the number: 12 rounds tell what one does."""
    roster = Roster(tuple(hashlib.sha256(bytes([i])).digest() for i in range(60)))

    def sums(groups: int) -> list[tuple[str, ...]]:
        return [tuple(f"{m:02d}" for m in group_members(roster, groups, group)) for group in range(groups)]

    changing = identifiability([one for groups in (1, *range(3, 13)) for one in sums(groups)])
    assert (changing.rank, len(changing.identified)) == (60, 60)
    pinned = identifiability(sums(12) * 12)
    assert (pinned.rank, pinned.identified) == (12, ())
    assert list(pinned.shares.values()) == pytest.approx([1 / 5] * 60)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_share_of_one_is_what_least_squares_gives_exactly(size: int) -> None:
    """Against the definition: whether the sums determine a member, by the rank with and without its unit vector."""
    names = "abcd"
    for sums in combinations([set(names), {"a", "b"}, {"a", "b", "c"}, {"c", "d"}, {"b", "c"}, {"d"}], size):
        system = np.array([[name in members for name in names] for members in sums], float)
        found = identifiability([sorted(members) for members in sums])
        assert found.rank == np.linalg.matrix_rank(system)
        for column, name in enumerate(names):
            unit = np.eye(4)[column]
            solvable = np.linalg.matrix_rank(np.vstack([system, unit])) == found.rank
            assert (name in found.identified) == (solvable and name in found.shares), (sums, name)


def test_no_sum_says_nothing() -> None:
    found = identifiability([])
    assert (found.rank, found.shares, found.identified) == (0, {}, ())
