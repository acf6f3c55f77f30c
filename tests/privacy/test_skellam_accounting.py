"""Client-level epsilon: the Skellam bound against the true divergence, and what the grid costs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import special

from gradtf_fl.privacy.accounting.skellam import ORDERS, SkellamEvent, epsilon_gaussian, epsilon_skellam
from gradtf_fl.secagg.noise.distributed_noise import DistributedNoise


def priced(noise: DistributedNoise, releases: int, delta: float = 1e-5) -> float:
    """Epsilon of ``releases`` sums over the Gaussian's at the same noise."""
    event = SkellamEvent(noise.honest_variance, noise.l2, noise.l1, releases)
    return epsilon_skellam([event], delta) / epsilon_gaussian(noise.noise_multiplier, releases, delta)


@pytest.mark.parametrize(("parties", "noisers"), [(5, 3), (50, 30), (1000, 600)])
@pytest.mark.parametrize("dim", [10**4, 10**6, 10**7])
@pytest.mark.parametrize("z", [0.5, 1.0, 4.0, 10.0])
@pytest.mark.parametrize("releases", [1, 100])
def test_24_bits_cost_under_one_percent(parties: int, noisers: int, dim: int, z: float, releases: int) -> None:
    noise = DistributedNoise(24, parties, 1.0, dim, z, noisers)
    assert 1 <= priced(noise, releases) < 1.01


def test_fewer_bits_cost_more() -> None:
    """Epsilon over the Gaussian's for 10 sums of 50 clients, z = 1, as measured."""
    dims = {10**4: (1.003, 1.0002), 10**6: (1.064, 1.0005), 10**7: (1.50, 1.003)}
    for dim, (sixteen, twenty) in dims.items():
        ratios = [priced(DistributedNoise(bits, 50, 1.0, dim, 1.0, 30), 10) for bits in (16, 20, 24)]
        assert ratios[0] > ratios[1] > ratios[2] > 1
        assert ratios[0] == pytest.approx(sixteen, abs=0.005)
        assert ratios[1] == pytest.approx(twenty, abs=0.0005)


def divergence(alpha: float, mu: float, shift: int) -> float:
    """Renyi divergence between the Skellam distribution of variance ``mu`` and itself shifted, from its pmf."""
    k = np.arange(-int(12 * math.sqrt(mu)) - 60, int(12 * math.sqrt(mu)) + 60 + shift * int(alpha))
    here, there = special.ive(np.abs(k), mu), special.ive(np.abs(k - shift), mu)
    known = (here > 1e-290) & (there > 1e-290)
    return float(special.logsumexp(alpha * np.log(here[known]) + (1 - alpha) * np.log(there[known])) / (alpha - 1))


@pytest.mark.parametrize("mu", [5.0, 20.0, 100.0, 1000.0])
@pytest.mark.parametrize("shift", [1, 3, 10])
@pytest.mark.parametrize("alpha", [2, 3, 8, 20])
def test_the_bound_is_above_the_true_divergence(mu: float, shift: int, alpha: int) -> None:
    bound, true = SkellamEvent(mu, shift, shift, 1).rdp(alpha), divergence(alpha, mu, shift)
    assert true <= bound
    if alpha * shift <= mu / 10:
        assert bound <= 1.15 * true


def test_the_bound_by_hand() -> None:
    # alpha 3, mu 100, D2 2, D1 3: 3*4/200 + min((5*4 + 18) / 40000, 9 / 200), five times
    assert SkellamEvent(100.0, 2.0, 3.0, 5).rdp(3) == pytest.approx(5 * (0.06 + 0.00095))
    # mu 1: 3*4/2 + min(38 / 4, 4.5): the other branch
    assert SkellamEvent(1.0, 2.0, 3.0, 1).rdp(3) == pytest.approx(6 + 4.5)


def test_composition_is_joint() -> None:
    events = [SkellamEvent(1e4, 100.0, 1e4, 3), SkellamEvent(4e4, 90.0, 8e3, 7)]
    both = epsilon_skellam(events, 1e-5)
    assert both == epsilon_skellam(reversed(events), 1e-5)
    assert both < sum(epsilon_skellam([event], 1e-5) for event in events)
    assert both > max(epsilon_skellam([event], 1e-5) for event in events)
    halves = [SkellamEvent(1e4, 100.0, 1e4, 1), SkellamEvent(1e4, 100.0, 1e4, 2), events[1]]
    assert epsilon_skellam(halves, 1e-5) == pytest.approx(both, rel=1e-12)
    assert epsilon_skellam([], 1e-5) == 0
    assert epsilon_skellam([SkellamEvent(1.0, 5.0, 9.0, 0)], 1e-5) == 0


def test_more_noise_costs_less_and_more_releases_or_a_smaller_delta_cost_more() -> None:
    def epsilon(
        variance: float = 1e4, l2: float = 100.0, l1: float = 1e4, releases: int = 5, delta: float = 1e-5
    ) -> float:
        return epsilon_skellam([SkellamEvent(variance, l2, l1, releases)], delta)

    base = epsilon()
    assert epsilon(variance=2e4) < base < epsilon(releases=6)
    assert base < epsilon(l2=101.0)
    assert base < epsilon(l1=2e4)
    assert base < epsilon(delta=1e-6)


@pytest.mark.parametrize("sigma", [0.3, 0.7, 2.0, 30.0, 1000.0])
def test_the_gaussian_agrees_with_dp_accounting(sigma: float) -> None:
    from dp_accounting import dp_event
    from dp_accounting.rdp import rdp_privacy_accountant

    fine = [1 + x / 50 for x in range(1, 1000)] + list(np.geomspace(21, 2e4, 1000))
    accountant = rdp_privacy_accountant.RdpAccountant(fine)
    accountant.compose(dp_event.GaussianDpEvent(sigma), 4)
    theirs = accountant.get_epsilon(1e-6)
    assert theirs * (1 - 1e-4) <= epsilon_gaussian(sigma, 4, 1e-6) <= 1.04 * theirs


def test_orders_are_whole_numbers_above_one() -> None:
    assert all(isinstance(alpha, int) and alpha > 1 for alpha in ORDERS)
    assert list(ORDERS) == sorted(set(ORDERS))
    assert set(range(2, 257)) < set(ORDERS)


@pytest.mark.parametrize(
    "build",
    [
        lambda: SkellamEvent(0.0, 1.0, 1.0, 1),
        lambda: SkellamEvent(math.nan, 1.0, 1.0, 1),
        lambda: SkellamEvent(1.0, 2.0, 1.0, 1),
        lambda: SkellamEvent(1.0, -1.0, 1.0, 1),
        lambda: SkellamEvent(1.0, 1.0, math.inf, 1),
        lambda: SkellamEvent(1.0, 1.0, 1.0, -1),
        lambda: SkellamEvent(1.0, 1.0, 1.0, True),
        lambda: SkellamEvent(1.0, 1.0, 1.0, 1.5),  # type: ignore[arg-type]
        lambda: epsilon_skellam([], 0.0),
        lambda: epsilon_skellam([], 1.0),
        lambda: epsilon_gaussian(0.0, 1, 1e-5),
        lambda: epsilon_gaussian(math.inf, 1, 1e-5),
        lambda: epsilon_gaussian(1.0, -1, 1e-5),
    ],
)
def test_values_out_of_range_are_refused(build: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"must"):
        build()
