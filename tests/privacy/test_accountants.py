"""Accountants against measured figures of two independent libraries, and the calibration built on them."""

from __future__ import annotations

import math
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant, RDPAccountant

from gradtf_fl.errors import BudgetExhausted, ConfigError
from gradtf_fl.privacy import (
    ACCOUNTANTS,
    DpEvent,
    SkellamEvent,
    UnsupportedEvent,
    epsilon_pld,
    epsilon_prv,
    epsilon_rdp,
    epsilon_skellam,
    epsilons,
    noise_multiplier,
    separate,
)
from gradtf_fl.privacy.accounting import accountants
from gradtf_fl.privacy.accounting.accountants import Pld, Prv, Rdp, SkellamRdp, epsilon_pld_replace_one, fits
from gradtf_fl.privacy.accounting.events import merge, merge_skellam
from gradtf_fl.privacy.accounting.prv import mesh_error, mesh_points

from .accountant_suite import DELTA, MIXED, ROW_EVENT, SUM_EVENT, TABLE, AccountantSuite, RowAccountantSuite


class TestPrv(RowAccountantSuite):
    accountant = Prv()


class TestPld(RowAccountantSuite):
    accountant = Pld()


class TestRdp(RowAccountantSuite):
    accountant = Rdp()


class TestSkellamRdp(AccountantSuite):
    accountant = SkellamRdp()
    events = (SUM_EVENT, SkellamEvent(variance=9e8, l2=2e4, l1=6e5, releases=2, noisers=9))
    foreign = ROW_EVENT

    def test_rounds_of_one_kind_are_merged(self) -> None:
        assert merge_skellam([SUM_EVENT] * 1000) == (replace(SUM_EVENT, releases=1000),)
        assert self.epsilon(*[SUM_EVENT] * 3) == epsilon_skellam([SUM_EVENT] * 3, DELTA)


def test_there_is_no_gaussian_dp_accountant_and_the_default_comes_first() -> None:
    assert [accountant.name for accountant in ACCOUNTANTS] == ["PRV", "PLD", "RDP", "Skellam RDP"]


def test_a_history_of_both_mechanisms_gives_two_epsilons() -> None:
    rows, sums = separate([ROW_EVENT, SUM_EVENT, ROW_EVENT, SUM_EVENT])
    assert (rows, sums) == ((ROW_EVENT, ROW_EVENT), (SUM_EVENT, SUM_EVENT))
    assert Prv().epsilon(rows, DELTA) != SkellamRdp().epsilon(sums, DELTA)
    with pytest.raises(UnsupportedEvent):
        Prv().epsilon([*rows, *sums], DELTA)


HISTORIES = [*(([event], delta) for event, delta in TABLE), (list(MIXED), 1e-5), ([DpEvent(50.0, 1 / 16, 150)], 1e-5)]


@pytest.mark.filterwarnings("ignore")  # of Opacus: log(0) at q = 1, and the largest order being the best
@pytest.mark.parametrize(("history", "delta"), HISTORIES)
def test_opacus_on_its_own_mesh_says_the_same(history: list[DpEvent], delta: float) -> None:
    """Our mesh is wider and our RDP curve is kept; neither changes an epsilon."""
    for opacus, ours in ((PRVAccountant(), epsilon_prv), (RDPAccountant(), epsilon_rdp)):
        opacus.history = [(event.sigma, event.q, event.steps) for event in history]
        error = min(0.01, epsilon_rdp(history, delta) / 50)
        theirs = opacus.get_epsilon(delta=delta, eps_error=error)
        assert ours(history, delta) == pytest.approx(theirs, abs=2e-4), opacus.mechanism()


@given(st.floats(3, 60), st.floats(1e-5, 1e-2))
def test_the_mesh_is_the_next_size_that_transforms_fast(half_width: float, step: float) -> None:
    points = mesh_points(half_width, step)
    assert (points / 2 - 1) * step >= half_width
    assert points < 1.2 * (2 * half_width / step) + 8
    for prime in (2, 3, 5):
        assert prime != 2 or points % 2 == 0
        while points % prime == 0:
            points //= prime
    assert points == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.floats(0.5, 2.5))
def test_a_charge_fits_when_prv_says_so(rounds: int, budget: float) -> None:
    """The shortcut by RDP never answers otherwise."""
    event = DpEvent(1.75, 1 / 16, 20)
    within = epsilon_prv([event] * (rounds + 1), 1e-5) <= budget
    assert fits([event] * rounds, event, 1e-5, budget) == within


def test_far_from_the_budget_prv_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(accountants, "epsilon_prv", lambda events, delta: asked.append(delta) or 3.0)
    assert fits(MIXED[:1], MIXED[1], 1e-5, 100.0)
    assert asked == []
    assert not fits(MIXED[:1], MIXED[1], 1e-5, 2.0)
    assert asked == [1e-5]


def test_order_and_splitting_of_a_history_do_not_matter() -> None:
    split = [DpEvent(1.2, 0.05, 15), *reversed(MIXED[:2]), DpEvent(1.2, 0.05, 25), MIXED[3], DpEvent(9, 0, 7)]
    assert epsilons(split, 1e-5) == epsilons(MIXED, 1e-5)


def test_replacing_a_row_costs_between_one_and_two_times_adding_one() -> None:
    once = epsilon_pld(MIXED, 1e-5)
    assert once < epsilon_pld_replace_one(MIXED, 1e-5) < 2 * once


def test_very_little_noise_gives_a_finite_valid_bound() -> None:
    by_pld = 254.206  # 6 seconds
    assert by_pld <= epsilon_prv([DpEvent(0.2, 0.5, 20)], 1e-5) < by_pld + 2 * mesh_error(by_pld)
    beyond = [DpEvent(0.05, 0.5, 100)]  # exp overflows in PRV here
    assert epsilon_prv(beyond, 1e-5) == epsilon_rdp(beyond, 1e-5) < math.inf


def test_tight_budgets_are_not_swamped_by_the_error_of_the_mesh() -> None:
    event = DpEvent(50.0, 1 / 16, 150)
    assert epsilon_pld([event], 1e-5) <= epsilon_prv([event], 1e-5) <= 1.06 * epsilon_pld([event], 1e-5)


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
    code = "import sys, gradtf_fl.privacy, gradtf_fl.cli.audit.audit; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
