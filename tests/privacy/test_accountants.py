"""Accountants against measured figures of two independent libraries, and the calibration built on them."""

from __future__ import annotations

import math
import subprocess
import sys
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradtf_fl.errors import BudgetExhausted, ConfigError
from gradtf_fl.privacy import DpEvent, epsilon_pld, epsilon_prv, epsilon_rdp, epsilons, noise_multiplier
from gradtf_fl.privacy.accountants import epsilon_pld_replace_one
from gradtf_fl.privacy.events import merge

MIXED = [DpEvent(1.0, 0.05, 40), DpEvent(0.8, 0.1, 20), DpEvent(1.2, 0.05, 40), DpEvent(1.0, 0.02, 100)]


@pytest.mark.parametrize(
    ("event", "delta", "rdp", "prv", "pld"),
    [
        (DpEvent(1.0, 0.01, 1000), 1e-5, 2.101, 1.838, 1.828),
        (DpEvent(0.6, 0.05, 200), 1e-5, 17.530, 15.473, 15.462),
        (DpEvent(2.0, 0.02, 5000), 1e-6, 3.873, 3.619, 3.609),
        (DpEvent(0.8, 0.1, 60), 1e-4, 8.500, 7.298, 7.287),
        (DpEvent(1.2, 1.0, 10), 1e-5, 15.100, 14.130, 14.119),
    ],
)
def test_measured_figures(event: DpEvent, delta: float, rdp: float, prv: float, pld: float) -> None:
    found = epsilons([event], delta)
    assert found.prv == pytest.approx(prv, abs=0.015)
    assert found.pld == pytest.approx(pld, abs=0.005)
    assert found.rdp == pytest.approx(rdp, abs=0.002)


def test_mixed_history_is_composed_jointly() -> None:
    assert epsilon_prv(MIXED, 1e-5) == pytest.approx(6.265, abs=0.015)
    assert epsilon_pld(MIXED, 1e-5) == pytest.approx(6.254, abs=0.005)
    assert sum(epsilon_rdp([event], 1e-5) for event in MIXED) > 2 * epsilon_prv(MIXED, 1e-5)


def test_order_and_splitting_of_a_history_do_not_matter() -> None:
    split = [DpEvent(1.2, 0.05, 15), *reversed(MIXED[:2]), DpEvent(1.2, 0.05, 25), MIXED[3], DpEvent(9, 0, 7)]
    assert epsilons(split, 1e-5) == epsilons(MIXED, 1e-5)


def test_no_history_costs_nothing_and_no_noise_costs_everything() -> None:
    assert vars(epsilons([], 1e-5)) == {"prv": 0, "pld": 0, "rdp": 0}
    assert epsilon_prv([DpEvent(0.0, 0.5, 1)], 1e-5) == math.inf
    assert epsilon_prv([DpEvent(0.0, 0.0, 9), DpEvent(0.0, 0.5, 0)], 1e-5) == 0


def test_replacing_a_row_costs_between_one_and_two_times_adding_one() -> None:
    once = epsilon_pld(MIXED, 1e-5)
    assert once < epsilon_pld_replace_one(MIXED, 1e-5) < 2 * once


def test_very_little_noise_gives_a_finite_valid_bound() -> None:
    assert epsilon_prv([DpEvent(0.2, 0.5, 20)], 1e-5) == pytest.approx(254.206, abs=0.03)  # by PLD, 6 seconds
    beyond = [DpEvent(0.05, 0.5, 100)]  # exp overflows in PRV here
    assert epsilon_prv(beyond, 1e-5) == epsilon_rdp(beyond, 1e-5) < math.inf


def test_tight_budgets_are_not_swamped_by_the_error_of_the_mesh() -> None:
    event = DpEvent(50.0, 1 / 16, 150)
    assert epsilon_pld([event], 1e-5) <= epsilon_prv([event], 1e-5) <= 1.06 * epsilon_pld([event], 1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_delta_outside_its_range_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        epsilon_prv(MIXED, delta)


@pytest.mark.parametrize(
    "fields", [(-1.0, 0.1, 1), (math.nan, 0.1, 1), (math.inf, 0.1, 1), (1.0, 1.1, 1), (1.0, 0.1, -1)]
)
def test_events_outside_their_range_are_refused(fields: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        DpEvent(*fields)


EVENTS = st.builds(DpEvent, st.sampled_from([0.7, 1.0, 2.0]), st.sampled_from([0.0, 0.01, 0.1]), st.integers(0, 50))


@given(st.lists(EVENTS, max_size=6), st.randoms())
def test_merging_keeps_every_step(events: list[DpEvent], random: object) -> None:
    shuffled = list(events)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert merge(events) == merge(shuffled) == merge(merge(events))
    counted = sum(event.steps for event in events if event.q > 0)
    assert sum(event.steps for event in merge(events)) == counted


@pytest.mark.parametrize(
    ("target", "q", "steps"),
    [(8.0, 1 / 16, 150), (1.0, 1 / 16, 150), (0.1, 0.01, 100), (3.0, 1.0, 5), (20.0, 0.1, 10)],
)
def test_calibrated_noise_spends_the_target_and_never_more(target: float, q: float, steps: int) -> None:
    sigma = noise_multiplier(target, 1e-5, q, steps)
    assert 0.99 * target <= epsilon_prv([DpEvent(sigma, q, steps)], 1e-5) <= target
    assert epsilon_pld([DpEvent(sigma, q, steps)], 1e-5) <= target


def test_calibration_knows_what_was_spent() -> None:
    spent = [DpEvent(1.0, 1 / 16, 50)]  # epsilon 3.30
    sigma = noise_multiplier(4.0, 1e-5, 1 / 16, 50, spent)
    assert sigma > noise_multiplier(4.0, 1e-5, 1 / 16, 50)
    assert 3.95 <= epsilon_prv([*spent, DpEvent(sigma, 1 / 16, 50)], 1e-5) <= 4.0


@settings(max_examples=6, deadline=None)
@given(st.floats(0.2, 15), st.sampled_from([1e-4, 1e-5, 1e-6]), st.floats(0.005, 1.0), st.integers(1, 400))
def test_no_plan_is_calibrated_past_its_target(target: float, delta: float, q: float, steps: int) -> None:
    sigma = noise_multiplier(target, delta, q, steps)
    assert 0.97 * target <= epsilon_prv([DpEvent(sigma, q, steps)], delta) <= target


def test_an_exhausted_budget_leaves_nothing_to_calibrate() -> None:
    with pytest.raises(BudgetExhausted, match=r"3\.302 is spent"):
        noise_multiplier(3.0, 1e-5, 1 / 16, 50, [DpEvent(1.0, 1 / 16, 50)])


def test_every_bad_argument_of_the_calibration_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        noise_multiplier(math.nan, 2.0, 0.0, 0)
    assert len(caught.value.problems) == 4
    with pytest.raises(ConfigError, match="no noise keeps"):
        noise_multiplier(0.01, 1e-5, 1.0, 10**9)


def test_a_senseless_history_takes_the_rdp_bound_and_little_memory() -> None:
    events = [DpEvent(10_000.0, 1.0, 10**9)]
    tracemalloc.start()
    epsilon = epsilon_prv(events, 1e-5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert epsilon == epsilon_rdp(events, 1e-5)
    assert peak < 200 * 2**20


def test_the_room_loads_without_torch() -> None:
    code = "import sys, gradtf_fl.privacy, gradtf_fl.cli.audit; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
