"""How many neighbours a member needs: the k-regular graph's parameters from the failure one accepts.

After Bell, Bonawitz, Gascon, Lepoint, Raykova, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead"
(CCS 2020), whose conditions on a good graph are

1. no honest member has so many colluding neighbours that they can rebuild its secrets;
2. the honest members that stay are connected, so that only the sum over all of them can be opened;
3. every member keeps at least t members in its closed neighbourhood, so that the round ends.

What is assumed: at most c of n members collude with the server, chosen before the graph is drawn; members that
drop out, at most n - Q, do so independently of the graph. The graph's root is a hash of all adverts, the last of
which the server may choose: it can try graphs until it likes one. `GRINDING_BITS` accounts for that, the failure
probability of one graph being multiplied by the number of graphs tried. A server that CHOOSES who drops is not
covered by condition 2; condition 1 is therefore held with a margin: every piece that it could then open has at
least `SMALLEST_PIECE` honest members, see `topology`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from gradtf_fl.errors import ConfigError
from gradtf_fl.secagg.graph import COMPLETE_BELOW
from gradtf_fl.secagg.round_config import default_threshold

PRIVACY_BITS = 40
CORRECTNESS_BITS = 20
GRINDING_BITS = 64
SMALLEST_PIECE = 3
_EXACT = 1e-9  # .1 * 110 is a little more than 11 in floating point, and means 11


@dataclass(frozen=True)
class Topology:
    """degree k; threshold t of a closed neighbourhood; quorum Q of the whole round."""

    degree: int
    threshold: int
    quorum: int


@lru_cache(maxsize=64)
def topology(
    n: int,
    colluders: float = 0.1,
    dropouts: float = 0.1,
    privacy_bits: float = PRIVACY_BITS,
    correctness_bits: float = CORRECTNESS_BITS,
    grinding_bits: float = GRINDING_BITS,
    bad: int | None = None,
) -> Topology:
    """The cheapest sound graph for ``n`` members: complete below 100 or where k would reach n - 1.

    Args:
        colluders: gamma, the share of members that may collude with the server; rounded up, and at least one.
        dropouts: delta, the share of members that may vanish; the quorum is n - floor(delta n).
        privacy_bits: conditions 1 and 2 fail with probability at most 2^-privacy_bits.
        correctness_bits: condition 3 fails with probability at most 2^-correctness_bits.
        grinding_bits: log2 of the graphs that the server may try before it settles for one.
        bad: c where it is not the share ``colluders`` of n, as in a sample (`colluders_in_sample`).

    Raises:
        ConfigError: shares outside 0..1, or so large that no graph helps (Q must exceed (n + c) / 2).
    """
    if not (0 <= colluders < 1 and 0 <= dropouts < 1):
        raise ConfigError("colluders and dropouts are shares of the members, at least 0 and below 1")
    bad = colluding(n, colluders) if bad is None else bad
    if n < COMPLETE_BELOW:
        return complete(n, bad)
    quorum = n - math.floor(dropouts * n)
    if 2 * quorum <= n + bad:
        raise ConfigError(
            f"with {bad} of {n} members colluding, {n - quorum} dropouts are too many: two sets of members"
        )
    for degree in range(2, n - 1, 2):
        threshold = _smallest_threshold(n, degree, quorum, bad, privacy_bits + grinding_bits)
        if threshold is None or disconnection_log2(n, degree, quorum, bad) > -privacy_bits - grinding_bits:
            continue
        if starvation_log2(n, degree, threshold, quorum) <= -correctness_bits:
            return Topology(degree, threshold, quorum)
    return complete(n, bad)


def colluding(n: int, share: float) -> int:
    """c: members out of ``n`` that may collude with the server: the share rounded up, and never fewer than one."""
    return max(1, math.ceil(share * n - _EXACT))


@lru_cache(maxsize=256)
def colluders_in_sample(
    population: int, share: float, drawn: int, trials: int, privacy_bits: int = PRIVACY_BITS
) -> int:
    """c: colluders that ``drawn`` of ``population`` organizations hold at most, except with probability
    2^-privacy_bits.

    The smallest c with trials * P[X > c] <= 2^-privacy_bits for X hypergeometric: ``drawn`` without replacement, of
    which `colluding` are marked. Whole numbers throughout, so two machines never differ.

    >>> from gradtf_fl.secagg import colluders_in_sample
    >>> colluders_in_sample(1000, 0.1, 100, 1), colluders_in_sample(1000, 0.1, 100, 2**20)
    (34, 40)

    Args:
        trials: samples that a server can look at before it uses one, see `ClientPolicy.choices`.
    """
    bad = colluding(population, share)
    hits, total, tail = min(bad, drawn), math.comb(population, drawn), 0
    ways = math.comb(bad, hits) * math.comb(population - bad, drawn - hits)
    while hits > 1:
        tail += ways  # tail / total = P[X >= hits]
        if (trials * tail) << privacy_bits > total:
            break
        ways = ways * hits * (population - bad - drawn + hits) // ((bad - hits + 1) * (drawn - hits + 1))
        hits -= 1
    return hits


def certain_noisers(n: int, shape: Topology, colluders: float, bad: int | None = None) -> int:
    """Honest members that are sure to have added noise to an opened sum: Q - c, at least 1.

    On a k-regular graph one in a hundred less: votes are sampled there, so that a few members of U3 may be invented
    (three of 900 make a fifth of all clients refuse, which ends most rounds).
    """
    invented = 0 if shape.degree >= n - 1 else math.ceil(n / 100)
    bad = colluding(n, colluders) if bad is None else bad
    return max(1, shape.quorum - bad - invented)


def complete(n: int, bad: int = 0) -> Topology:
    """The complete graph of ``n`` members, its threshold the default or, against more colluders, 2t > n + c.

    Raises:
        ConfigError: more than n - 2 of them collude.
    """
    threshold = max(default_threshold(n), (n + bad) // 2 + 1)
    if threshold > n:
        raise ConfigError(f"with {bad} of {n} members colluding no threshold helps")
    return Topology(n - 1, threshold, threshold)


def privacy_failure_log2(n: int, shape: Topology, colluders: float, bad: int | None = None) -> float:
    """log2 of the probability that condition 1 or 2 fails for one graph, dropouts being at most n - Q.

    Args:
        bad: c, as in `topology`.
    """
    bad = colluding(n, colluders) if bad is None else bad
    first = exposure_log2(n, shape.degree, shape.threshold, shape.quorum, bad)
    return _log2_sum(first, disconnection_log2(n, shape.degree, shape.quorum, bad))


def exposure_log2(n: int, degree: int, threshold: int, quorum: int, bad: int) -> float:
    """Condition 1: log2 of a bound on P[some member has more than t - SMALLEST_PIECE colluding neighbours].

    A neighbourhood is a sample without replacement from the other members of U1, of which there are at least Q - 1
    (the colluders all stay, which is the worst case): hypergeometric, times n by the union bound.
    """
    return math.log2(n) + hypergeometric_tail_log2(quorum - 1, bad, degree, threshold - SMALLEST_PIECE + 1)


def disconnection_log2(n: int, degree: int, quorum: int, bad: int) -> float:
    """Condition 2: log2 of a bound on P[k/2 members in a row on the circle collude or drop out].

    Where no k/2 in a row are missing, each remaining member reaches the next one, so all are connected.
    """
    missing, half = bad + n - quorum, degree // 2
    if missing < half:
        return -math.inf
    return math.log2(n) + sum(math.log2((missing - i) / (n - i)) for i in range(half))


def starvation_log2(n: int, degree: int, threshold: int, quorum: int) -> float:
    """Condition 3: log2 of a bound on P[fewer than t of some member's closed neighbourhood stay]."""
    return math.log2(n) + hypergeometric_tail_log2(n - 1, n - quorum, degree, degree + 2 - threshold)


def hypergeometric_tail_log2(population: int, marked: int, drawn: int, least: int) -> float:
    """log2 P[X >= least], X = number of marked ones among ``drawn`` of ``population``, without replacement.

    Who draws more than there are gets all of them: k neighbours of fewer than k members that are left.
    """
    drawn = min(drawn, population)
    most = min(marked, drawn)
    least = max(least, drawn - (population - marked), 0)
    total = -math.inf
    for hits in range(most, least - 1, -1):  # small terms first
        term = _choose_log2(marked, hits) + _choose_log2(population - marked, drawn - hits)
        total = _log2_sum(total, term - _choose_log2(population, drawn))
    return min(total, 0.0)


def _smallest_threshold(n: int, degree: int, quorum: int, bad: int, bits: float) -> int | None:
    low, high = 2, degree + 2  # exposure falls with t: bisect for the first t that is safe
    while low < high:
        middle = (low + high) // 2
        if exposure_log2(n, degree, middle, quorum, bad) <= -bits:
            high = middle
        else:
            low = middle + 1
    return low if low <= degree + 1 else None


def _choose_log2(n: int, k: int) -> float:
    if not 0 <= k <= n:
        return -math.inf
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def _log2_sum(a: float, b: float) -> float:
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log2(1 + 2.0 ** (low - high))
