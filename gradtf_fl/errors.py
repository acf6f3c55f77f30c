"""One exception tree. Every error knows the exit code that the command line ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self


class GradtfError(Exception):
    """Base of every error that gradtf-fl raises on purpose. ``exit_code`` follows the command line contract."""

    exit_code = 1


class _Listing(GradtfError):
    """Carries ALL problems found, one line each."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[Self], tuple[tuple[str, ...]]]:
        return type(self), (self.problems,)


class ConfigError(_Listing, ValueError):
    """Bad usage, configuration or input file (exit 2). Carries ALL problems found, one line each.

    >>> from gradtf_fl import AdapterSpec, ConfigError
    >>> try:
    ...     AdapterSpec(kind="dense")
    ... except ConfigError as error:
    ...     error.problems
    ("adapter kind 'dense' is unknown: the kinds are lora, lora-xs, full",)
    """

    exit_code = 2


class CorruptFile(ConfigError):
    """A checkpoint, tuple store or adapter folder whose content does not match its checksum or schema."""


class BudgetExhausted(GradtfError):
    """A privacy budget would be exceeded (exit 3); raised before private data is touched."""

    exit_code = 3


class RoundAborted(GradtfError):
    """A secure-aggregation round ended without a sum (exit 4): no partial output exists.

    Attributes:
        stage: name of the stage that fell below its threshold, e.g. ``"mask"``.
        counts: organizations left after each finished stage, e.g. ``{"advertise": 5, "share": 5, "mask": 2}``.
    """

    exit_code = 4

    def __init__(self, stage: str, counts: Mapping[str, int], reason: str = "") -> None:
        self.stage = stage
        self.counts = dict(counts)
        left = f" ({self.counts})" if self.counts else ""
        super().__init__(f"round aborted at {stage}: {reason or 'too few organizations'}{left}")


class RoundRejected(RoundAborted):
    """A whole round rejected at the gate, for a sum that no honest organizations can give (exit 4): nothing is used."""

    def __init__(self, reason: str) -> None:
        super().__init__("gate", {}, reason)


class VerificationFailed(_Listing):
    """An audit, hash, signature or chain did not verify (exit 5). Carries all problems, as `ConfigError` does."""

    exit_code = 5
