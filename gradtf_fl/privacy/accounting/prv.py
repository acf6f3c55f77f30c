"""Privacy random variables composed on a mesh (Gopi, Lee, Wutschitz 2021), by Opacus, on a mesh of our choice.

Opacus lays a mesh of any number of points, at random a prime one, for which the Fourier transform takes several
times as long. Here it is widened to the next number with small factors, which only makes it safer, and its size
is known, and bounded, before the memory is taken.
"""

from __future__ import annotations

import math
import warnings

from gradtf_fl.privacy.accounting.events import DpEvent
from gradtf_fl.privacy.accounting.rdp import compose, convert, step_curve
from gradtf_fl.round_messages import MIN_DELTA

ERROR = 0.01
"""Of the mesh, in epsilon, for RDP bounds of .5 to 20; below 2 % of that bound, above .05 %: see `mesh_error`."""
MAX_POINTS = 2**22
"""Points (24 bytes each and more) above which the mesh is not built: the RDP bound is returned, valid, looser.
A billion steps at epsilon .01 would take 40 GB; 5,000 steps take 4 x 10^5 points. This many take a second: two million
steps at epsilon .5, 200,000 at epsilon 8."""
MAX_EPSILON = 400.0
"""Above this RDP bound exp overflows on the mesh and the RDP bound itself is returned: valid, looser."""


def epsilon(events: tuple[DpEvent, ...], delta: float) -> float:
    """Epsilon of a merged history without events of sigma 0: an upper bound."""
    from opacus.accountants import PRVAccountant

    bound = convert(compose(events), delta)
    if bound == 0 or bound > MAX_EPSILON or delta < MIN_DELTA:
        return bound
    error = mesh_error(bound)
    delta_error = delta / 1000  # as PRVAccountant.get_epsilon has it
    step = error / math.sqrt(sum(event.steps for event in events) * math.log(12 / delta_error) / 2)
    points = mesh_points(half_width(events, error, delta_error), step)
    if points > MAX_POINTS:
        return bound
    accountant = PRVAccountant()
    accountant.history = [(event.sigma, event.q, event.steps) for event in events]
    accountant._get_domain = lambda **_: _domain(points, step)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # log(1 - q) at q = 1 is -inf, as it should be
        try:
            found = float(accountant.get_epsilon(delta=delta, eps_error=error))
        except (ValueError, RuntimeError):  # the transform's rounding is above delta: where a long double is a double
            return bound
    return found if math.isfinite(found) else bound


def mesh_error(bound: float) -> float:
    """Of the mesh, in epsilon, where RDP gives ``bound``: the answer lies so far above the truth, at worst twice."""
    return min(bound / 50, max(ERROR, bound / 2000))


def half_width(events: tuple[DpEvent, ...], error: float, delta_error: float) -> float:
    """Privacy loss beyond which the mesh may be cut off (Gopi et al. 2021, remark 5.6, as Opacus has it)."""
    steps = sum(event.steps for event in events)
    widths = [convert(step_curve(event.sigma, event.q), delta_error / (8 * steps)) for event in events]
    return max(convert(compose(events), delta_error / 4), *widths, error) + 3


def mesh_points(half_width: float, step: float) -> int:
    """Points of a mesh that holds -half_width..half_width: even, and with no prime factor above 5."""
    least = 2 * (math.ceil(half_width / step) + 1)
    powers = range(least.bit_length())
    odd: list[int] = [3**i * 5**j for i in powers for j in powers if 3**i * 5**j <= least]
    return min(factor << max(1, (math.ceil(least / factor) - 1).bit_length()) for factor in odd)


def _domain(points: int, step: float) -> object:
    """The mesh from -(points/2 - 1) to points/2 steps: 0 lies where Opacus' self-composition expects it."""
    from opacus.accountants.analysis.prv import Domain

    return Domain((1 - points // 2) * step, points // 2 * step, points)
