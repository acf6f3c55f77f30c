"""The adapter that settings ask for."""

from __future__ import annotations

from gradtf_fl.adapters.models import load_encoder
from gradtf_fl.adapters.spec import AdapterSpec
from gradtf_fl.adapters.targets import resolve_targets
from gradtf_fl.config import RoundSettings


def chosen_spec(settings: RoundSettings, automatic: tuple[str, ...] | None = None) -> AdapterSpec:
    """The adapter of ``[pair]``.

    Args:
        settings: kind, targets, rank and alpha, and the TinyLM.
        automatic: what targets 'auto' are; None: what the TinyLM's architecture says.

    Raises:
        ConfigError: 'auto', and the TinyLM can't be had or names no attention projections.
    """
    names = tuple(sorted(name.strip() for name in settings.targets.split(",") if name.strip()))
    if names == ("auto",):
        names = automatic or resolve_targets(load_encoder(settings.tiny)[0], "auto")
    kind = "lora" if settings.adapter == "lora-b" else settings.adapter
    return AdapterSpec(settings.rank, settings.lora_alpha, names, train_a=settings.adapter != "lora-b", kind=kind)
