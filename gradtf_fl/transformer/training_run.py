"""What a killed training run continues from, and its best weights so far."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gradtf_fl.errors import ConfigError
from gradtf_fl.transformer.model import GradTransformerModel
from gradtf_fl.transformer.sampling import ShadowSampler
from gradtf_fl.transformer.train_config import TrainConfig


@dataclass
class TrainingRun:
    """Everything that changes during training.

    Attributes:
        log: one loss for each finished step.
        validations: (steps done, loss) of each validation.
        best: weights of the best validation (the first of equals); None before there is one.
    """

    config: TrainConfig
    sampler: ShadowSampler
    model: GradTransformerModel
    optimizers: list[torch.optim.Optimizer]
    log: list[float] = field(default_factory=list)
    validations: list[tuple[int, float]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None

    @property
    def best_place(self) -> int:
        """Which validation is the best."""
        losses = [loss for _, loss in self.validations]
        return losses.index(min(losses))

    @property
    def is_over(self) -> bool:
        """Whether ``patience`` validations in a row brought nothing better."""
        return bool(self.validations) and len(self.validations) - 1 - self.best_place >= self.config.patience

    def validated(self, loss: float) -> None:
        """Take note of a validation of the present weights."""
        self.validations.append((len(self.log), loss if math.isfinite(loss) else math.inf))
        if self.best_place == len(self.validations) - 1:
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}

    def save(self, path: Path) -> None:
        """Write everything, whole."""
        staging = Path(f"{path}.new")
        state = {
            "config": json.dumps(self.config.to_json()),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "difficulty": list(self.sampler.difficulty.values()),
            "log": self.log,
            "validations": self.validations,
            "best": self.best,
            "random": torch.get_rng_state(),
        }
        torch.save(state, staging)
        os.replace(staging, path)

    def load(self, path: Path) -> None:
        """Continue from `save`'s file; ConfigError when it is of a run with other settings."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["config"] != json.dumps(self.config.to_json()):
            raise ConfigError(f"{path}: left by a training run with other settings; remove it or choose another --out")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.sampler.difficulty = dict(zip(self.sampler.difficulty, state["difficulty"], strict=True))
        self.log, self.validations, self.best = list(state["log"]), list(state["validations"]), state["best"]
        torch.set_rng_state(state["random"])
