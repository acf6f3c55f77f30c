"""Calibration of what is LEFT of a budget: the least noise, never past the budget, and a clear end."""

from __future__ import annotations

import pytest
from opacus.accountants.utils import get_noise_multiplier

from gradtf_fl.errors import BudgetExhausted, ConfigError
from gradtf_fl.privacy import DpEvent, epsilon_pld, epsilon_prv, noise_multiplier
from gradtf_fl.privacy.accounting import calibration

DELTA = 1e-5
SPENT = (DpEvent(1.0, 1 / 16, 50),)
"""Epsilon 3.302."""


def budget_after(sigma: float, q: float, steps: int, spent: tuple[DpEvent, ...]) -> float:
    return epsilon_prv([*spent, DpEvent(sigma, q, steps)], DELTA)


@pytest.mark.parametrize(
    ("budget", "q", "steps", "spent"),
    [
        (8.0, 1 / 16, 150, ()),
        (4.0, 1 / 16, 50, SPENT),
        (3.5, 1.0, 1, SPENT),
        (3.31, 1 / 16, 50, SPENT),
        (3.303, 1 / 16, 50, SPENT),  # a thousandth is left
        (6.0, 0.02, 400, (*SPENT, DpEvent(0.8, 0.1, 5), DpEvent(2.0, 0.02, 300))),
        (0.1, 1 / 16, 50, (DpEvent(20.0, 1 / 16, 50),)),
        (0.05, 0.01, 100, ()),
    ],
)
def test_the_least_noise_that_what_is_left_allows(
    budget: float, q: float, steps: int, spent: tuple[DpEvent, ...]
) -> None:
    sigma = noise_multiplier(budget, DELTA, q, steps, spent)
    assert budget_after(sigma, q, steps, spent) <= budget
    assert budget_after(0.995 * sigma, q, steps, spent) > budget
    assert epsilon_pld([*spent, DpEvent(sigma, q, steps)], DELTA) <= budget


def test_spending_the_rest_in_two_parts_takes_more_noise_than_in_one() -> None:
    """And the second part still fits: the history grows by what the first one used."""
    whole = noise_multiplier(4.0, DELTA, 1 / 16, 50, SPENT)
    first = DpEvent(noise_multiplier(3.6, DELTA, 1 / 16, 25, SPENT), 1 / 16, 25)
    second = DpEvent(noise_multiplier(4.0, DELTA, 1 / 16, 25, [*SPENT, first]), 1 / 16, 25)
    assert epsilon_prv([*SPENT, first, second], DELTA) <= 4.0
    assert max(first.sigma, second.sigma) > whole


@pytest.mark.parametrize("budget", [3.0, 3.301677])
def test_nothing_left_is_said(budget: float) -> None:
    with pytest.raises(BudgetExhausted, match=r"3\.302 is spent"):
        noise_multiplier(budget, DELTA, 1 / 16, 50, SPENT)


def test_so_little_left_that_no_noise_is_enough() -> None:
    with pytest.raises(BudgetExhausted, match=r"no noise keeps .* of which 3\.302 is spent"):
        noise_multiplier(3.302, DELTA, 1.0, 10**7, SPENT)
    with pytest.raises(ConfigError, match="raise it"):
        noise_multiplier(0.01, DELTA, 1.0, 10**9)


@pytest.mark.filterwarnings("ignore:Optimal order")
def test_a_tight_budget_that_opacus_does_not_calibrate() -> None:
    with pytest.raises(ValueError, match="too low"):
        get_noise_multiplier(target_epsilon=0.05, target_delta=DELTA, sample_rate=0.01, steps=100, accountant="rdp")
    sigma = noise_multiplier(0.05, DELTA, 0.01, 100)
    assert 0.0499 < budget_after(sigma, 0.01, 100, ()) <= 0.05


def test_a_generous_budget_takes_little_noise() -> None:
    sigma = noise_multiplier(300.0, DELTA, 1.0, 1)
    assert 290 < budget_after(sigma, 1.0, 1, ()) <= 300
    assert sigma < 0.06


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[tuple[DpEvent, ...]]:
    """Every history that a search asks PRV for."""
    asked: list[tuple[DpEvent, ...]] = []

    def noted(history: tuple[DpEvent, ...], delta: float) -> float:
        asked.append(history)
        return epsilon_prv(history, delta)

    monkeypatch.setattr(calibration, "epsilon_prv", noted)
    calibration._calibrated.cache_clear()
    return asked


@pytest.mark.parametrize(
    ("budget", "q", "steps", "most"),
    [
        (0.01, 1 / 16, 1000, 7),
        (0.1, 0.5, 20_000, 7),
        (0.5, 0.01, 600_000, 7),
        (0.02, 0.1, 3000, 7),
        (0.1, 1e-4, 50, 20),  # sigma below 1, where the curve is bent
    ],
)
def test_a_plan_that_is_dear_to_calibrate_takes_few_trials(
    budget: float, q: float, steps: int, most: int, trials: list[tuple[DpEvent, ...]]
) -> None:
    """A node calibrates what a server asks for before it can refuse: a trial takes up to half a second."""
    sigma = noise_multiplier(budget, DELTA, q, steps)
    assert len(trials) <= most
    assert budget_after(sigma, q, steps, ()) <= budget < budget_after(0.995 * sigma, q, steps, ())
    trials.clear()
    assert noise_multiplier(budget, DELTA, q, steps) == sigma
    assert not trials
