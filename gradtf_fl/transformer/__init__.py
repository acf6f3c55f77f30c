"""The Grad-Transformer: checkpoint and generation here; model and training are imported when they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradtf_fl.models import ASSETS
from gradtf_fl.transformer.checkpoint import GradTransformer, Side

if TYPE_CHECKING:
    from gradtf_fl.transformer.train_config import TrainConfig
    from gradtf_fl.transformer.training import train

__all__ = ["GradTransformer", "Side", "TrainConfig", "embedded_checkpoint", "train"]


def embedded_checkpoint() -> Path:
    """The Grad-Transformer that ships with the package (House Rules TinyLM -> LLM)."""
    return ASSETS / "grad-transformer.safetensors"


def __getattr__(name: str) -> Any:
    if name in ("TrainConfig", "train"):
        from gradtf_fl.transformer import training

        return getattr(training, name)
    raise AttributeError(name)
