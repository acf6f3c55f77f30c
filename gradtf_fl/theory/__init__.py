"""What the paper's theory says about a run, and whether private rows are near enough to public ones. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from gradtf_fl.theory.bounds import (
        absolute_gap_bound,
        bounded_subgaussian,
        generalization_bound,
        shadow_information,
        utility_bound,
    )
    from gradtf_fl.theory.divergence import estimate
    from gradtf_fl.theory.mutual_information import (
        InformationBound,
        approximate_dp,
        dp_sgd,
        gaussian_channel,
        least,
        noisy_iterations,
        pure_dp,
        renyi_dp,
        row_entropy,
        storage,
        without_noise,
        zcdp,
    )
    from gradtf_fl.theory.readiness import KEEP_LOCAL, Readiness, assess
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "KEEP_LOCAL",
    "InformationBound",
    "Readiness",
    "absolute_gap_bound",
    "approximate_dp",
    "assess",
    "bounded_subgaussian",
    "dp_sgd",
    "estimate",
    "gaussian_channel",
    "generalization_bound",
    "least",
    "noisy_iterations",
    "pure_dp",
    "renyi_dp",
    "row_entropy",
    "shadow_information",
    "storage",
    "utility_bound",
    "without_noise",
    "zcdp",
]
