"""``policy.toml``: what an organization accepts when a Flower app of any kind is averaged securely."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from gradtf_fl.config.base import Location, PublicKey
from gradtf_fl.config.limits import RoundLimits, SumLimits
from gradtf_fl.file_names import IDENTITY_KEY, ROSTER

MetricName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Keys = Annotated[tuple[PublicKey, ...], Field(strict=False)]
KeysOrFile = Annotated[
    Annotated[Keys, Tag("keys")] | Annotated[Location, Tag("file")],
    Discriminator(lambda value: "file" if isinstance(value, str | Path) else "keys"),
]


class MemberPolicy(RoundLimits, SumLimits):
    """What this organization is in secure averages, and what it accepts there. The server cannot change any of it.

    Attributes:
        identity: file of this organization's own key, relative to this file.
        roster: public keys of the organizations that take part, this one's included, or a file with one hex key a line,
            relative to this file; agree on it with the other organizations, not through the server.
        metrics: names of the metrics that may leave in clear, of training and of evaluation; none unless named.
        weighted_by: the one metric of the app that may weigh its update, where ``weight_rules`` allows
            "examples". A server that chose the metric could choose one that leaves a single update in the sum.
        queries: let the app answer query messages, in clear.
    """

    identity: Location = Path(IDENTITY_KEY)
    roster: KeysOrFile = Path(ROSTER)
    metrics: Annotated[tuple[MetricName, ...], Field(strict=False)] = ()
    weighted_by: MetricName = "num-examples"
    queries: bool = False

    @model_validator(mode="after")
    def _roster_is_sound(self) -> Self:
        if not isinstance(self.roster, Path):
            self.check_roster(self.roster)
        elif self.n_min < 3:
            self.check_roster([f"{number}" for number in range(self.n_min)])
        return self
