"""Baselines: what a user would pick instead of the Grad-Transformer, behind one interface.

The controls are here; the rivals that need models are imported when they are asked for.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradtf_fl.baselines.controls import Controls
from gradtf_fl.models import ASSETS

if TYPE_CHECKING:
    from gradtf_fl.baselines.comparison import Settings, all_baselines
    from gradtf_fl.baselines.cross_lora import CrossLora
    from gradtf_fl.baselines.decoding import Decoding
    from gradtf_fl.baselines.from_update import FromUpdate, update_only_baselines
    from gradtf_fl.baselines.interface import Baseline, Case, Outcome, Pair, PairSide, run_baseline
    from gradtf_fl.baselines.losses import AdaptiveLoss, ConfidenceLoss, WeakLoss
    from gradtf_fl.baselines.pca_ridge import PcaRidge
    from gradtf_fl.baselines.proxy_tuning import ProxyTuning
    from gradtf_fl.baselines.scoring import Scores
    from gradtf_fl.baselines.synthetic_text import HOUSE_RULES_ROWS, RowShape, SyntheticText, with_prompt_loss
    from gradtf_fl.baselines.weak_to_strong import HalfSplit, PublicPrompts

__all__ = [
    "HOUSE_RULES_ROWS",
    "AdaptiveLoss",
    "Baseline",
    "Case",
    "ConfidenceLoss",
    "Controls",
    "CrossLora",
    "Decoding",
    "FromUpdate",
    "HalfSplit",
    "Outcome",
    "Pair",
    "PairSide",
    "PcaRidge",
    "ProxyTuning",
    "PublicPrompts",
    "RowShape",
    "Scores",
    "Settings",
    "SyntheticText",
    "WeakLoss",
    "all_baselines",
    "embedded_controls",
    "run_baseline",
    "update_only_baselines",
    "with_prompt_loss",
]

_HOMES = {
    "comparison": ("Settings", "all_baselines"),
    "cross_lora": ("CrossLora",),
    "decoding": ("Decoding",),
    "from_update": ("FromUpdate", "update_only_baselines"),
    "interface": ("Baseline", "Case", "Outcome", "Pair", "PairSide", "run_baseline"),
    "losses": ("AdaptiveLoss", "ConfidenceLoss", "WeakLoss"),
    "pca_ridge": ("PcaRidge",),
    "proxy_tuning": ("ProxyTuning",),
    "scoring": ("Scores",),
    "synthetic_text": ("HOUSE_RULES_ROWS", "RowShape", "SyntheticText", "with_prompt_loss"),
    "weak_to_strong": ("HalfSplit", "PublicPrompts"),
}


def embedded_controls() -> Path:
    """The controls that ship with the package, fitted on the shipped Grad-Transformer's plain shadow sets."""
    return ASSETS / "controls.safetensors"


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(name)
