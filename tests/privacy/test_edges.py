"""Inputs at the edge: every accountant answers within seconds, never below the truth, or a ConfigError says why not."""

from __future__ import annotations

import math
import time

import pytest

from gradtf_fl.config import FederationPlan, OrganizationConfig, validate
from gradtf_fl.errors import ConfigError
from gradtf_fl.privacy import DpEvent, epsilon_prv, noise_multiplier
from gradtf_fl.privacy.accounting.accountants import epsilon_pld, epsilon_pld_replace_one, epsilon_rdp, fits
from gradtf_fl.round_messages import MAX_EPSILON, MIN_DELTA, MIN_EPSILON, MalformedFields, TrainingPlan

SECONDS = 20.0


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Exact epsilon of Gaussians without sampling, mu = sqrt(steps) / sigma (Balle and Wang 2018, theorem 8)."""

    def log_tail(x: float) -> float:  # log P[Normal(0, 1) > x]
        return (
            math.log(math.erfc(x / math.sqrt(2)) / 2) if x < 25 else -x * x / 2 - math.log(x * math.sqrt(2 * math.pi))
        )

    def delta_of(epsilon: float) -> float:
        first, second = log_tail(epsilon / mu - mu / 2), epsilon + log_tail(epsilon / mu + mu / 2)
        return math.exp(first) - math.exp(second)

    low, high = 0.0, 1e7
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize("delta", [1e-5, 1e-9, 1e-12, 1e-14, 1e-18, 1e-300], ids=str)
@pytest.mark.parametrize("sigma", [0.5, 2.0, 40.0], ids=str)
def test_no_accountant_is_below_the_exact_figure_at_any_delta(sigma: float, delta: float) -> None:
    """10 steps at q = 1."""
    event, exact = [DpEvent(sigma, 1.0, 10)], gaussian_epsilon(math.sqrt(10) / sigma, delta)
    for epsilon in (epsilon_prv, epsilon_pld, epsilon_rdp):
        assert exact * (1 - 1e-6) <= epsilon(event, delta) < 1.6 * exact + 0.5
    replaced = gaussian_epsilon(2 * math.sqrt(10) / sigma, delta)
    assert replaced * (1 - 1e-6) <= epsilon_pld_replace_one(event, delta) < 2 * (1.6 * exact + 0.5) + 12


@pytest.mark.parametrize(
    "event",
    [
        DpEvent(1e-8, 0.5, 10),
        DpEvent(0.02, 1.0, 3),
        DpEvent(0.02, 0.01, 3),
        DpEvent(1e8, 1.0, 10**9),
        DpEvent(1e8, 0.5, 10**9),
        DpEvent(1.0, 0.5, 10**15),
        DpEvent(0.3, 1.0, 150),
        DpEvent(0.25, 1 / 16, 150),
    ],
    ids=str,
)
def test_a_strange_history_is_answered_in_seconds(event: DpEvent) -> None:
    began = time.process_time()
    prv, pld, rdp = (epsilon([event], 1e-5) for epsilon in (epsilon_prv, epsilon_pld, epsilon_rdp))
    assert epsilon_pld_replace_one([event], 1e-5) >= pld
    assert 0 <= pld <= rdp * (1 + 1e-9)
    assert 0 <= prv <= rdp + 0.02
    assert time.process_time() - began < SECONDS


@pytest.mark.parametrize("epsilon", [MIN_EPSILON, 40.0, 300.0, MAX_EPSILON], ids=str)
@pytest.mark.parametrize("q", [1 / 16, 1.0], ids=str)
def test_noise_for_the_smallest_and_the_largest_epsilon_is_found_in_seconds(epsilon: float, q: float) -> None:
    began = time.process_time()
    sigma = noise_multiplier(epsilon, 1e-5, q, 150)
    event = DpEvent(sigma, q, 150)
    assert 0.9 * epsilon < epsilon_prv([event], 1e-5) <= epsilon
    assert fits([], event, 1e-5, epsilon)
    assert epsilon_pld([event], 1e-5) <= epsilon * 1.001
    assert time.process_time() - began < SECONDS


BAD = [("epsilon", 0.005), ("epsilon", 1001.0), ("delta", 1e-14), ("delta", 1e-18), ("delta", 1.0)]


@pytest.mark.parametrize(("key", "value"), BAD, ids=str)
def test_what_no_accountant_can_hold_is_refused_where_it_is_written(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"run config: {key}"):
        FederationPlan.from_run_config({key: value})
    options = {"target_epsilon": 8.0, "delta": 1e-5, "target_" + key if key == "epsilon" else key: value}
    with pytest.raises(ConfigError, match=f"{key} must be"):
        noise_multiplier(**options, q=0.5, steps=3)
    plan = {"epsilon": 8.0, "delta": 1e-5, "clip": 0.5, "rate": 0.1, key: value}
    text = TrainingPlan(**plan, rounds=1, steps=1, batch=4).canonical()
    with pytest.raises(MalformedFields, match="outside its range"):
        TrainingPlan.from_canonical(text)
    name = "budget" if key == "epsilon" else key
    privacy = {"budget": 8.0, name: value}
    with pytest.raises(ConfigError, match=f"privacy.{name}"):
        validate(OrganizationConfig, {"privacy": privacy}, lambda place: place)


def test_the_smallest_delta_has_digits_left() -> None:
    """PRV and PLD, two programs, agree there."""
    event = [DpEvent(2.0, 1 / 16, 150)]
    assert epsilon_prv(event, MIN_DELTA) == pytest.approx(epsilon_pld(event, MIN_DELTA), abs=0.05)
