"""What every accountant owes, whatever its mechanism: one test class per accountant inherits this suite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import pytest

from gradtf_fl.errors import GradtfError
from gradtf_fl.privacy import ACCOUNTANTS, Accountant, DpEvent, SkellamEvent, UnsupportedEvent
from gradtf_fl.privacy.accounting.events import Event

DELTA = 1e-5


def times(event: Event, factor: int) -> Event:
    """The same mechanism, so many times the releases."""
    if isinstance(event, DpEvent):
        return replace(event, steps=event.steps * factor)
    return replace(event, releases=event.releases * factor)


class AccountantSuite:
    """Subclasses name the accountant, two different events of its mechanism, and one that is not its own."""

    accountant: ClassVar[Accountant]
    events: ClassVar[Sequence[Event]]
    foreign: ClassVar[Event]

    def epsilon(self, *events: Event, delta: float = DELTA) -> float:
        return self.accountant.epsilon(events, delta)

    def test_it_is_on_offer_under_its_name(self) -> None:
        assert [each.name for each in ACCOUNTANTS].count(self.accountant.name) == 1

    def test_no_history_costs_nothing(self) -> None:
        assert self.epsilon() == 0
        assert self.epsilon(*(times(event, 0) for event in self.events)) == 0

    def test_order_and_splitting_do_not_matter(self) -> None:
        a, b = self.events
        whole = self.epsilon(times(a, 4), times(b, 2))
        assert 0 < whole < math.inf
        assert self.epsilon(b, times(a, 3), times(b, 0), b, a) == whole

    def test_composition_is_joint(self) -> None:
        a, b = self.events
        alone = self.epsilon(a), self.epsilon(b)
        assert max(alone) < self.epsilon(a, b) < sum(alone)
        assert self.epsilon(times(a, 100)) < 100 * alone[0] / 2

    def test_more_releases_and_smaller_deltas_cost_more(self) -> None:
        a, _ = self.events
        assert self.epsilon(a) < self.epsilon(times(a, 2)) < self.epsilon(times(a, 3))
        assert self.epsilon(a, delta=1e-4) < self.epsilon(a, delta=1e-5) < self.epsilon(a, delta=1e-7)

    def test_a_history_may_be_any_iterable(self) -> None:
        a, b = self.events
        assert self.accountant.epsilon(iter([a, b]), DELTA) == self.epsilon(a, b)

    @pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
    def test_delta_outside_its_range_is_refused(self, delta: float) -> None:
        with pytest.raises(ValueError, match="delta"):
            self.epsilon(*self.events, delta=delta)

    def test_another_unit_is_never_composed(self) -> None:
        assert all(self.accountant.supports(event) for event in self.events)
        assert not self.accountant.supports(self.foreign)
        for history in ([self.foreign], [*self.events, self.foreign], [times(self.foreign, 0)]):
            with pytest.raises(UnsupportedEvent, match=f"{self.accountant.name} .*never composed") as caught:
                self.epsilon(*history)
            assert isinstance(caught.value, GradtfError)


ROW_EVENT = DpEvent(1.0, 0.05, 40)
SUM_EVENT = SkellamEvent(variance=4e8, l2=2e4, l1=6e5, releases=1, noisers=4)
TABLE = {  # (event, delta): measured with Opacus 1.6.0 and dp-accounting 0.6: RDP, PRV, PLD
    (DpEvent(1.0, 0.01, 1000), 1e-5): {"RDP": 2.101, "PRV": 1.838, "PLD": 1.828},
    (DpEvent(0.6, 0.05, 200), 1e-5): {"RDP": 17.530, "PRV": 15.473, "PLD": 15.462},
    (DpEvent(2.0, 0.02, 5000), 1e-6): {"RDP": 3.873, "PRV": 3.619, "PLD": 3.609},
    (DpEvent(0.8, 0.1, 60), 1e-4): {"RDP": 8.500, "PRV": 7.298, "PLD": 7.287},
    (DpEvent(1.2, 1.0, 10), 1e-5): {"RDP": 15.100, "PRV": 14.130, "PLD": 14.119},
}
MIXED = (DpEvent(1.0, 0.05, 40), DpEvent(0.8, 0.1, 20), DpEvent(1.2, 0.05, 40), DpEvent(1.0, 0.02, 100))
MIXED_EPSILON = {"PRV": 6.265, "PLD": 6.254}
TOLERANCE = {"PRV": 0.015, "PLD": 0.005, "RDP": 0.002}


class RowAccountantSuite(AccountantSuite):
    """The accountants of DP-SGD also owe the measured figures."""

    events = (ROW_EVENT, DpEvent(2.0, 0.1, 20))
    foreign = SUM_EVENT

    @pytest.mark.parametrize(("event", "delta"), TABLE)
    def test_measured_figures(self, event: DpEvent, delta: float) -> None:
        name = self.accountant.name
        assert self.epsilon(event, delta=delta) == pytest.approx(TABLE[event, delta][name], abs=TOLERANCE[name])

    def test_the_mixed_history(self) -> None:
        found = self.epsilon(*MIXED)
        name = self.accountant.name
        assert found == pytest.approx(MIXED_EPSILON.get(name, found), abs=TOLERANCE[name])
        assert 6.2 < found < 14.91 / 2  # 14.91: RDP added up event by event

    def test_no_noise_costs_everything_and_no_row_nothing(self) -> None:
        assert self.epsilon(ROW_EVENT, DpEvent(0.0, 0.5, 1)) == math.inf
        assert self.epsilon(DpEvent(0.0, 0.0, 9), DpEvent(0.0, 0.5, 0)) == 0

    def test_it_never_answers_below_the_plain_gaussian(self) -> None:
        """One release to every row at sigma 4: epsilon 1.03 at 1e-5 (Balle and Wang 2018, theorem 8)."""
        assert self.epsilon(DpEvent(4.0, 1.0, 1)) >= gaussian_epsilon(4.0, DELTA) - 1e-6


def gaussian_epsilon(sigma: float, delta: float) -> float:
    """Exact epsilon of one Gaussian release of sensitivity 1, by bisection on Balle and Wang 2018, theorem 8."""

    def phi(t: float) -> float:
        return 0.5 * math.erfc(-t / math.sqrt(2))

    low, high = 0.0, 100.0
    for _ in range(200):
        epsilon = (low + high) / 2
        too_small = phi(0.5 / sigma - epsilon * sigma) - math.exp(epsilon) * phi(-0.5 / sigma - epsilon * sigma) > delta
        low, high = (epsilon, high) if too_small else (low, epsilon)
    return high
