"""One pydantic schema for every verb's TOML. Checked once at the edge, then passed around as frozen values.

All problems of a file (or of a command line) are reported together, each naming file or option and key.
Types are strict (``"5"`` is not a number), unknown keys are errors, NaN and infinity are refused everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from gradtf_fl.errors import ConfigError
from gradtf_fl.round_messages import (
    MAX_ALPHA,
    MAX_CLIP,
    MAX_EPSILON,
    MAX_RATE,
    MIN_ALPHA,
    MIN_CLIP,
    MIN_DELTA,
    MIN_EPSILON,
    MIN_RATE,
)

Bits = Literal[16, 20, 24, 32]

ModelName = Annotated[str, StringConstraints(min_length=1)]
PublicKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
OrganizationName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
DatasetName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Address = Annotated[str, StringConstraints(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[1-9][0-9]{0,4}$")]
Location = Annotated[Path, Field(strict=False)]
Epsilon = Annotated[float, Field(ge=MIN_EPSILON, le=MAX_EPSILON)]
Delta = Annotated[float, Field(ge=MIN_DELTA, lt=1)]
Norm = Annotated[float, Field(ge=MIN_CLIP, le=MAX_CLIP)]
Rate = Annotated[float, Field(ge=MIN_RATE, le=MAX_RATE)]
Alpha = Annotated[float, Field(ge=MIN_ALPHA, le=MAX_ALPHA)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Rounds = Annotated[int, Field(ge=1, le=10_000)]
Organizations = Annotated[int, Field(ge=2, le=1000)]
Share = Annotated[float, Field(ge=0, lt=0.5)]
NoiseMultiplier = Annotated[float, Field(ge=0, le=1000)]
Seconds = Annotated[float, Field(gt=0, le=7 * 86400)]


class Section(BaseModel):
    """Base of every table: frozen, strict, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


M = TypeVar("M", bound=BaseModel)


def validate(model: type[M], values: Mapping[str, Any], where: Callable[[str], str]) -> M:
    """``model`` built from ``values``.

    Args:
        where: names the place of a dotted key for the reader, e.g. ``org.toml: privacy.budget``; the empty
            key stands for the whole input.

    Raises:
        ConfigError: one line per problem, all of them.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems = []
        for item in error.errors():
            message = item["msg"].removeprefix("Value error, ")
            if item["type"] == "extra_forbidden":
                message = "is not a known key"
            shown = repr(item["input"])
            told = item["type"] in ("missing", "extra_forbidden", "value_error") or len(shown) > 60
            place = where(".".join(str(part) for part in item["loc"]))
            problems.append(f"{place}: {message}" + ("" if told else f", not {shown}"))
        raise ConfigError(problems) from None
