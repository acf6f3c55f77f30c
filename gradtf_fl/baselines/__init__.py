"""Baselines: what a user would pick instead of the Grad-Transformer, behind one interface.

The controls are here; the rivals that need models are imported when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from gradtf_fl.baselines.comparison import Settings, all_baselines
    from gradtf_fl.baselines.controls import Controls, embedded_controls
    from gradtf_fl.baselines.cross_lora import CrossLora
    from gradtf_fl.baselines.decoding import Decoding, continuations
    from gradtf_fl.baselines.from_update import FromUpdate, update_only_baselines
    from gradtf_fl.baselines.interface import Baseline, Case, Outcome, Pair, outcome_of_updates, run_baseline
    from gradtf_fl.baselines.losses import AdaptiveLoss, ConfidenceLoss, WeakLoss
    from gradtf_fl.baselines.pca_ridge import PcaRidge
    from gradtf_fl.baselines.proxy_tuning import ProxyTuning
    from gradtf_fl.baselines.scoring import score_rows
    from gradtf_fl.baselines.synthetic_text import HOUSE_RULES_ROWS, RowShape, SyntheticText, with_prompt_loss
    from gradtf_fl.baselines.weak_to_strong import HalfSplit, PublicPrompts
else:
    __getattr__, __dir__ = lazy_names(__name__)

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
    "PcaRidge",
    "ProxyTuning",
    "PublicPrompts",
    "RowShape",
    "Settings",
    "SyntheticText",
    "WeakLoss",
    "all_baselines",
    "continuations",
    "embedded_controls",
    "outcome_of_updates",
    "run_baseline",
    "score_rows",
    "update_only_baselines",
    "with_prompt_loss",
]
