"""Every rival of the comparison table in one list (see `gradtf_fl.baselines.interface.run_baseline`)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gradtf_fl.baselines.controls import Controls
from gradtf_fl.baselines.decoding import Decoding
from gradtf_fl.baselines.from_update import update_only_baselines
from gradtf_fl.baselines.interface import Baseline, Pair
from gradtf_fl.baselines.losses import AdaptiveLoss, ConfidenceLoss, WeakLoss
from gradtf_fl.baselines.proxy_tuning import ProxyTuning
from gradtf_fl.baselines.synthetic_text import RowShape, SyntheticText
from gradtf_fl.baselines.weak_to_strong import HalfSplit, PublicPrompts
from gradtf_fl.training import PlainRecipe


@dataclass(frozen=True)
class Settings:
    """What the rivals share; the recipes should be those of the tuned TinyLM and of the ceiling.

    Attributes:
        answers: how the tuned TinyLM answers a prompt.
        shape: how written text becomes a row; None leaves synthetic text out.
        texts: texts drawn for each organization.
        texts_decoding: how they are drawn.
    """

    tiny_recipe: PlainRecipe
    llm_recipe: PlainRecipe
    answers: Decoding
    shape: RowShape | None = None
    texts: int = 1024
    texts_decoding: Decoding = Decoding(max_new_tokens=64, temperature=1.0)
    confidence: ConfidenceLoss = ConfidenceLoss()
    adaptive: AdaptiveLoss = AdaptiveLoss()


def all_baselines(controls: Controls, pair: Pair, settings: Settings, whole_rows: bool = False) -> tuple[Baseline, ...]:
    """All rivals that the settings allow; with ``whole_rows`` also synthetic text from `Case.text_updates`."""
    rivals: list[Baseline] = [*update_only_baselines(controls, pair), ProxyTuning()]
    w2s = HalfSplit("w2s", "Burns et al. 2024", WeakLoss(), settings.tiny_recipe, settings.llm_recipe, settings.answers)
    rivals += [
        w2s,
        replace(w2s, name="conf", source="Burns et al. 2024, loss (47)", objective=settings.confidence),
        replace(w2s, name="vissup", source="Guo et al. 2024, losses (48)-(49)", objective=settings.adaptive),
        PublicPrompts(WeakLoss(), settings.llm_recipe, settings.answers),
    ]
    if settings.shape is not None:
        text = SyntheticText(settings.shape, settings.llm_recipe, settings.texts, settings.texts_decoding)
        rivals.append(text)
        if whole_rows:
            rivals.append(replace(text, name="dp-synthetic-text-whole", whole_rows=True))
    return tuple(rivals)
