"""Members vanish at every stage in every way: the exact sum of those who masked, or `RoundAborted`; nothing else."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradtf_fl.errors import RoundAborted
from gradtf_fl.round_messages import STAGES
from gradtf_fl.secagg import (
    ClientPolicy,
    ReplayRandomness,
    SecureSum,
    Topology,
    run,
    run_secure_sum,
    smallest_threshold,
)

from .federation import AnyGraphPolicy, Federation

NEVER = len(STAGES)
Pattern = tuple[int, ...]
"""For each member the number of the stage at which it vanishes, or `NEVER`."""


def outcome(pattern: Pattern, quorum: int, threshold: int) -> tuple[str | None, dict[str, int], list[int]]:
    """(stage that aborts or None, counts until then, members in the sum) on a complete graph."""
    counts = {}
    for number, stage in enumerate(STAGES):
        counts[stage] = sum(gone > number for gone in pattern)
        if counts[stage] < (threshold if stage == STAGES[-1] else quorum):
            return stage, counts, []
    return None, counts, [i for i, gone in enumerate(pattern) if gone > STAGES.index("mask")]


def drops(pattern: Pattern) -> dict[str, list[int]]:
    return {stage: [i for i, gone in enumerate(pattern) if gone == number] for number, stage in enumerate(STAGES)}


def check(federation: Federation, pattern: Pattern, threshold: int) -> None:
    """Runs the round to the very end that ``pattern`` must have."""
    stage, counts, members = outcome(pattern, threshold, threshold)
    if stage is None:
        result = federation.run(drops(pattern))
        np.testing.assert_array_equal(result.mean, federation.expected(members), err_msg=str(pattern))
        assert result.clients == len(members)
    else:
        with pytest.raises(RoundAborted) as aborted:
            federation.run(drops(pattern))
        assert (aborted.value.stage, aborted.value.counts, aborted.value.exit_code) == (stage, counts, 4), pattern
    assert federation.gone == {}  # the server aborts before a client has to leave


def distinct(n: int, threshold: int) -> Iterator[Pattern]:
    """One of all patterns that are equal up to the stage that aborts: what comes after it cannot matter."""
    seen = set()
    for pattern in product(range(NEVER + 1), repeat=n):
        stage = outcome(pattern, threshold, threshold)[0]
        last = NEVER if stage is None else STAGES.index(stage) + 1
        pattern = tuple(min(gone, last) for gone in pattern)
        if pattern not in seen:
            seen.add(pattern)
            yield pattern


@pytest.mark.long
def test_every_dropout_pattern_of_four() -> None:
    """7^4 = 2401 patterns, of which those that cannot differ run once."""
    patterns = list(distinct(4, threshold=3))
    assert len(patterns) == (1 + 4 * 6) + sum(11 + 4 * s * 7 for s in range(6))  # as for five, below
    for pattern in patterns:
        check(Federation(n=4, dim=2, threshold=3), pattern, threshold=3)


@pytest.mark.slow
def test_every_dropout_pattern_of_five() -> None:
    """7^5 = 16807 patterns, of which those that cannot differ run once."""
    patterns = list(distinct(5, threshold=4))
    # completed: nobody or one at one stage; aborted at s: two or more of five at s, or one before and one or more at s
    assert len(patterns) == (1 + 5 * 6) + sum(26 + 5 * s * 15 for s in range(6))
    for pattern in patterns:
        check(Federation(n=5, dim=2), pattern, threshold=4)


@pytest.mark.slow
@pytest.mark.timeout(3600)  # 20 minutes of CPU on a busy machine
def test_every_dropout_pattern_of_five_each_run_on_its_own() -> None:
    patterns = list(product(range(NEVER + 1), repeat=5))
    assert len(patterns) == 7**5
    for pattern in patterns:
        check(Federation(n=5, dim=2), pattern, threshold=4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_dropout_pattern_of_five_with_a_majority() -> None:
    """A threshold that no policy takes: two may vanish at any two stages."""
    policy = AnyGraphPolicy()
    patterns = list(distinct(5, threshold=3))
    completed, aborted_at = 1 + 30 + 10 * 36, (16 + 5 * s * 11 + 10 * s * s * 7 for s in range(6))
    assert len(patterns) == completed + sum(aborted_at)
    for pattern in patterns:
        check(Federation(n=5, dim=2, threshold=3, policy=policy), pattern, threshold=3)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), n=st.integers(2, 7), bits=st.sampled_from([16, 20, 24, 32]))
def test_sums_are_exact_for_any_shape(data: st.DataObject, n: int, bits: int) -> None:
    threshold = data.draw(st.integers(smallest_threshold(n), n))
    pattern = tuple(data.draw(st.sampled_from([NEVER] * 4 + list(range(NEVER)))) for _ in range(n))
    weighted = data.draw(st.booleans())
    noisy = not weighted and bits > 20 and data.draw(st.booleans())
    federation = Federation(
        n=n,
        bits=bits,
        dim=data.draw(st.integers(1, 40)),
        threshold=threshold,
        policy=ClientPolicy(n_min=2, allow_two=True, t_min=2, max_weight=1e6),
        weight_rule="examples" if weighted else "uniform",
        max_weight=100.0 if weighted else 1.0,
        noise_multiplier=0.25 if noisy else 0.0,
        noisers=threshold - 1 if noisy else 0,
        seed=data.draw(st.binary(max_size=4)),
    )
    if weighted:
        federation.weights = [data.draw(st.floats(10.0, 100.0)) for _ in range(n)]
    check(federation, pattern, threshold)


# -- k-regular graphs -------------------------------------------------------------------------------------


def check_regular(federation: Federation, drop: dict[str, list[int]], start: str = "advertise") -> str:
    """The stage that aborted, or "sum". Counts, and who is starved, are worked out here once more."""
    end: RoundAborted | SecureSum
    try:
        end = federation.run(drop, start=start)
    except RoundAborted as aborted:
        end = aborted
    if isinstance(end, SecureSum):
        members = [i for i in range(federation.n) if i not in lost(federation, drop, "mask")]
        np.testing.assert_array_equal(end.mean, federation.expected(members))
        assert end.clients == len(members)
        assert not starved(federation, drop)
        return "sum"
    config, stages = federation.config, STAGES[: STAGES.index(end.stage) + 1]
    assert end.counts == {stage: federation.n - len(lost(federation, drop, stage)) for stage in stages}
    *earlier, last = end.counts.values()
    assert all(count >= config.quorum for count in earlier)
    if last >= (config.threshold if end.stage == "unmask" else config.quorum):
        assert end.stage == "unmask"
        assert "too few shares of member" in str(end)
        assert starved(federation, drop)
    return end.stage


def lost(federation: Federation, drop: dict[str, list[int]], stage: str) -> set[int]:
    """Members that are away once ``stage`` is over: vanished, or left on their own."""
    stages = STAGES[: STAGES.index(stage) + 1]
    return {i for name in stages for i in (*drop.get(name, ()), *federation.gone.get(name, ()))}


def starved(federation: Federation, drop: dict[str, list[int]]) -> bool:
    """Whether some member of U2 has fewer than t holders left at the end (its own share of s does not count)."""
    around, answered = federation.server._around, set(range(federation.n)) - lost(federation, drop, "unmask")
    summed = set(range(federation.n)) - lost(federation, drop, "mask")
    return any(
        sum(holder in answered for holder in (*around[owner], *([owner] if owner in summed else ())))
        < federation.config.threshold
        for owner in around
    )


def random_drops(
    rng: random.Random, members: Collection[int], most: int, stages: Sequence[str] = STAGES
) -> dict[str, list[int]]:
    """Up to ``most`` of ``members``, about half of them at one of ``stages`` and the others at any."""
    favourite, drop = rng.choice(stages), {stage: list[int]() for stage in STAGES}
    for i in rng.sample(sorted(members), rng.randint(0, most)):
        drop[favourite if rng.random() < 0.5 else rng.choice(stages)].append(i)
    return drop


@pytest.mark.long
def test_random_dropouts_on_a_small_circle() -> None:
    """n = 12, k = 6, t = 5, Q = 6: so few that members are starved of neighbours and have to leave on their own."""
    rng, ends, left = random.Random(3), set(), set()
    for case in range(60):
        seed = case.to_bytes(4, "big")
        federation = Federation(n=12, dim=2, degree=6, threshold=5, quorum=6, policy=AnyGraphPolicy(), seed=seed)
        ends.add(check_regular(federation, random_drops(rng, range(12), 9)))
        left |= federation.gone.keys()
    assert ends == {"sum", *STAGES}
    assert left == {"accept", "mask", "consistency"}


def branches(n: int, cases: int, seed: int) -> list[str]:
    """One k-regular federation up to stage 2, then ``cases`` random ends of it."""
    rng = random.Random(seed)
    trunk = Federation(n=n, dim=2, seed=str(seed).encode())
    assert trunk.config.degree < n - 1
    gone = rng.sample(range(n), rng.randint(0, 5))
    early = {"advertise": gone[:2], "share": gone[2:]}
    trunk.play("advertise", sorted(set(range(n)) - set(gone[:2])))
    alive = sorted(set(range(n)) - set(gone))
    trunk.play("share", alive)
    drops = (random_drops(rng, alive, n - trunk.config.quorum + 6, STAGES[2:]) for _ in range(cases))
    return [check_regular(trunk.fork(), drop | early, start="accept") for drop in drops]


@pytest.mark.long
def test_random_dropouts_of_a_hundred() -> None:
    assert set(branches(100, cases=5, seed=5)) == {"sum", "accept", "mask", "consistency"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n", [100, 120])
def test_many_random_dropouts_on_regular_graphs(n: int, seed: int) -> None:
    assert "sum" in branches(n, cases=12, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_early_dropouts_on_regular_graphs(seed: int) -> None:
    """Every stage of every case is run: members vanish before the graph is drawn, too."""
    rng = random.Random(seed)
    for _ in range(4):
        federation = Federation(n=100, dim=2, seed=rng.randbytes(4))
        check_regular(federation, random_drops(rng, range(100), 14))


@pytest.mark.long
def test_the_published_run_takes_dropouts_at_every_stage_of_a_regular_graph() -> None:
    drop = {"advertise": [0, 1], "share": [2, 3], "mask": [4, 5], "consistency": [6, 7], "unmask": [8, 9, 10]}
    vectors = [np.full(2, i / 200) for i in range(100)]
    result = run_secure_sum(vectors, drop=drop)
    np.testing.assert_allclose(result.mean, np.full(2, np.mean(range(6, 100)) / 200), atol=100 * 2**-22)
    assert result.clients == 94
    with pytest.raises(RoundAborted) as aborted:
        run_secure_sum(vectors, drop=drop | {"mask": range(4, 12)})
    assert (aborted.value.stage, aborted.value.counts) == (
        "mask",
        {"advertise": 98, "share": 96, "accept": 96, "mask": 88},
    )


def test_the_published_run_lets_starved_clients_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "topology", lambda n: Topology(6, 5, 6))
    monkeypatch.setattr(run, "ClientPolicy", AnyGraphPolicy)
    ends = set()
    for case in range(20):
        randomness = ReplayRandomness(case.to_bytes(4, "big"))
        drop = {"mask": random.Random(case).sample(range(12), 2 + case % 4)}
        try:
            run_secure_sum([np.zeros(2)] * 12, drop=drop, randomness=randomness)
            ends.add("sum")
        except RoundAborted as aborted:
            ends.add(aborted.stage)
    assert ends == {"sum", "consistency", "unmask"}
