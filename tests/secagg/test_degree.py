"""The parameters of the k-regular graph: their table, the bounds behind it against exact counts, their directions."""

from __future__ import annotations

import math
from dataclasses import astuple
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradtf_fl.errors import ConfigError
from gradtf_fl.secagg import ClientPolicy, PolicyViolation, Roster, RoundConfig, Topology, default_threshold, topology
from gradtf_fl.secagg.degree import (
    GRINDING_BITS,
    PRIVACY_BITS,
    SMALLEST_PIECE,
    certain_noisers,
    colluding,
    complete,
    disconnection_log2,
    exposure_log2,
    hypergeometric_tail_log2,
    privacy_failure_log2,
    starvation_log2,
)

RATES = ((0.1, 0.1), (0.2, 0.1), (0.33, 0.1))
TABLE = {  # n: (degree, threshold) for each of RATES
    100: ((42, 13), (62, 23), (88, 36)),
    300: ((80, 33), (106, 63), (146, 100)),
    1000: ((94, 58), (124, 89), (186, 144)),
}
TABLE_OF_ONE_GRAPH = {  # for a server that cannot choose among graphs, as Bell et al. assume
    100: ((32, 13), (42, 23), (58, 36)),
    300: ((40, 25), (58, 39), (86, 63)),
    1000: ((50, 30), (74, 50), (118, 86)),
}


@pytest.mark.parametrize("n", TABLE)
def test_the_table(n: int) -> None:
    quorum = n - n // 10
    assert [topology(n, *rates) for rates in RATES] == [Topology(k, t, quorum) for k, t in TABLE[n]]
    one_graph = [topology(n, *rates, grinding_bits=0) for rates in RATES]
    assert one_graph == [Topology(k, t, quorum) for k, t in TABLE_OF_ONE_GRAPH[n]]


@pytest.mark.parametrize("n", TABLE)
@pytest.mark.parametrize("rates", RATES)
def test_the_table_keeps_its_promises_and_is_the_cheapest(n: int, rates: tuple[float, float]) -> None:
    shape = topology(n, *rates)
    quorum, bad = shape.quorum, math.floor(rates[0] * n)

    def sound(degree: int, threshold: int) -> bool:
        private = privacy_failure_log2(n, Topology(degree, threshold, quorum), rates[0])
        return private <= 1 - PRIVACY_BITS - GRINDING_BITS and starvation_log2(n, degree, threshold, quorum) <= -20

    assert sound(shape.degree, shape.threshold)
    assert exposure_log2(n, shape.degree, shape.threshold - 1, quorum, bad) > -PRIVACY_BITS - GRINDING_BITS
    smaller = shape.degree - 2
    assert not any(
        max(exposure_log2(n, smaller, t, quorum, bad), disconnection_log2(n, smaller, quorum, bad)) <= -104
        and starvation_log2(n, smaller, t, quorum) <= -20
        for t in range(2, smaller + 2)
    )


@pytest.mark.parametrize("n", [100, 105, 110, 120, 200, 300, 700, 1000])
def test_what_topology_gives_passes_the_policy_of_the_same_organization(n: int) -> None:
    """Both bounds of privacy are added up in the policy: the sum must not fail where each of them holds."""
    for colluders in (0.0, 0.05, 0.1, 0.2):
        shape = topology(n, colluders=colluders)
        bits = -privacy_failure_log2(n, shape, colluders) - GRINDING_BITS
        assert shape.degree == n - 1 or bits >= PRIVACY_BITS - 1e-6


def test_below_a_hundred_the_graph_is_complete() -> None:
    for n in (2, 5, 99):
        assert topology(n) == complete(n) == Topology(n - 1, default_threshold(n), default_threshold(n))
    assert topology(100).degree == 42
    assert topology(100, colluders=0.4, dropouts=0.1) == complete(100, 40)  # k would reach n - 1


@pytest.mark.parametrize(
    ("colluders", "dropouts", "reason"),
    [
        (0.5, 0.25, "two sets"),
        (0.8, 0.1, "two sets"),
        (0.0, 0.5, "two sets"),
        (1.0, 0.1, "shares"),
        (-0.1, 0.1, "shares"),
    ],
)
def test_rates_that_no_graph_can_bear(colluders: float, dropouts: float, reason: str) -> None:
    """2 Q <= n + c, and rates that are none. (0.5, 0.25): 2 * 75 <= 100 + 50."""
    with pytest.raises(ConfigError, match=reason):
        topology(100, colluders=colluders, dropouts=dropouts)
    assert topology(100, colluders=0.48, dropouts=0.25)  # 150 > 148


# -- bounds -----------------------------------------------------------------------------------------------


def exact_tail(population: int, marked: int, drawn: int, least: int) -> Fraction:
    hits = range(max(least, 0), min(marked, drawn) + 1)
    ways = sum(math.comb(marked, x) * math.comb(population - marked, drawn - x) for x in hits)
    return Fraction(ways, math.comb(population, drawn))


@given(st.data())
def test_hypergeometric_tail(data: st.DataObject) -> None:
    population = data.draw(st.integers(1, 40))
    marked, drawn = data.draw(st.integers(0, population)), data.draw(st.integers(0, population))
    least = data.draw(st.integers(-1, drawn + 1))
    exact = exact_tail(population, marked, drawn, least)
    computed = hypergeometric_tail_log2(population, marked, drawn, least)
    if exact == 0:
        assert computed == -math.inf
    else:
        assert computed == pytest.approx(math.log2(exact), abs=1e-9)


def test_hypergeometric_tail_far_out() -> None:
    exact = exact_tail(899, 100, 94, 56)
    log2 = math.log2(exact.numerator) - math.log2(exact.denominator)
    assert hypergeometric_tail_log2(899, 100, 94, 56) == pytest.approx(log2, abs=1e-6)
    assert log2 < -100


def test_bounds_by_hand() -> None:
    # 10 members, 2 of them bad, Q = 9, k = 4, t = 4: P[both among 4 of 8] = C(6, 2) / C(8, 4) = 15 / 70
    assert exposure_log2(10, 4, 4, 9, 2) == pytest.approx(math.log2(10 * Fraction(15, 70)))
    assert SMALLEST_PIECE == 3
    # one may drop: P[it is among the 4 neighbours of a member] = 4 / 9, and then 4 of 5 stay: fewer than t = 5
    assert starvation_log2(10, 4, 5, 9) == pytest.approx(math.log2(10 * Fraction(4, 9)))
    assert starvation_log2(10, 4, 4, 9) == -math.inf
    # 3 missing of 10, two in a row: at most 10 * 3/10 * 2/9
    assert disconnection_log2(10, 4, 9, 2) == pytest.approx(math.log2(Fraction(10 * 6, 90)))
    assert disconnection_log2(10, 8, 9, 2) == -math.inf  # four in a row are not even missing


def connected(members: set[int], n: int, degree: int) -> bool:
    """Whether the circulant on 0..n-1 with k/2 links on either side is connected on ``members``."""
    if not members:
        return True
    reached, to_visit = set[int](), [min(members)]
    while to_visit:
        at = to_visit.pop()
        reached.add(at)
        near = {(at + step) % n for step in range(-(degree // 2), degree // 2 + 1)}
        to_visit += (near & members) - reached
    return reached == members


def gap(missing: set[int], n: int, length: int) -> bool:
    """Whether ``length`` members in a row are missing."""
    return any(all((start + i) % n in missing for i in range(length)) for start in range(n))


def test_a_disconnected_circle_has_half_of_k_missing_in_a_row() -> None:
    """All 2^10 sets of missing members at n = 10, k = 4; and no more sets of m are apart than the bound says."""
    n, degree = 10, 4
    for size in range(n + 1):
        apart = gaps = 0
        for removed in combinations(range(n), size):
            missing = set(removed)
            is_apart, has_gap = not connected(set(range(n)) - missing, n, degree), gap(missing, n, degree // 2)
            assert has_gap or not is_apart
            apart, gaps = apart + is_apart, gaps + has_gap
        bound = 2 ** min(disconnection_log2(n, degree, n, size), 0.0)
        assert apart <= gaps <= bound * math.comb(n, size) + 1e-9
    assert not connected({0, 5}, n, degree)


def test_directions() -> None:
    """More colluders, dropouts or bits never make k smaller; k grows like log n, not like n."""
    degrees = [topology(1000, gamma, 0.1).degree for gamma in (0.0, 0.05, 0.1, 0.2, 0.3)]
    assert degrees == sorted(degrees)
    degrees = [topology(1000, 0.1, delta).degree for delta in (0.0, 0.05, 0.1, 0.2, 0.3)]
    assert degrees == sorted(degrees)
    for name, values in (
        ("privacy_bits", (20, 40, 60)),
        ("correctness_bits", (10, 20, 80)),
        ("grinding_bits", (0, 64)),
    ):
        degrees = [topology(500, **{name: bits}).degree for bits in values]
        assert degrees == sorted(degrees)
        assert degrees[0] < degrees[-1]
    degrees = [topology(n).degree for n in (300, 1000, 3000, 10_000)]
    assert degrees == sorted(degrees)
    assert degrees[-1] < 1.5 * degrees[0]


@given(st.integers(2, 60), st.data())
def test_bounds_move_the_right_way(degree: int, data: st.DataObject) -> None:
    n, quorum = 100, data.draw(st.integers(80, 100))
    bad, threshold = data.draw(st.integers(0, 40)), data.draw(st.integers(3, degree + 1))
    assert (
        exposure_log2(n, degree, threshold, quorum, bad) <= exposure_log2(n, degree, threshold, quorum, bad + 1) + 1e-9
    )
    assert (
        exposure_log2(n, degree, threshold, quorum, bad) <= exposure_log2(n, degree, threshold - 1, quorum, bad) + 1e-9
    )
    assert starvation_log2(n, degree, threshold - 1, quorum) <= starvation_log2(n, degree, threshold, quorum) + 1e-9
    assert disconnection_log2(n, degree + 2, quorum, bad) <= disconnection_log2(n, degree, quorum, bad) + 1e-9


def test_colluders_round_as_in_the_policy() -> None:
    assert [ClientPolicy(colluders=gamma).bad(110) for gamma in (0.0, 0.1, 0.33)] == [1, 11, 37]


def test_who_is_certain_to_add_noise() -> None:
    assert certain_noisers(5, complete(5), 0.1) == 3  # threshold 4, one colluder, though a tenth of five is half of one
    assert certain_noisers(5, complete(5), 0.0) == 3
    assert certain_noisers(20, complete(20), 0.1) == 14 - 2
    assert certain_noisers(1000, topology(1000), 0.1) == 900 - 100 - 10
    assert certain_noisers(3, complete(3), 0.99) == 1


@pytest.mark.parametrize(("degree", "quorum"), [(600, 551), (600, 600), (996, 551), (552, 551), (550, 551)])
def test_a_degree_beyond_the_quorum_lets_no_small_threshold_pass(degree: int, quorum: int) -> None:
    """All of the fewer than k others that are left are neighbours then, every colluder among them."""
    shape = Topology(degree, 2, quorum)
    assert exposure_log2(1000, *astuple(shape), 100) >= 0
    bare = exposure_log2(1000, degree, 102, quorum, 100), exposure_log2(1000, degree, 103, quorum, 100)
    assert (bare[0] >= 0, bare[1]) == (True, -math.inf)
    roster = Roster(tuple(number.to_bytes(32, "big") for number in range(1000)))
    config = RoundConfig(
        run_id="run",
        round=1,
        attempt=0,
        nonce=bytes(32),
        model_hash=bytes(32),
        dim=4,
        bits=24,
        clip=1.0,
        roster_hash=roster.hash,
        degree=degree,
        threshold=2,
        quorum=quorum,
    )
    with pytest.raises(PolicyViolation, match="fail with probability"):
        ClientPolicy().check(config, roster)


@pytest.mark.parametrize("colluders", [0.3, 0.34, 0.38])
def test_many_colluders_never_lower_the_threshold(colluders: float) -> None:
    for n in (100, 120, 200):
        shape = topology(n, colluders, 0.1)
        assert shape.threshold > colluding(n, colluders) * shape.degree / n, shape
