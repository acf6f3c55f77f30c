"""How many organizations a sum needs to hide one of them."""

from __future__ import annotations


def _refuse_two(organizations: int, allow_two: bool) -> None:
    if organizations < 3 and not allow_two:
        raise ValueError("with 2 organizations each learns the other's update; at least 3, or set allow_two = true")


def _refuse_small_groups(organizations: int, groups: int, threshold: int | None = None) -> None:
    if groups > 1 and organizations < 5 * groups:
        raise ValueError(
            f"{groups} groups of {organizations} organizations are smaller than 5, where a sum hides little"
        )
    if groups == 2:
        raise ValueError("groups must be 1 or at least 3: of two group means neither can be told to be the bad one")
    if groups > 1 and threshold is not None:
        raise ValueError("threshold cannot be set together with groups, each of which has its own")


def _refuse_other_thresholds(organizations: int, threshold: int | None) -> None:
    least = (organizations + 1) // 2 + 1  # 2t > n + 1: else one of them could sign two views
    if threshold is not None and not least <= threshold <= organizations:
        raise ValueError(f"threshold must be in {least}..{organizations} for {organizations} organizations")


def _refuse_other_samples(organizations: int, sample: int, groups: int) -> None:
    if sample and not 3 <= sample < organizations:
        raise ValueError(f"sample must be 0 (all), or in 3..{organizations - 1} for {organizations} organizations")
    if sample and groups > 1 and sample < 5 * groups:
        raise ValueError(f"{groups} groups of a sample of {sample} are smaller than 5, where a sum hides little")


def _refuse_noisy_weights(noise_multiplier: float, weight_rule: str) -> None:
    if noise_multiplier > 0 and weight_rule != "uniform":
        raise ValueError("noise_multiplier needs weight_rule 'uniform'")


def refuse_unsound_sums(
    *,
    organizations: int,
    allow_two: bool,
    sample: int,
    groups: int,
    noise_multiplier: float,
    weight_rule: str,
    threshold: int | None = None,
) -> None:
    """All of the above: what every sum needs, whatever is summed."""
    _refuse_two(organizations, allow_two)
    _refuse_other_samples(organizations, sample, groups)
    _refuse_other_thresholds(sample or organizations, threshold)
    _refuse_small_groups(organizations, groups, threshold)
    _refuse_noisy_weights(noise_multiplier, weight_rule)
