"""Upper bounds, in nats, of the mutual information I(W; D) between what a mechanism releases and the rows it read.

Every bound is derived in docs/theory.md. n rows are independent of each other unless said otherwise. Sources: Xu and
Raginsky 2017 (the use), Pensia, Jog, Loh 2018 (noisy iterations), Bun and Steinke 2016 (zCDP).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gradtf_fl.errors import ConfigError
from gradtf_fl.privacy import DpEvent, merge

GRID = 40_001
"""Points of the integral over the noise. The integrand is smooth and falls off like a Gaussian: the trapezoid rule is
right to the last digits."""
TAIL = 14.0
"""Standard deviations on both sides of it."""


@dataclass(frozen=True)
class InformationBound:
    """``nats`` >= I(W; D), or infinity, and ``because``: which argument gives it, in words."""

    nats: float
    because: str


def least(*bounds: InformationBound) -> InformationBound:
    """The tightest of several bounds of the same quantity."""
    if not bounds:
        raise ConfigError("mutual information: no bound was given")
    return min(bounds, key=lambda bound: bound.nats)


def without_noise() -> InformationBound:
    """Plain training: there is no bound from noise."""
    return InformationBound(
        math.inf,
        "without noise the model is a function of the rows (and of a seed that does not depend on them), so that "
        "I(W; D) is the entropy of W: infinite for real-valued weights, limited only by how they are stored",
    )


def storage(values: int, bits_per_value: int = 16) -> InformationBound:
    """I(W; D) <= H(W) <= log of the number of files = bits x ln 2, for ANY training; W is the model as stored."""
    _check(positive={"values": values, "bits_per_value": bits_per_value})
    bits = values * bits_per_value
    return InformationBound(bits * math.log(2), f"{values:,} stored values of {bits_per_value} bits")


def row_entropy(rows: int, kinds: float) -> InformationBound:
    """I(W; D) <= H(D) <= n log(kinds), for ANY training, where a row is one of ``kinds`` possible ones.

    Lemma 5.1 then gives sqrt(2 sigma^2 log kinds): no better than the trivial bound when kinds >= e^2.
    """
    _check(positive={"rows": rows}, at_least_one={"kinds": kinds})
    return InformationBound(rows * math.log(kinds), f"{rows:,} rows, each one of {kinds:,.0f}")


def gaussian_channel(power: float, noise: float, dimension: int) -> InformationBound:
    """Release of v(D) + Normal(0, noise^2 I_d): I <= d/2 log(1 + power / (d noise^2)), power >= E|v - E v|^2.

    Shannon's capacity of d parallel Gaussian channels; met with equality by Gaussian v with independent coordinates.
    """
    _check(non_negative={"power": power, "noise": noise}, positive={"dimension": dimension})
    if noise == 0:
        return without_noise()
    nats = dimension / 2 * math.log1p(power / (dimension * noise**2))
    return InformationBound(nats, f"Gaussian noise {noise:g} on {dimension:,} values")


def noisy_iterations(steps: Iterable[tuple[float, float]], dimension: int) -> InformationBound:
    """SGLD, noisy ERM: W_t = g(W_t-1) - rate F(W_t-1, rows) + Normal(0, noise_t^2 I_d) (Pensia, Jog, Loh 2018).

    I(W; D) <= sum over t of d/2 log(1 + length_t^2 / (d noise_t^2)). It also bounds the whole path W_1..W_T.

    Args:
        steps: (length_t, noise_t) of each step: the greatest L2 norm of the step ``rate F``, and the noise added to
            the weights, in the same unit.
        dimension: d.
    """
    terms = [gaussian_channel(length**2, noise, dimension) for length, noise in steps]
    if any(math.isinf(term.nats) for term in terms):
        return without_noise()
    return InformationBound(math.fsum(term.nats for term in terms), f"{len(terms)} noisy steps of bounded length")


def dp_sgd_channel(events: Iterable[DpEvent], rows: int, dimension: int) -> InformationBound:
    """DP-SGD by the capacity of each step's noise, in the terms of the ledger. Holds for rows of any dependence.

    A step releases a sum of B clipped gradients, of norm <= B C, plus Normal(0, sigma^2 C^2 I_d); Adam and everything
    after it is post-processing. B is Binomial(n, q), so the mean of B^2 is (q n)^2 + n q (1 - q), and
    I <= steps d/2 log(1 + E[B^2] / (d sigma^2)).
    """
    _check(positive={"rows": rows, "dimension": dimension})
    total, history = 0.0, merge(events)
    for event in history:
        if event.sigma == 0:
            return without_noise()
        squared_batch = (event.q * rows) ** 2 + rows * event.q * (1 - event.q)
        total += event.steps * gaussian_channel(squared_batch, event.sigma, dimension).nats
    return InformationBound(total, f"capacity of the noise of {_steps(history)} DP-SGD steps on {dimension:,} values")


def dp_sgd_rows(events: Iterable[DpEvent], rows: int) -> InformationBound:
    """DP-SGD row by row: I(W; D) <= n x steps x KL of one step between drawing a row and never drawing it.

    For independent rows, I(W; D) is at most the sum over rows of I(W; Z_i | the others), and each of these is at most
    the divergence from the mechanism without that row: add/remove adjacency, as the ledger has it.
    """
    _check(positive={"rows": rows})
    history = merge(events)
    if any(event.sigma == 0 for event in history):
        return without_noise()
    per_row = math.fsum(event.steps * subsampled_gaussian_divergence(event.sigma, event.q) for event in history)
    return InformationBound(rows * per_row, f"{rows:,} rows x {per_row:.3g} nats in {_steps(history)} DP-SGD steps")


def dp_sgd(events: Iterable[DpEvent], rows: int, dimension: int) -> InformationBound:
    """The tighter of `dp_sgd_rows` and `dp_sgd_channel`, for n independent rows and d trained values."""
    history = merge(events)
    return least(dp_sgd_rows(history, rows), dp_sgd_channel(history, rows, dimension))


def subsampled_gaussian_divergence(sigma: float, q: float) -> float:
    """KL((1-q) Normal(0, sigma^2) + q Normal(1, sigma^2) || Normal(0, sigma^2)) in nats, by numerical integration.

    The worst case of one DP-SGD step over all data sets and rows (Mironov, Talwar, Zhang 2019, at order 1).
    """
    problems = [] if math.isfinite(sigma) and sigma > 0 else [f"sigma must be a finite number > 0, not {sigma}"]
    if not 0 <= q <= 1:
        problems.append(f"q must lie in [0, 1], not {q}")
    if problems:
        raise ConfigError(problems)
    x = np.linspace(-TAIL * sigma, 1 + TAIL * sigma, GRID)
    exponent = (2 * x - 1) / (2 * sigma**2)
    # log of the density ratio 1 - q + q e^exponent, without cancellation or overflow
    log_ratio = np.logaddexp(np.log1p(-q), np.log(q) + exponent) if 0 < q < 1 else q * exponent
    log_reference = -0.5 * (x / sigma) ** 2 - math.log(sigma * math.sqrt(2 * math.pi))
    mixture, reference = np.exp(log_reference + log_ratio), np.exp(log_reference)
    growth = np.expm1(np.minimum(log_ratio, 1.0))
    small = reference * (log_ratio * growth - (growth - log_ratio))  # the same, exact where the ratio is nearly 1
    return float(np.trapezoid(np.where(log_ratio < 1, small, mixture * log_ratio - mixture + reference), x))


def pure_dp(epsilon: float, rows: int) -> InformationBound:
    """Pure epsilon-DP, n independent rows: I <= n epsilon tanh(epsilon / 2), at most n min(epsilon, epsilon^2 / 2).

    epsilon tanh(epsilon / 2) is the greatest KL between two laws whose densities differ by at most e^epsilon; it is
    met by randomized response.
    """
    _check(non_negative={"epsilon": epsilon}, positive={"rows": rows})
    return InformationBound(rows * epsilon * math.tanh(epsilon / 2), f"pure {epsilon:g}-DP for {rows:,} rows")


def zcdp(rho: float, rows: int, *, independent: bool = True) -> InformationBound:
    """rho-zCDP: I <= n rho for independent rows, n^2 rho for rows of any dependence (Bun and Steinke 2016).

    zCDP bounds the Renyi divergence of order a by rho a, and at a = 1 that is the KL. Dependent rows: the
    divergence from the mechanism on no rows at all, by group privacy n^2 rho.
    """
    _check(non_negative={"rho": rho}, positive={"rows": rows})
    factor = rows if independent else rows**2
    kind = "independent" if independent else "dependent"
    return InformationBound(factor * rho, f"{rho:g}-zCDP for {rows:,} {kind} rows")


def renyi_dp(divergence: float, rows: int) -> InformationBound:
    """(a, divergence)-Renyi DP of any order a >= 1, n independent rows: I <= n x divergence (KL is the least order)."""
    _check(non_negative={"divergence": divergence}, positive={"rows": rows})
    return InformationBound(rows * divergence, f"Renyi DP {divergence:g} for {rows:,} rows")


def approximate_dp(epsilon: float, delta: float, rows: int) -> InformationBound:
    """(epsilon, delta)-DP alone: no finite bound when delta > 0; give the mechanism's events to `dp_sgd` instead."""
    if delta == 0:
        return pure_dp(epsilon, rows)
    _check(non_negative={"epsilon": epsilon, "delta": delta}, positive={"rows": rows})
    return InformationBound(
        math.inf,
        "a mechanism that publishes a row whole with probability delta is (epsilon, delta)-DP, and a row may hold any "
        "amount of information: (epsilon, delta) alone bounds nothing, the mechanism's noise does",
    )


def _steps(history: tuple[DpEvent, ...]) -> int:
    return sum(event.steps for event in history)


def _check(
    *,
    non_negative: dict[str, float] | None = None,
    positive: dict[str, int] | None = None,
    at_least_one: dict[str, float] | None = None,
) -> None:
    problems = [f"{name} must be >= 0, not {value}" for name, value in (non_negative or {}).items() if not value >= 0]
    for name, value in {**(positive or {}), **(at_least_one or {})}.items():
        if not value >= 1:
            problems.append(f"{name} must be at least 1, not {value}")
    if problems:
        raise ConfigError(problems)
