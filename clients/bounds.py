"""Every bound of ``[policy]`` but ``min_difference``: what a server's plan may ask. Imports nothing heavy."""

from __future__ import annotations

from datetime import UTC, datetime

from gradtf_fl.adapters import AdapterSpec
from gradtf_fl.config import OrganizationConfig, PolicySection, PrivacySection
from gradtf_fl.flower import Refused, sum_reasons
from gradtf_fl.privacy import ROUNDING, DpEvent, Unit, epsilon_prv
from gradtf_fl.round_messages import Refusal, TrainingPlan
from gradtf_fl.secagg import RoundConfig


def policy_reasons(
    organization: OrganizationConfig, config: RoundConfig, plan: TrainingPlan, spec: AdapterSpec, attempts: int
) -> list[str]:
    """Why this organization does not take part: every bound that the round breaks, known before anything is built.

    Args:
        attempts: how often this round was claimed here before.
    """
    policy = organization.policy
    reasons = policy.broken_by(
        clip=plan.clip, rate=plan.rate, steps=plan.steps, weight_rule=config.weight_rule, groups=config.groups
    )
    reasons += [*spec_reasons(policy, spec), *sum_reasons(config, attempts, policy.attempts)]
    if not within_hours(policy.hours, now := utc_now()):
        reasons.append(f"{now:%H:%M} UTC is outside {', '.join(policy.hours)}")
    if not 1 <= config.round <= plan.rounds:
        reasons.append(f"round {config.round} is outside the plan's {plan.rounds} rounds")
    if plan.delta > organization.privacy.delta:
        reasons.append(f"delta {plan.delta:g} is above ours, {organization.privacy.delta:g}")
    return reasons


def spec_reasons(policy: PolicySection, spec: AdapterSpec) -> list[str]:
    """The bounds that the adapter breaks."""
    return policy.broken_by_adapter(spec.kind, spec.rank, spec.alpha)


def require_rows(policy: PolicySection, privacy: PrivacySection) -> None:
    """`Refused` (``policy``) where this organization declares too few rows (persons) to take part."""
    if privacy.declared < policy.min_rows:
        units = Unit(privacy.person).plural
        raise Refused(Refusal.POLICY, f"[policy] {privacy.declared} {units} are fewer than {policy.min_rows}")


def require_noise(policy: PolicySection, event: DpEvent, delta: float) -> None:
    """`Refused` (``policy``) where one round is too dear, or its noise too small, for this organization.

    Args:
        event: the round alone, calibrated.
        delta: the organization's own.
    """
    reasons = [f"sigma {event.sigma:g} is below {policy.min_sigma:g}"] if event.sigma < policy.min_sigma else []
    if (epsilon := epsilon_prv([event], delta)) > policy.max_round_epsilon + ROUNDING:
        reasons.append(f"the round alone costs epsilon {epsilon:.3f}, more than {policy.max_round_epsilon:g}")
    if reasons:
        raise Refused(Refusal.POLICY, "[policy] " + "; ".join(reasons))


def within_hours(hours: tuple[str, ...], now: datetime) -> bool:
    """Whether ``now`` (UTC) lies in one of the windows ``"20:00-06:00"``, begin included, end not; () is any time."""
    minute = 60 * now.hour + now.minute
    windows = [tuple(60 * int(t[:2]) + int(t[3:]) for t in window.split("-")) for window in hours]
    return not windows or any(
        begin <= minute < end if begin < end else minute >= begin or minute < end for begin, end in windows
    )


def utc_now() -> datetime:
    """The time that ``hours`` is about."""
    return datetime.now(UTC)
