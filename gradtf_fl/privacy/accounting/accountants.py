"""Epsilon of a history of events by several accountants, always composed jointly.

- PRV (Gopi, Lee, Wutschitz 2021, as implemented by Opacus) is the working accountant: an upper bound, about
  0.01 above the truth.
- PLD (Doroshenko et al. 2022, Google's dp-accounting) is independent code and the cross-check of every audit.
- RDP (Mironov, Talwar, Zhang 2019, Opacus) is looser; shown because the literature quotes it.
- Skellam RDP (Agarwal, Kairouz, Liu 2021) reads the noise on sums: another mechanism and another unit.

Epsilons are never added up: histories are stored as events and composed as one, over rounds and runs. The first
three protect one row (add/remove, Poisson sampling), the last one protects an organization. No accountant reads
events of both: a mixed history is taken apart with `events.separate`, and gives two epsilons. The Gaussian-DP
accountant under-reports and reads only the last entry of a mixed history, so it is not offered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, Protocol, TypeVar

from gradtf_fl.errors import GradtfError
from gradtf_fl.privacy.accounting import prv, rdp
from gradtf_fl.privacy.accounting.events import DpEvent, Event, merge, merge_skellam
from gradtf_fl.privacy.accounting.skellam import SkellamEvent, epsilon_skellam
from gradtf_fl.round_messages import MIN_DELTA

E = TypeVar("E", DpEvent, SkellamEvent)
Adjacency = Literal["add-remove", "replace"]


class UnsupportedEvent(GradtfError, TypeError):
    """An accountant was given an event of a mechanism, and so of a unit, that is not its own."""


class Accountant(Protocol):
    """Turns a history into one epsilon."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def supports(self, event: Event) -> bool:
        """Whether `epsilon` takes ``event``."""

    def epsilon(self, events: Iterable[Event], delta: float) -> float:
        """Epsilon of the joint composition of ``events``, in any order; 0 for none, inf where there was no noise.

        Args:
            events: the whole history.
            delta: 0 < delta < 1.

        Raises:
            ValueError: delta outside its range.
            UnsupportedEvent: an event that `supports` denies.
        """


class _RowAccountant:
    """What the three accountants of DP-SGD share: only `DpEvent`, merged before they are composed."""

    name: ClassVar[str]

    def supports(self, event: Event) -> bool:
        return isinstance(event, DpEvent)

    def epsilon(self, events: Iterable[Event], delta: float) -> float:
        _check_delta(delta)
        merged = merge(_only(DpEvent, events, self.name))
        if not merged:
            return 0.0
        if any(event.sigma == 0 for event in merged):
            return math.inf
        return self._composed(merged, delta)

    def _composed(self, history: tuple[DpEvent, ...], delta: float) -> float:
        raise NotImplementedError


@dataclass(frozen=True)
class Prv(_RowAccountant):
    """The working accountant: budgets are compared with its figure."""

    name: ClassVar[str] = "PRV"

    def _composed(self, history: tuple[DpEvent, ...], delta: float) -> float:
        return _prv(history, delta)


@dataclass(frozen=True)
class Pld(_RowAccountant):
    """The independent cross-check. ``adjacency`` "replace" gives up to twice the add/remove figure."""

    name: ClassVar[str] = "PLD"
    adjacency: Adjacency = "add-remove"

    def _composed(self, history: tuple[DpEvent, ...], delta: float) -> float:
        return _pld(history, delta, "REPLACE_ONE" if self.adjacency == "replace" else "ADD_OR_REMOVE_ONE")


@dataclass(frozen=True)
class Rdp(_RowAccountant):
    """Looser than the other two, and much cheaper."""

    name: ClassVar[str] = "RDP"

    def _composed(self, history: tuple[DpEvent, ...], delta: float) -> float:
        return rdp.convert(rdp.compose(history), delta)


@dataclass(frozen=True)
class SkellamRdp:
    """Epsilon of one organization in the opened sums, by the noise that all of them carry."""

    name: ClassVar[str] = "Skellam RDP"

    def supports(self, event: Event) -> bool:
        return isinstance(event, SkellamEvent)

    def epsilon(self, events: Iterable[Event], delta: float) -> float:
        _check_delta(delta)
        merged = merge_skellam(_only(SkellamEvent, events, self.name))
        return _skellam(merged, delta) if merged else 0.0


ROW_ACCOUNTANTS: tuple[Accountant, ...] = (Prv(), Pld(), Rdp())
"""Of DP-SGD, the default first."""
ACCOUNTANTS: tuple[Accountant, ...] = (*ROW_ACCOUNTANTS, SkellamRdp())


@dataclass(frozen=True)
class Epsilons:
    """One history by three accountants, at one delta. ``inf`` where a step had no noise."""

    prv: float
    pld: float
    rdp: float


def load_libraries() -> None:
    """Import what the accountants compute with; their first figure does it too. Opacus takes seconds."""
    import dp_accounting.pld.pld_privacy_accountant  # noqa: F401
    import opacus.accountants  # noqa: F401


def epsilons(events: Iterable[DpEvent], delta: float) -> Epsilons:
    """Epsilon of the joint composition of ``events`` by PRV, PLD and RDP; zeros for no events.

    >>> from gradtf_fl import DpEvent, epsilons
    >>> spent = epsilons([DpEvent(sigma=1.0, q=1 / 64, steps=100), DpEvent(sigma=2.0, q=1 / 64, steps=50)], delta=1e-5)
    >>> 0 < spent.pld <= spent.prv <= spent.rdp < 2
    True
    """
    merged = merge(events)
    return Epsilons(epsilon_prv(merged, delta), epsilon_pld(merged, delta), epsilon_rdp(merged, delta))


def epsilon_prv(events: Iterable[DpEvent], delta: float) -> float:
    """Epsilon by PRV: the figure that budgets are compared with."""
    return Prv().epsilon(events, delta)


def epsilon_pld(events: Iterable[DpEvent], delta: float) -> float:
    """Epsilon by Google's PLD accountant: the independent cross-check."""
    return Pld().epsilon(events, delta)


def epsilon_pld_replace_one(events: Iterable[DpEvent], delta: float) -> float:
    """Epsilon by PLD when neighbours differ by one REPLACED row: up to twice the add/remove figure."""
    return Pld("replace").epsilon(events, delta)


def epsilon_rdp(events: Iterable[DpEvent], delta: float) -> float:
    """Epsilon by Renyi DP: looser than the other two."""
    return Rdp().epsilon(events, delta)


PLD_MAX_EPSILON, PLD_MAX_STEPS = 1500.0, 10**7
"""Above, and below `MIN_DELTA`, PLD's figure is the RDP bound: valid, looser, and there in no time."""
PLD_POINTS = 400_000
"""The mesh is 1e-4 wide up to an RDP bound of 40, and wider above: it only over-counts."""
ROUNDING = 1e-9
"""Slack of the budget comparison: a plan calibrated to exactly the budget is within it."""


def fits(spent: Iterable[DpEvent], event: DpEvent, delta: float, budget: float) -> bool:
    """Whether ``spent`` and ``event`` together stay within ``budget``, by PRV.

    PRV answers at most twice its mesh's error above the truth and RDP never below it, so an RDP bound that lies as far
    below the budget settles the question in microseconds. Only close to the budget PRV itself is asked.
    """
    if math.isinf(budget):
        return True
    history = (*spent, event)
    if all(event.sigma > 0 for event in history):
        bound = rdp.convert(rdp.compose(history), delta)
        if bound + 2 * prv.mesh_error(bound) <= budget:
            return True
    return epsilon_prv(history, delta) <= budget + ROUNDING


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie between 0 and 1, not {delta}")


def _only(kind: type[E], events: Iterable[Event], name: str) -> Iterable[E]:
    for event in events:
        if not isinstance(event, kind):
            raise UnsupportedEvent(
                f"{name} cannot account for {type(event).__name__}: the epsilons of a row and of an organization "
                "are never composed with each other"
            )
        yield event


@lru_cache(maxsize=4096)
def _prv(history: tuple[DpEvent, ...], delta: float) -> float:
    return prv.epsilon(history, delta)


@lru_cache(maxsize=4096)
def _pld(history: tuple[DpEvent, ...], delta: float, relation: str) -> float:
    from dp_accounting import dp_event, privacy_accountant
    from dp_accounting.pld import pld_privacy_accountant

    curve = rdp.compose(history)
    one = rdp.convert(curve, delta)
    bound = one if relation == "ADD_OR_REMOVE_ONE" else rdp.convert_replaced(curve, delta)
    sampled_steps = sum(event.steps for event in history if event.q < 1)
    if one > PLD_MAX_EPSILON or delta < MIN_DELTA or sampled_steps > PLD_MAX_STEPS:
        return bound
    interval = max(1e-4, one / PLD_POINTS)
    accountant = pld_privacy_accountant.PLDAccountant(privacy_accountant.NeighboringRelation[relation], interval)
    for event in history:
        if event.q == 1:  # composed exactly: Gaussians of all rows are one Gaussian
            accountant.compose(dp_event.GaussianDpEvent(event.sigma / math.sqrt(event.steps)))
        else:
            mechanism = dp_event.PoissonSampledDpEvent(event.q, dp_event.GaussianDpEvent(event.sigma))
            accountant.compose(mechanism, event.steps)
    return min(bound, float(accountant.get_epsilon(delta)))


@lru_cache(maxsize=4096)
def _skellam(history: tuple[SkellamEvent, ...], delta: float) -> float:
    return epsilon_skellam(history, delta)
