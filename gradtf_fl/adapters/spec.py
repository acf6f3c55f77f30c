"""Which adapter is trained on which modules."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gradtf_fl.errors import ConfigError
from gradtf_fl.round_messages import MAX_ALPHA, MAX_RANK, MIN_ALPHA

if TYPE_CHECKING:
    import torch

KINDS = ("lora", "lora-xs", "full")
MAX_TARGETS = 64
State = Mapping[str, "torch.Tensor"]
"""An adapter's parameters by PEFT name."""


@dataclass(frozen=True)
class AdapterSpec:
    """Which adapter is trained on which modules.

    >>> from gradtf_fl import AdapterSpec
    >>> AdapterSpec(rank=4, alpha=8.0, targets=("q_proj", "v_proj")).scale
    2.0

    Attributes:
        targets: names of linear layers (q_proj, up_proj, ...), of the input embedding (embed_tokens) and of routed
            experts (experts.down_proj); ("auto",) until `resolve_targets` has put names in its place.
        train_a: false freezes A (FFA-LoRA: averages of B are then exact); without meaning for other kinds.
        kind: "lora", "lora-xs" or "full"; ``alpha`` and ``rank`` are without meaning for "full".
    """

    rank: int = 2
    alpha: float = 4.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    train_a: bool = True
    seed: int = 0
    kind: str = "lora"

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", float(self.alpha))  # 8 and 8.0 must not have two texts
        if self.kind not in KINDS:
            raise ConfigError(f"adapter kind {self.kind!r} is unknown: the kinds are {', '.join(KINDS)}")

    @property
    def scale(self) -> float:
        """alpha / rank; 1 for "full"."""
        return 1.0 if self.kind == "full" else self.alpha / self.rank

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form; without ``kind`` where that is "lora", so that signed rounds keep their bytes."""
        document = {**asdict(self), "targets": list(self.targets)}
        if self.kind == "lora":
            del document["kind"]
        return document

    def canonical(self) -> str:
        """The one text of this spec, which rounds carry and hash: JSON with sorted keys."""
        return json.dumps(self.to_json(), sort_keys=True)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> AdapterSpec:
        """Spec from `to_json`'s form; KeyError, TypeError or ValueError on another form, and on targets "auto"."""
        targets = tuple(str(t) for t in document["targets"])
        if isinstance(document["targets"], str) or "auto" in targets:
            raise ValueError("targets are names of layers")
        return cls(
            int(document["rank"]),
            float(document["alpha"]),
            targets,
            bool(document["train_a"]),
            int(document["seed"]),
            str(document.get("kind", "lora")),
        )

    @classmethod
    def from_canonical(cls, text: str) -> AdapterSpec:
        """The spec that a round carries; nothing of ``text``, which a stranger wrote, stands in an error.

        Raises:
            ValueError: not what `canonical` writes, or a value outside the range that any organization permits.
        """
        try:
            spec = cls.from_json(json.loads(text))
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            raise ValueError("the adapter spec cannot be read") from None
        names = spec.targets
        checks = {
            "rank": 1 <= spec.rank <= MAX_RANK,
            "alpha": math.isfinite(spec.alpha) and MIN_ALPHA <= spec.alpha <= MAX_ALPHA,
            "targets": 0 < len(names) == len(set(names)) <= MAX_TARGETS
            and all(re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", name) for name in names),
            "seed": 0 <= spec.seed < 2**63,
        }
        wrong = [name for name, holds in checks.items() if not holds]
        if wrong or spec.canonical() != text:
            raise ValueError(f"the adapter spec has a value outside its range: {', '.join(wrong) or 'its form'}")
        return spec
