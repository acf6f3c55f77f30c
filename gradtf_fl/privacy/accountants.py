"""Epsilon of a history of DP-SGD steps by three accountants, always composed jointly.

- PRV (Gopi, Lee, Wutschitz 2021, as implemented by Opacus) is the working accountant: an upper bound, at most
  0.01 above the truth.
- PLD (Doroshenko et al. 2022, Google's dp-accounting) is independent code and the cross-check of every audit.
- RDP (Mironov, Talwar, Zhang 2019, Opacus) is looser; shown because the literature quotes it.

The unit is one row, adjacency is add/remove, sampling is Poisson. Epsilons are never added up: histories are
stored as events and composed as one. The Gaussian-DP accountant under-reports and reads only the last entry
of a mixed history, so it is not offered.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from gradtf_fl.privacy.events import DpEvent, merge

PRV_ERROR = 0.01
"""Largest gap (in epsilon) between PRV's answer and the truth; at most 2 % of the RDP bound."""
PRV_MAX_MESH = 2**23
"""Points above which PRV's mesh (24 bytes a point and more) is not built: the RDP bound is returned, valid, looser.
A billion steps at epsilon .01 would take 40 GB; 5,000 steps take 4 x 10^5 points."""
PRV_MAX_EPSILON = 400.0
"""Above this RDP bound exp overflows in PRV and the RDP bound itself is returned: valid, looser."""


@dataclass(frozen=True)
class Epsilons:
    """One history by three accountants, at one delta. ``inf`` where a step had no noise."""

    prv: float
    pld: float
    rdp: float


def epsilons(events: Iterable[DpEvent], delta: float) -> Epsilons:
    """Epsilon of the joint composition of ``events`` by PRV, PLD and RDP; zeros for no events."""
    merged = merge(events)
    return Epsilons(epsilon_prv(merged, delta), epsilon_pld(merged, delta), epsilon_rdp(merged, delta))


def epsilon_prv(events: Iterable[DpEvent], delta: float) -> float:
    """Epsilon by PRV: the figure that budgets are compared with.

    Args:
        events: the whole history, in any order.
        delta: 0 < delta < 1.

    Raises:
        ValueError: delta outside its range.
    """
    return _cached(_prv, events, delta)


def epsilon_pld(events: Iterable[DpEvent], delta: float) -> float:
    """Epsilon by Google's PLD accountant: the independent cross-check."""
    return _cached(_pld, events, delta)


def epsilon_pld_replace_one(events: Iterable[DpEvent], delta: float) -> float:
    """Epsilon by PLD when neighbours differ by one REPLACED row: up to twice the add/remove figure."""
    return _cached(_pld_replace_one, events, delta)


def epsilon_rdp(events: Iterable[DpEvent], delta: float) -> float:
    """Epsilon by Renyi DP: looser than the other two."""
    return _cached(_rdp, events, delta)


History = tuple[DpEvent, ...]


def _cached(accountant: Callable[[History, float], float], events: Iterable[DpEvent], delta: float) -> float:
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie between 0 and 1, not {delta}")
    merged = merge(events)
    if not merged:
        return 0.0  # PRV raises on an empty history
    if any(event.sigma == 0 for event in merged):
        return math.inf
    return accountant(merged, delta)


def _triples(events: History) -> list[tuple[float, float, int]]:
    return [(event.sigma, event.q, event.steps) for event in events]


@lru_cache(maxsize=4096)
def _prv(events: History, delta: float) -> float:
    from opacus.accountants import PRVAccountant

    bound = _rdp(events, delta)
    if bound > PRV_MAX_EPSILON:
        return bound
    accountant = PRVAccountant()
    accountant.history = _triples(events)
    error = min(PRV_ERROR, bound / 50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # log(1 - q) at q = 1 is -inf, as it should be
        if _mesh_points(events, delta, error) > PRV_MAX_MESH:
            return bound
        return float(accountant.get_epsilon(delta=delta, eps_error=error))


def _mesh_points(events: History, delta: float, error: float) -> float:
    """Points of the mesh that Opacus' PRV would allocate (Gopi et al. 2021, section 5): its memory, beforehand."""
    from opacus.accountants.analysis.prv.domain import compute_safe_domain_size
    from opacus.accountants.analysis.prv.prvs import PoissonSubsampledGaussianPRV

    delta_error = delta / 1000  # as PRVAccountant.get_epsilon has it
    steps = [event.steps for event in events]
    half_width = compute_safe_domain_size(
        prvs=[PoissonSubsampledGaussianPRV(event.q, event.sigma) for event in events],
        max_self_compositions=steps,
        eps_error=error,
        delta_error=delta_error,
    )
    return float(2 * half_width * math.sqrt(sum(steps) * math.log(12 / delta_error) / 2) / error)


@lru_cache(maxsize=4096)
def _rdp(events: History, delta: float) -> float:
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = _triples(events)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "optimal order is the largest alpha": looser, still an upper bound
        return float(accountant.get_epsilon(delta=delta))


def _compose_pld(events: History, delta: float, relation_name: str) -> float:
    from dp_accounting import dp_event, privacy_accountant
    from dp_accounting.pld import pld_privacy_accountant

    relation = privacy_accountant.NeighboringRelation[relation_name]
    accountant = pld_privacy_accountant.PLDAccountant(relation)
    for event in events:
        mechanism = dp_event.PoissonSampledDpEvent(event.q, dp_event.GaussianDpEvent(event.sigma))
        accountant.compose(mechanism, event.steps)
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=4096)
def _pld(events: History, delta: float) -> float:
    return _compose_pld(events, delta, "ADD_OR_REMOVE_ONE")


@lru_cache(maxsize=4096)
def _pld_replace_one(events: History, delta: float) -> float:
    return _compose_pld(events, delta, "REPLACE_ONE")
