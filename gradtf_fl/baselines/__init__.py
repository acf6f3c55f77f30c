"""Baselines: what a user would pick instead of the Grad-Transformer."""

from pathlib import Path

from gradtf_fl.baselines.controls import Controls
from gradtf_fl.models import ASSETS

__all__ = ["Controls", "embedded_controls"]


def embedded_controls() -> Path:
    """The controls that ship with the package, fitted on the shipped Grad-Transformer's plain shadow sets."""
    return ASSETS / "controls.safetensors"
