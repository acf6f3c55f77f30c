"""Kinds of adapters: hand-computed initial values and exports, folders that plain PEFT reads, and clear refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradtf_fl import adapters
from gradtf_fl.adapters import AdaptedModel, AdapterSpec
from gradtf_fl.adapters import kinds as adapter_kinds
from gradtf_fl.adapters.update_vectors import BlockLayout, apply_update
from gradtf_fl.errors import ConfigError, CorruptFile
from gradtf_fl.training.stacked import StackedAdapters
from tests.training.conftest import base_model

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
SPECS = {
    "all-linear": AdapterSpec(rank=3, targets=(*ATTENTION, *MLP)),
    "embedding": AdapterSpec(targets=("q_proj", "embed_tokens")),
    "embedding-b-only": AdapterSpec(targets=("v_proj", "embed_tokens"), train_a=False),
    "head": AdapterSpec(targets=("q_proj", "lm_head")),
    "b-only": AdapterSpec(train_a=False),
    "lora-xs": AdapterSpec(rank=4, targets=(*ATTENTION, *MLP), kind="lora-xs"),
    "full": AdapterSpec(targets=ATTENTION, kind="full"),
    "full-mlp": AdapterSpec(targets=("v_proj", *MLP), kind="full"),
}


class Tiny(nn.Module):
    """One numbered layer with a weight of our choice [out, in], and an embedding."""

    def __init__(self, weight: list[list[float]]) -> None:
        super().__init__()
        values = torch.tensor(weight)
        layer = nn.Module()
        layer.q_proj = nn.Linear(values.shape[1], values.shape[0], bias=False)
        layer.q_proj.weight = nn.Parameter(values)
        self.embed_tokens = nn.Embedding(5, 2)
        self.layers = nn.ModuleList([layer])


STEM = "base_model.model.layers.0.q_proj"


def test_lora_xs_starts_from_the_largest_singular_directions() -> None:
    spec = AdapterSpec(rank=1, targets=("q_proj",), kind="lora-xs")
    state = adapters.initial_state(Tiny([[0.0, -3.0], [2.0, 0.0], [0.0, 0.0]]), spec)
    # the largest singular value is 3, from input 1 to minus output 0
    assert state[f"{STEM}.lora_A.weight"].tolist() == [[0.0, 1.0]]
    assert state[f"{STEM}.lora_B.weight"].tolist() == [[-3.0], [0.0], [0.0]]
    assert state[f"{STEM}.lora_R.weight"].tolist() == [[0.0]]


def test_lora_xs_bases_do_not_depend_on_last_bits() -> None:
    spec = AdapterSpec(rank=4, targets=("q_proj",), kind="lora-xs")
    weight = np.random.default_rng(0).normal(size=(6, 8))
    model = Tiny(weight.tolist()).double()
    first = adapters.initial_state(model, spec)
    with torch.no_grad():
        model.layers[0].q_proj.weight *= 1 + 1e-14  # type: ignore[union-attr,operator]
    second = adapters.initial_state(model, spec)
    assert adapters.state_hash(first) == adapters.state_hash(second)
    product = first[f"{STEM}.lora_B.weight"] @ first[f"{STEM}.lora_A.weight"]
    u, s, vt = np.linalg.svd(weight)
    np.testing.assert_allclose(product, (u[:, :4] * s[:4]) @ vt[:4], atol=5e-3)  # rounded to half precision


def test_exports_by_hand() -> None:
    xs = {
        "m.layers.0.q.lora_A.weight": torch.tensor([[1.0, 2.0]]),
        "m.layers.0.q.lora_B.weight": torch.tensor([[3.0], [4.0]]),
        "m.layers.0.q.lora_R.weight": torch.tensor([[5.0]]),
    }
    plain = adapter_kinds.to_plain_lora(xs)
    assert {name: t.tolist() for name, t in plain.items()} == {
        "m.layers.0.q.lora_A.weight": [[1.0, 2.0]],
        "m.layers.0.q.lora_B.weight": [[15.0], [20.0]],
    }
    full = {"q.delta.weight": torch.tensor([[1.0, 2.0, 3.0]]), "v.delta.weight": torch.tensor([[4.0, 5.0], [6.0, 7.0]])}
    plain = adapter_kinds.to_plain_lora(full)  # v has rank 2, so q's single row is filled up to 2
    assert {name: t.tolist() for name, t in plain.items()} == {
        "q.lora_A.weight": [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]],
        "q.lora_B.weight": [[1.0, 0.0]],
        "v.lora_A.weight": [[1.0, 0.0], [0.0, 1.0]],
        "v.lora_B.weight": [[4.0, 5.0], [6.0, 7.0]],
    }


def test_an_embedding_follows_the_layers_in_trailing_rows() -> None:
    spec = AdapterSpec(rank=1, targets=("q_proj", "embed_tokens"))
    state = adapters.initial_state(Tiny([[1.0, 0.0], [0.0, 1.0]]), spec)
    layout = BlockLayout.from_state(state)
    assert (layout.blocks, layout.block_dim, layout.layers, layout.extra_size) == (3, 4, 1, 7)
    vector = np.arange(12, dtype=np.float32).reshape(3, 4)
    moved = layout.to_state(vector)
    assert moved["base_model.model.embed_tokens.lora_embedding_A"].tolist() == [[4, 5, 6, 7, 8]]
    assert moved["base_model.model.embed_tokens.lora_embedding_B"].tolist() == [[9], [10]]
    vector[2, 3] = 0  # filled up
    assert layout.parameter_mask().tolist() == [[True] * 4, [True] * 4, [True, True, True, False]]
    assert np.array_equal(layout.to_vector(moved), vector)
    assert BlockLayout.from_json(json.loads(json.dumps(layout.to_json()))) == layout
    a = state["base_model.model.embed_tokens.lora_embedding_A"]
    assert a.abs().max() > 0.5  # its input is one-hot: not divided by the root of the vocabulary
    assert not state["base_model.model.embed_tokens.lora_embedding_B"].any()


def test_layouts_and_specs_of_signed_rounds_keep_their_bytes() -> None:
    from gradtf_fl.adapters.models import load_model

    assert AdapterSpec().to_json() == {
        "rank": 2,
        "alpha": 4.0,
        "targets": ["q_proj", "v_proj"],
        "train_a": True,
        "seed": 0,
    }
    layout = BlockLayout.from_state(adapters.initial_state(load_model("embedded:tiny")[0], AdapterSpec()))
    assert layout.digest == "b6fea65fbfef60940dd9c45f681380f2650425fee5ae69b1043f03dc129dca58"
    for spec in SPECS.values():
        assert AdapterSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def random_update(layout: BlockLayout, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(layout.blocks, layout.block_dim)) * 0.1
    return (values * layout.parameter_mask()).astype(np.float32)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_a_folder_loaded_by_plain_peft_computes_what_the_stack_does(
    name: str, family: str, tied: bool, tmp_path: Path
) -> None:
    from peft import PeftModel

    spec = SPECS[name]

    def base() -> Any:
        return base_model(family, tie_word_embeddings=tied).eval()

    initial = adapters.initial_state(base(), spec)
    layout = BlockLayout.from_state(initial, spec.train_a)
    moved = apply_update(layout, initial, random_update(layout))
    adapters.save_adapter(tmp_path / "adapter", moved, spec, "base")
    ids = torch.arange(1, 25).reshape(2, 12)
    stack = StackedAdapters(AdaptedModel.of(base(), None, spec))
    stack.set(torch.from_numpy(layout.to_vector(moved))[None])
    wanted = stack.model(input_ids=ids).logits
    assert (wanted - base()(input_ids=ids).logits).abs().max() > 1e-2
    loaded = PeftModel.from_pretrained(base(), tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(input_ids=ids).logits, wanted, atol=1e-5, rtol=0)
    state, read_spec, _ = adapters.load_adapter(tmp_path / "adapter")
    assert (read_spec, adapters.state_hash(state)) == (spec, adapters.state_hash(moved))
    attached = adapters.attach(base(), read_spec)
    adapters.set_adapter_state(attached, state)
    torch.testing.assert_close(attached(input_ids=ids).logits, wanted, atol=1e-5, rtol=0)
    assert adapters.unpack_adapter(adapters.pack_adapter(moved, spec, "base", "")).spec == spec


@pytest.mark.parametrize("name", SPECS)
def test_attach_trains_what_the_layout_holds_or_nothing(name: str) -> None:
    spec = SPECS[name]
    model = adapters.attach(base_model(), spec)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    layout = BlockLayout.from_state(adapters.initial_state(base_model(), spec), spec.train_a)
    assert trainable == (0 if spec.kind == "full" else int(layout.parameter_mask().sum()))


def test_what_an_adapter_cannot_go_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="kind 'dora' is unknown"):
        AdapterSpec(kind="dora")
    with pytest.raises(ConfigError) as both:
        adapters.initial_state(base_model(), AdapterSpec(targets=("q_proj", "wq", "wk")))
    assert len(both.value.problems) == 2
    spec = AdapterSpec(rank=33, targets=("q_proj", "embed_tokens"), kind="lora-xs")
    with pytest.raises(ConfigError) as several:
        adapters.initial_state(base_model(), spec)
    assert len(several.value.problems) == 3  # the embedding, and the rank of both layers' q
    with pytest.raises(ConfigError, match="numbered layer"):
        StackedAdapters(AdaptedModel.of(base_model(), None, AdapterSpec(targets=("embed_tokens",))))
    full = AdapterSpec(targets=("q_proj",), kind="full")
    state = adapters.initial_state(base_model(), full)
    monkeypatch.setattr(adapter_kinds, "FULL_LIMIT", 2 * 32 * 64)  # two layers of rank 32, 32 + 32 wide
    adapters.initial_state(base_model(), full)
    monkeypatch.setattr(adapter_kinds, "FULL_LIMIT", 2 * 32 * 64 - 1)
    for refused in (lambda: adapters.initial_state(base_model(), full), lambda: adapter_kinds.to_plain_lora(state)):
        with pytest.raises(ConfigError, match="small models"):
            refused()


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "gradtf.safetensors", "gradtf.json"])
def test_damage_to_either_form_is_found(file: str, tmp_path: Path) -> None:
    spec = SPECS["lora-xs"]
    adapters.save_adapter(tmp_path / "a", adapters.initial_state(base_model(), spec), spec, "base")
    path = tmp_path / "a" / file
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 64
    path.write_bytes(bytes(raw))
    with pytest.raises(CorruptFile):
        adapters.load_adapter(tmp_path / "a")


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:Model has `tie_word_embeddings=True`")
def test_a_folder_with_whole_weights_is_refused(tmp_path: Path) -> None:
    model = adapters.attach(base_model(), SPECS["embedding"])
    model.save_pretrained(tmp_path / "plain")  # PEFT adds the embedding's own weight
    with pytest.raises(ConfigError, match="whole weights"):
        adapters.load_adapter(tmp_path / "plain")
    model.save_pretrained(tmp_path / "lean", save_embedding_layers=False)
    assert set(adapters.load_adapter(tmp_path / "lean")[0]) == set(adapters.adapter_state(model))
