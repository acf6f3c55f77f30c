"""Adapters as GGUF: what the file holds, what is refused, and that llama.cpp answers with it as PEFT does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

from clients.adapters.export import export_merged
from clients.adapters.gguf_export import ARCHITECTURES, LAYERS, UnknownToGguf, export_gguf, gguf_matrices, interleaved
from experiments.measuring.real_model import carried_file, smollm2_folder, why_absent
from gradtf_fl.adapters import AdapterSpec, initial_state, load_model, save_adapter
from gradtf_fl.errors import ConfigError
from tests.benchmark_data import MODELS, needs_models
from tests.cli.conftest import gradtf
from tests.clients.conftest import Kept
from tests.clients.gguf_kit import dequantized, llama_cpp_tokens, needs_llama_cpp, torch_tokens, write_base

STORIES = (
    "Once upon a time",
    "One day, a little girl named Lily",
    "Tom had a big red ball.",
    "The cat sat on the mat and",
    "Mom said,",
    "There was a dog who",
    "It was a sunny day in the park.",
    "Ben and Anna wanted to play",
    "A bird flew to the tree",
    "At night the moon",
)
SPEC = AdapterSpec(rank=4, alpha=8.0, targets=LAYERS)


@dataclass(frozen=True)
class Tuned:
    """A base model's folder, an adapter on all its linear layers, and prompts as tokens."""

    base: str
    adapter: Path
    prompts: Sequence[Sequence[int]]

    def peft(self) -> Any:
        """The base with the adapter, by plain PEFT."""
        return PeftModel.from_pretrained(self.plain(), self.adapter).eval()

    def plain(self) -> Any:
        """The base alone, float32."""
        return AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32).eval()


def tuned(base: str, folder: Path, spread: float, spec: AdapterSpec = SPEC) -> Tuned:
    """An adapter of random values: B of ``spread`` / sqrt(rank), which changes every layer's output visibly."""
    model, tokenizer = load_model(base)
    generator = torch.Generator().manual_seed(5)
    state = {
        name: tensor + spread * torch.randn(tensor.shape, generator=generator) if "lora_B" in name else tensor
        for name, tensor in initial_state(model, spec).items()
    }
    save_adapter(folder / "adapter", state, spec, base)
    return Tuned(base, folder / "adapter", [tokenizer(text)["input_ids"] for text in STORIES])


def config(model_type: str = "llama", heads: int = 2, kv_heads: int = 1, layers: int = 1) -> PretrainedConfig:
    made = PretrainedConfig(num_attention_heads=heads, num_key_value_heads=kv_heads, num_hidden_layers=layers)
    made.model_type = model_type
    return made


def matrices(layer: str, rows: int = 8, block: str = "self_attn") -> dict[str, Any]:
    """B counts its rows."""
    stem = f"base_model.model.model.layers.0.{block}.{layer}"
    b = np.arange(rows, dtype=np.float32).reshape(rows, 1)
    return {f"{stem}.lora_A.weight": np.ones((1, 4), np.float32), f"{stem}.lora_B.weight": b}


def test_rows_of_a_head_go_from_halves_to_pairs() -> None:
    """By hand: a head of four rows (a0 a1 b0 b1), which rotate as (a0, b0) and (a1, b1)."""
    rows = np.arange(8.0, dtype=np.float32).reshape(8, 1)
    assert interleaved(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert interleaved(rows, 1).ravel().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize(
    ("layer", "block", "name", "order"),
    [
        ("q_proj", "self_attn", "attn_q", [0, 2, 1, 3, 4, 6, 5, 7]),
        ("k_proj", "self_attn", "attn_k", [0, 4, 1, 5, 2, 6, 3, 7]),  # one head of keys
        ("v_proj", "self_attn", "attn_v", list(range(8))),
        ("o_proj", "self_attn", "attn_output", list(range(8))),
        ("gate_proj", "mlp", "ffn_gate", list(range(8))),
        ("up_proj", "mlp", "ffn_up", list(range(8))),
        ("down_proj", "mlp", "ffn_down", list(range(8))),
    ],
)
def test_names_and_rows_are_llama_cpps(layer: str, block: str, name: str, order: list[int]) -> None:
    pytest.importorskip("gguf", reason='pip install "gradtf-fl[gguf]"')
    for model_type, architecture in ARCHITECTURES.items():
        _, found = gguf_matrices(matrices(layer, block=block), config(model_type))
        assert sorted(found) == [f"blk.0.{name}.weight.lora_a", f"blk.0.{name}.weight.lora_b"]
        assert found[f"blk.0.{name}.weight.lora_a"].shape == (1, 4)
        rows = found[f"blk.0.{name}.weight.lora_b"].ravel().tolist()
        assert rows == (order if architecture.is_interleaved else list(range(8)))


def test_what_gguf_export_does_not_know_is_named_with_what_it_knows() -> None:
    strange = {
        "base_model.model.model.embed_tokens.lora_embedding_A": np.ones((1, 5), np.float32),
        "base_model.model.model.embed_tokens.lora_embedding_B": np.ones((4, 1), np.float32),
    }
    with pytest.raises(UnknownToGguf) as caught:
        gguf_matrices(strange, config("gpt_neox"))
    first, second, remedy = caught.value.problems
    assert "'gpt_neox' is not known; known are llama, mistral, qwen2, qwen3" in first
    assert "model.embed_tokens are not known; known are q_proj, k_proj" in second
    assert "--export merged" in remedy
    assert caught.value.exit_code == 2


def test_the_verb_writes_one_new_file(organization: Kept, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason='pip install "gradtf-fl[gguf]"')
    out = tmp_path / "adapter.gguf"
    result = gradtf("org", "adapter", organization.folder, "--export", "gguf", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["verified"]
    assert told["export"] == {
        "form": "gguf", "out": str(out), "architecture": "qwen2", "layers": 8, "rank": 2, "alpha": 4.0,
    }  # fmt: skip
    fields = {name: field.contents() for name, field in gguf.GGUFReader(out).fields.items()}
    said = [fields[name] for name in ("general.type", "general.architecture", "adapter.type", "adapter.lora.alpha")]
    assert said == ["adapter", "qwen2", "lora", 4.0]
    before = out.read_bytes()
    again = gradtf("org", "adapter", organization.folder, "--export", "gguf", "--out", out)
    assert again.exit_code == 2
    assert "never overwritten" in again.stderr
    assert out.read_bytes() == before
    assert "--lora" in gradtf("org", "adapter", organization.folder, "--export", "gguf", "--out", tmp_path / "b").stdout


def test_a_changed_adapter_is_not_exported(organization: Kept, tmp_path: Path) -> None:
    path = organization.adapter(3) / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 4.0', '"lora_alpha": 400.0'))
    result = gradtf("org", "adapter", organization.folder, "--export", "gguf", "--out", tmp_path / "adapter.gguf")
    assert result.exit_code == 5
    assert not (tmp_path / "adapter.gguf").exists()


def test_without_the_package_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"pip install \"gradtf-fl\[gguf\]\""):
        export_gguf(tmp_path, "embedded:llm", tmp_path / "adapter.gguf", "name")


# Proven by llama.cpp


@needs_models
@pytest.mark.long
def test_llama_cpp_says_what_peft_says_with_babyllama(tmp_path: Path) -> None:
    needs_llama_cpp()
    made = tuned(str(MODELS / "babyllama-tok361-1.0M"), tmp_path, 0.03)
    export_gguf(made.adapter, made.base, tmp_path / "adapter.gguf", "test")
    write_base(made.plain(), AutoTokenizer.from_pretrained(made.base), tmp_path / "base.gguf")
    plain, wanted = torch_tokens(made.plain(), made.prompts), torch_tokens(made.peft(), made.prompts)
    assert llama_cpp_tokens(tmp_path / "base.gguf", None, made.prompts) == plain
    assert llama_cpp_tokens(tmp_path / "base.gguf", tmp_path / "adapter.gguf", made.prompts) == wanted
    assert all(with_it != without for with_it, without in zip(wanted, plain, strict=True))


@needs_models
@pytest.mark.long
def test_merged_babyllama_says_what_peft_says(tmp_path: Path) -> None:
    made = tuned(str(MODELS / "babyllama-tok361-1.0M"), tmp_path, 0.03)
    export_merged(made.adapter, made.base, tmp_path / "merged", "float32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert torch_tokens(merged, made.prompts) == torch_tokens(made.peft(), made.prompts)


@pytest.mark.long
@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_every_known_architecture_is_proven(model_type: str, tmp_path: Path) -> None:
    """Untrained models, whose logits are flat: what is compared is a chain of 32 tokens, for ten prompts."""
    needs_llama_cpp()
    from transformers import AutoConfig

    from experiments.embedded.pretrain_pair import build_tokenizer

    tokenizer = build_tokenizer()
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape: dict[str, Any] = {
        **sizes,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 64,
        "max_position_embeddings": 256,
    }
    if model_type == "mistral":
        shape["sliding_window"] = None
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    made = tuned(str(tmp_path / "base"), tmp_path, 0.1)
    prompts = [[3 + (5 * a + b) % 60 for b in range(6)] for a in range(10)]
    export_gguf(made.adapter, made.base, tmp_path / "adapter.gguf", "test")
    write_base(made.plain(), tokenizer, tmp_path / "base.gguf")
    wanted = torch_tokens(made.peft(), prompts)
    assert llama_cpp_tokens(tmp_path / "base.gguf", tmp_path / "adapter.gguf", prompts) == wanted
    assert wanted != torch_tokens(made.plain(), prompts)


@pytest.mark.slow
@pytest.mark.skipif(bool(why_absent()), reason=why_absent() or "it is here")
def test_llama_cpp_and_a_merged_model_say_what_peft_says_with_smollm2(tmp_path: Path) -> None:
    needs_llama_cpp()
    made = tuned(str(smollm2_folder(tmp_path / "base")), tmp_path, 0.02)
    export_gguf(made.adapter, made.base, tmp_path / "adapter.gguf", "test")
    dequantized(carried_file(), tmp_path / "base.gguf")
    wanted = torch_tokens(made.peft(), made.prompts)
    assert llama_cpp_tokens(tmp_path / "base.gguf", tmp_path / "adapter.gguf", made.prompts) == wanted
    quantized = llama_cpp_tokens(carried_file(), tmp_path / "adapter.gguf", made.prompts)
    same = [sum(a == b for a, b in zip(*pair, strict=True)) for pair in zip(quantized, wanted, strict=True)]
    print(f"4-bit base: {same} of 32 tokens are the same")
    export_merged(made.adapter, made.base, tmp_path / "merged", "float32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert torch_tokens(merged, made.prompts) == wanted
