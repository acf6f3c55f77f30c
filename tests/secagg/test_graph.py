"""Who is linked to whom, and the partition into groups."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradtf_fl.secagg import Roster
from gradtf_fl.secagg.graph import Graph, group_members, point, shuffled


def root(seed: int) -> bytes:
    return hashlib.sha256(seed.to_bytes(4, "big")).digest()


def a_roster(n: int, seed: int = 0) -> Roster:
    return Roster(tuple(hashlib.sha256(f"{seed}/{i}".encode()).digest() for i in range(n)))


@given(
    members=st.sets(st.integers(0, 2**32 - 1), min_size=4, max_size=60),
    half=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_graphs_are_regular_symmetric_and_connected(members: set[int], half: int, seed: int) -> None:
    graph = Graph(sorted(members), 2 * half, root(seed))
    neighbours = {member: graph.neighbours(member) for member in members}
    degree = min(2 * half, len(members) - 1)
    for member, around in neighbours.items():
        assert len(around) == degree
        assert list(around) == sorted(set(around))
        assert member not in around
        assert members.issuperset(around)
        assert all(member in neighbours[other] for other in around)
    reached, to_visit = set[int](), [min(members)]
    while to_visit:
        at = to_visit.pop()
        reached.add(at)
        to_visit += set(neighbours[at]) - reached
    assert reached == members


def test_neighbours_are_the_next_on_either_side_of_the_circle() -> None:
    graph = Graph(range(20), 6, root(1))
    circle = graph._circle
    assert sorted(circle) == list(range(20))
    at = circle.index(7)
    assert set(graph.neighbours(7)) == {circle[(at + step) % 20] for step in (-3, -2, -1, 1, 2, 3)}


def test_the_root_and_the_members_decide_the_graph() -> None:
    def links(members: range, seed: int) -> set[tuple[int, int]]:
        graph = Graph(members, 6, root(seed))
        return {(i, j) for i in members for j in graph.neighbours(i)}

    assert links(range(40), 1) == links(range(40), 1)
    graphs = [links(range(40), seed) for seed in range(10)] + [links(range(41), 1)]
    assert len({frozenset(graph) for graph in graphs}) == 11
    in_common = len(graphs[0] & graphs[1]) / len(graphs[0])
    assert in_common < 0.5  # two random ones share 6/39 of their links


def test_links_are_spread_evenly_over_roots() -> None:
    """Each of the 11 others is a neighbour of member 0 with probability 4/11 over the roots."""
    counts = [0] * 12
    for seed in range(2200):
        for other in Graph(range(12), 4, root(seed)).neighbours(0):
            counts[other] += 1
    assert counts[0] == 0
    assert all(abs(count - 800) < 115 for count in counts[1:])  # 5 standard deviations of 22.6


def test_points_are_never_zero_and_the_same_for_all() -> None:
    assert [point(member) for member in (0, 1, 2**32 - 1)] == [1, 2, 2**32]


def test_shuffled_is_a_permutation_that_the_key_decides() -> None:
    orders = {tuple(shuffled({3, 1, 2, 9}, root(seed))) for seed in range(200)}
    assert len(orders) == 24
    assert all(sorted(order) == [1, 2, 3, 9] for order in orders)
    assert shuffled([9, 3, 2, 1], root(5)) == shuffled((1, 2, 3, 9), root(5))


@given(n=st.integers(2, 60), groups=st.integers(1, 12))
def test_groups_partition_the_roster(n: int, groups: int) -> None:
    roster = a_roster(n)
    parts = [group_members(roster, groups, group) for group in range(groups)]
    assert sorted(member for part in parts for member in part) == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(list(part) == sorted(part) for part in parts)


def test_groups_last_as_long_as_the_roster() -> None:
    roster = a_roster(40)
    assert group_members(roster, 1, 0) == tuple(range(40))
    assert group_members(roster, 4, 1) == group_members(a_roster(40), 4, 1)
    assert group_members(roster, 4, 1) != group_members(a_roster(40, seed=1), 4, 1)
    halves = [set(group_members(roster, 2, group)) for group in range(2)]
    quarters = [set(group_members(roster, 4, group)) for group in range(4)]
    assert not any(quarter <= half for quarter in quarters for half in halves)  # another number, another order


@pytest.mark.parametrize("degree", [19, 20, 30])
def test_a_degree_of_all_others_is_the_complete_graph(degree: int) -> None:
    graph = Graph(range(20), degree, root(1))
    assert graph.neighbours(3) == tuple(i for i in range(20) if i != 3)
