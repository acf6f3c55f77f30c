"""Update vectors and adapters: exact round trips, shared initial state, PEFT folders read by plain PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradtf_fl import adapters
from gradtf_fl.adapters import AdapterSpec
from gradtf_fl.adapters.models import load_model, model_folder
from gradtf_fl.adapters.update_vectors import BlockLayout, apply_update, update_vector
from gradtf_fl.errors import ConfigError, CorruptFile


def state_like(layers: int, width: int, rank: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for layer in range(layers):
        for projection in ("q_proj", "v_proj"):
            stem = f"base_model.model.model.layers.{layer}.self_attn.{projection}"
            state[f"{stem}.lora_A.weight"] = torch.randn(rank, width, generator=generator)
            state[f"{stem}.lora_B.weight"] = torch.randn(width // 2, rank, generator=generator)
    return state


@given(
    layers=st.integers(1, 12),
    width=st.integers(2, 9).map(lambda n: 2 * n),
    rank=st.integers(1, 4),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_state_to_vector_and_back_is_exact(layers: int, width: int, rank: int, seed: int) -> None:
    state = state_like(layers, width, rank, seed)
    layout = BlockLayout.from_state(state)
    assert (layout.blocks, layout.block_dim) == (layers, 2 * rank * (width + width // 2))
    back = layout.to_state(layout.to_vector(state))
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert BlockLayout.from_json(json.loads(json.dumps(layout.to_json()))) == layout


def test_the_order_inside_a_block_is_fixed() -> None:
    state = {
        "m.layers.0.q.lora_B.weight": torch.tensor([[3.0], [4.0]]),
        "m.layers.0.q.lora_A.weight": torch.tensor([[1.0, 2.0]]),
    }
    assert BlockLayout.from_state(state).to_vector(state).tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_b_only_vectors_leave_a_alone() -> None:
    state = state_like(2, 8, 2, 0)
    layout = BlockLayout.from_state(state, train_a=False)
    assert layout.block_dim == 2 * 2 * 4
    moved = apply_update(layout, state, np.ones((2, layout.block_dim), np.float32))
    for name, tensor in state.items():
        assert torch.equal(moved[name], tensor + (0.0 if "lora_A" in name else 1.0))


def test_unequal_layers_and_missing_parameters_are_refused() -> None:
    state = state_like(2, 8, 2, 0)
    layout = BlockLayout.from_state(state)
    missing = dict(state)
    missing.popitem()
    with pytest.raises(ConfigError, match="missing"):
        layout.to_vector(missing)
    state[next(iter(state))] = torch.zeros(2, 9)
    with pytest.raises(ConfigError, match="differs in shape"):
        BlockLayout.from_state(state)


@pytest.mark.parametrize("name", ["embedded:tiny", "embedded:llm"])
def test_attached_and_plain_models_share_the_initial_adapter(name: str) -> None:
    spec = AdapterSpec(seed=4)
    plain = adapters.initial_state(load_model(name)[0], spec)
    attached = adapters.attach(load_model(name)[0], spec)
    assert adapters.state_hash(plain) == adapters.state_hash(adapters.adapter_state(attached))
    assert adapters.state_hash(plain) != adapters.state_hash(adapters.initial_state(load_model(name)[0], AdapterSpec()))
    trainable = [n for n, p in attached.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in n for n in trainable)


def test_an_update_of_a_real_model_is_exact() -> None:
    spec = AdapterSpec()
    initial = adapters.initial_state(load_model("embedded:tiny")[0], spec)
    layout = BlockLayout.from_state(initial)
    vector = np.random.default_rng(0).normal(size=(layout.blocks, layout.block_dim)).astype(np.float32)
    after = apply_update(layout, initial, vector)
    np.testing.assert_allclose(update_vector(layout, after, initial), vector, atol=1e-6)


def test_a_saved_adapter_loads_in_plain_peft_and_changes_the_model(tmp_path: Path) -> None:
    from peft import PeftModel

    spec = AdapterSpec()
    model, tokenizer = load_model("embedded:llm")
    initial = adapters.initial_state(model, spec)
    layout = BlockLayout.from_state(initial)
    moved = apply_update(layout, initial, np.full((layout.blocks, layout.block_dim), 0.1, np.float32))
    adapters.save_adapter(tmp_path / "adapter", moved, spec, model_folder("embedded:llm"))
    tokens = tokenizer("[_][_][_]37?58=", return_tensors="pt")["input_ids"]
    before = model(input_ids=tokens).logits
    loaded = PeftModel.from_pretrained(model, tmp_path / "adapter")
    assert (loaded(input_ids=tokens).logits - before).abs().max() > 1e-3
    state, read_spec, base = adapters.load_adapter(tmp_path / "adapter")
    assert adapters.state_hash(state) == adapters.state_hash(moved)
    assert (read_spec, base) == (spec, model_folder("embedded:llm"))


def test_wire_form_round_trips_and_damage_is_named(tmp_path: Path) -> None:
    spec = AdapterSpec()
    state = adapters.initial_state(load_model("embedded:tiny")[0], spec)
    data = adapters.pack_adapter(state, spec, "base", "ab" * 32)
    read = adapters.unpack_adapter(data)
    again, read_spec, base = read.state, read.spec, read.base_model
    assert read.base_sha256 == "ab" * 32
    assert adapters.state_hash(again) == adapters.state_hash(state)
    assert (read_spec, base) == (spec, "base")
    for broken in (b"", data[:100], b"x" * 64):
        with pytest.raises(CorruptFile):
            adapters.unpack_adapter(broken)
    adapters.save_adapter(tmp_path / "a", state, spec, "base")
    weights = tmp_path / "a" / "adapter_model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(bytes(raw))
    with pytest.raises(CorruptFile, match="SHA-256"):
        adapters.load_adapter(tmp_path / "a")
    with pytest.raises(ConfigError, match="no PEFT folder"):
        adapters.load_adapter(tmp_path / "none")


def test_an_adapter_of_another_model_is_refused() -> None:
    spec = AdapterSpec()
    tiny = adapters.attach(load_model("embedded:tiny")[0], spec)
    with pytest.raises(ConfigError, match="does not fit"):
        adapters.set_adapter_state(tiny, adapters.initial_state(load_model("embedded:llm")[0], spec))


def test_missing_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        load_model(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_model(str(tmp_path))
    with pytest.raises(ConfigError, match="embedded models are"):
        load_model("embedded:huge")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="can't be loaded"):
        load_model(str(tmp_path))


def test_the_initial_adapter_changes_nothing_and_its_hash_covers_names_and_shapes() -> None:
    state = adapters.initial_state(load_model("embedded:tiny")[0], AdapterSpec())
    assert all((".lora_B." in name) == (not tensor.any()) for name, tensor in state.items())
    zeros = [{"a": torch.zeros(2, 3)}, {"b": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}]
    assert len({adapters.state_hash(each) for each in zeros}) == 3
