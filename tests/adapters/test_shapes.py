"""A model's space without its weights is the one with them, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gradtf_fl.adapters import AdaptedModel, AdapterSpec
from gradtf_fl.adapters import models as models_module
from gradtf_fl.adapters.targets import without_weights
from tests.adapters.architectures import CONFIGS, EXPERTS, MIXTURES, small_model

CASES = [(name, ("auto",)) for name in CONFIGS] + [(name, EXPERTS) for name in MIXTURES]


@pytest.mark.parametrize(("architecture", "targets"), CASES, ids=lambda one: one if isinstance(one, str) else one[-1])
def test_every_architecture_has_the_same_space(architecture: str, targets: tuple[str, ...]) -> None:
    model = small_model(architecture)
    spec = AdapterSpec(targets=targets)
    with_them = AdaptedModel.of(model, None, spec)
    without = AdaptedModel.of(without_weights(model.config), None, spec)
    assert {p.device.type for p in without.model.parameters()} == {"meta"}
    assert without.space == with_them.space
    assert all(torch.equal(without.initial[name], value) for name, value in with_them.initial.items())


@pytest.mark.parametrize("kind", ["lora", "lora-b", "lora-xs", "full"])
@pytest.mark.parametrize("name", ["embedded:tiny", "embedded:llm"])
def test_every_kind_has_the_same_space(name: str, kind: Any) -> None:
    spec = AdapterSpec(train_a=False) if kind == "lora-b" else AdapterSpec(kind=kind)
    assert AdaptedModel.shapes(name, spec).space == AdaptedModel.load(name, spec).space


def test_only_the_config_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are damaged have a hash, and no model is made of them."""
    model = small_model("llama")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert AdaptedModel.shapes(str(tmp_path), AdapterSpec()).space.layout.blocks == 2
    with pytest.raises(models_module.ConfigError, match="can't be loaded"):
        AdaptedModel.load(str(tmp_path), AdapterSpec())
