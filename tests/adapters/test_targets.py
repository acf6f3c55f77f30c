"""What "auto" stands for, and what names of targets mean in models of every architecture."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from gradtf_fl.adapters import AdaptedModel, AdapterSpec, BlockLayout, resolve_targets
from gradtf_fl.adapters.targets import named_targets
from gradtf_fl.errors import ConfigError

from .architectures import CONFIGS, DEFAULTS, EXPERTS, MIXTURES, small_model


@pytest.mark.parametrize("architecture", CONFIGS)
def test_auto_is_the_attention_of_the_architecture(architecture: str) -> None:
    model = small_model(architecture)
    assert resolve_targets(model, "auto") == DEFAULTS[architecture]
    assert resolve_targets(model.config, ["auto"]) == DEFAULTS[architecture]
    assert resolve_targets(model, ("k_proj", "x")) == ("k_proj", "x")
    adapted = AdaptedModel.of(model, None, AdapterSpec(targets=("auto",)))
    assert adapted.space.spec == AdapterSpec(targets=DEFAULTS[architecture])
    named = AdaptedModel.of(small_model(architecture), None, AdapterSpec(targets=DEFAULTS[architecture]))
    assert named.space == adapted.space


def test_a_spec_that_travels_has_names() -> None:
    for targets in (["auto"], "auto"):
        with pytest.raises(ValueError, match="names of layers"):
            AdapterSpec.from_json({**AdapterSpec().to_json(), "targets": targets})


def stranger(*names: str) -> nn.Module:
    """A model of an architecture that PEFT has never heard of, with linear layers of these names."""
    model = nn.Module()
    model.layers = nn.ModuleList([nn.ModuleDict({name: nn.Linear(4, 4) for name in names})])
    config = SimpleNamespace(model_type="stranger")
    config.get_text_config = lambda: config
    model.config = config  # type: ignore[assignment]
    return model


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("q_proj", "k_proj", "v_proj", "up_proj"), ("q_proj", "v_proj")),
        (("Wqkv", "out_proj"), ("Wqkv",)),
        (("wq", "wk", "wv"), ("wq", "wv")),
    ],
)
def test_where_peft_has_no_default_the_usual_names_are_looked_for(
    names: tuple[str, ...], found: tuple[str, ...]
) -> None:
    assert resolve_targets(stranger(*names), "auto") == found


def test_without_attention_under_a_known_name_the_linear_layers_are_named() -> None:
    with pytest.raises(ConfigError, match="linear layers are mix, out") as error:
        resolve_targets(stranger("mix", "out"), "auto")
    assert len(error.value.problems) == 1


def test_a_name_with_dots_is_the_end_of_a_layers_name() -> None:
    model = small_model("qwen2_moe")
    for names, count in ((("mlp.shared_expert.up_proj",), 2), (("expert.up_proj",), 0), (("1.self_attn.q_proj",), 1)):
        assert len(named_targets(model, names)) == count
    both = named_targets(model, ("down_proj", "experts.down_proj"))
    assert [(target.name.partition("mlp.")[2], target.experts) for target in both[:2]] == [
        ("experts", 4),
        ("shared_expert.down_proj", 1),
    ]


@pytest.mark.parametrize("kind", ["lora-xs", "full"])
def test_experts_carry_lora_alone(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"experts.*linear layers only"):
        AdaptedModel.of(small_model("mixtral"), None, AdapterSpec(targets=EXPERTS, kind=kind))


def test_a_rank_that_no_matrix_has_is_refused_before_it_costs_memory() -> None:
    with pytest.raises(ConfigError, match="rank 1000000 is more than its weight has"):
        AdaptedModel.of(small_model("llama"), None, AdapterSpec(rank=10**6))


@pytest.mark.parametrize("architecture", MIXTURES)
def test_the_layout_of_experts_survives_json_and_knows_each_expert(architecture: str) -> None:
    adapted = AdaptedModel.of(small_model(architecture), None, AdapterSpec(targets=("q_proj", *EXPERTS)))
    layout = adapted.space.layout
    assert BlockLayout.from_json(json.loads(json.dumps(layout.to_json()))) == layout
    vector = np.random.default_rng(0).normal(size=(layout.blocks, layout.block_dim)).astype(np.float32)
    state, row = layout.to_state(vector), torch.from_numpy(vector[1])
    for slot in layout.slots:
        matrix = state[layout.name(1, slot)]
        if slot.experts == 1:
            continue
        assert slot.experts == 4
        a = matrix.reshape(4, 2, -1)  # as PEFT takes it apart
        b = matrix.reshape(matrix.shape[0], -1, 4)
        for expert in range(4):
            wanted = a[expert] if "lora_A" in slot.suffix else b[..., expert]
            assert torch.equal(row[slot.columns(expert).slice], wanted.flatten())


def test_layers_that_are_not_alike_are_named() -> None:
    model = small_model("qwen2_moe", mlp_only_layers=[0])
    assert AdaptedModel.of(model, None, AdapterSpec()).space.layout.layers == 2
    for targets in (EXPERTS, ("q_proj", *EXPERTS)):
        with pytest.raises(ConfigError, match="choose targets that"):
            AdaptedModel.of(small_model("qwen2_moe", mlp_only_layers=[0]), None, AdapterSpec(targets=targets))
