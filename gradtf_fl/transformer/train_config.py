"""How a Grad-Transformer is trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from gradtf_fl.errors import ConfigError
from gradtf_fl.transformer.backbone import Backbone

Objective = Literal["mse", "functional", "mse-then-functional"]
SWITCHES = ("scaled", "averaged")
"""Parts of the training that ablations leave out."""


@dataclass(frozen=True)
class TrainConfig:
    """How the Grad-Transformer is trained.

    >>> from gradtf_fl import TrainConfig
    >>> TrainConfig(objective="mse-then-functional", steps=1000).all_steps
    1250

    Attributes:
        steps: optimizer steps (for ``mse-then-functional``: the functional ones; the warm start has as many / 4).
        groups: shadow federations in a batch.
        rows: public rows per federation in the functional objective.
        input_noise: standard deviation of Gaussian noise on inputs, in units of the source's scale.
        shadow_noise: largest strength of noise with the covariance of DP shadow sets, where 1 is a single DP set's.
        plain_share: share of inputs that come from plain (not DP) shadow sets.
        mixture_share: share of inputs whose task is a mixture of rules.
        checkpoint_every: steps between resumable snapshots.
        validate_every: steps between validations on what is GENERATED for held-out federations; the best weights are
            kept. 0: none is held out, the last weights are kept.
        validation_share: share of shadow federations held out, where there is validation.
        patience: training stops after this many validations in a row without a new best one.
        scaled: false switches standardisation off for an ablation: mean 0, scale 1.
        averaged: false draws single updates of a task instead of averages over several of its federations, for an
            ablation.
        partition: how update vectors are cut into tokens, a name in `partition.PLANS`.
        device, precision: see `adapters.Place`.
    """

    objective: Objective = "functional"
    steps: int = 7000
    groups: int = 64
    rows: int = 2
    rate: float = 1.5e-3
    warm_up: int = 100
    weight_decay: float = 0.01
    input_noise: float = 0.15
    shadow_noise: float = 1.0
    plain_share: float = 0.25
    mixture_share: float = 0.15
    seed: int = 0
    checkpoint_every: int = 250
    validate_every: int = 0
    validation_share: float = 0.1
    patience: int = 10
    partition: str = "block"
    backbone: Backbone = Backbone()
    device: str = "cpu"
    precision: str = "float32"
    scaled: bool = True
    averaged: bool = True

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form; names and records of runs are made of it.

        An ablation's switch stands in it only where it is off: runs without ablations keep the form, and so the
        files, they had before there were switches.
        """
        return {name: value for name, value in asdict(self).items() if name not in SWITCHES or value is not True}

    @property
    def mse_steps(self) -> int:
        """The first steps, which are by ``mse``."""
        return {"mse": self.steps, "functional": 0, "mse-then-functional": self.steps // 4}[self.objective]

    @property
    def all_steps(self) -> int:
        return self.mse_steps + (0 if self.objective == "mse" else self.steps)

    def check(self, processes: int = 1) -> None:
        """ConfigError with every value that no machine can train with, in this many processes."""
        from gradtf_fl.transformer.partition import PLANS

        problems = []
        if self.partition not in PLANS:
            problems.append(f"partition {self.partition!r} is unknown: there are {', '.join(PLANS)}")
        if not 0 < self.validation_share < 1:
            problems.append(f"validation_share {self.validation_share} must lie between 0 and 1")
        if self.validate_every < 0:
            problems.append(f"validate_every {self.validate_every} must be at least 0")
        if self.patience < 1:
            problems.append(f"patience {self.patience} must be at least 1")
        if self.groups < processes:
            problems.append(f"groups {self.groups} must be at least the number of processes, {processes}")
        if self.device == "spread" and processes > 1:
            problems.append(f"device 'spread': each of {processes} processes has a device of its own; take 'cuda'")
        if problems:
            raise ConfigError(problems)
