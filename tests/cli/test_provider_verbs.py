"""generate, evaluate, curate and train from the command line: what they make, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gradtf_fl.adapters import AdapterSpec, initial_state, load_adapter, save_adapter
from gradtf_fl.adapters.models import load_model
from gradtf_fl.tasks import Row, write_rows
from gradtf_fl.training import StackedAdapters
from tests.cli.conftest import Files, gradtf


@pytest.fixture
def tiny_adapter(files: Files, tmp_path: Path) -> Path:
    """A TinyLM adapter that moved a little."""
    state = initial_state(load_model(files.tiny)[0], AdapterSpec())
    torch.manual_seed(1)
    moved = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in state.items()}
    save_adapter(tmp_path / "tiny_adapter", moved, AdapterSpec(), files.tiny)
    return tmp_path / "tiny_adapter"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [Row("[_][_][_]37?58=", "13"), Row("[_][_][_]11?22=", "33"), Row("[_][_][_]40?01=", "41")])
    return path


def test_generate_writes_a_peft_folder_that_plain_peft_loads(files: Files, tiny_adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "llm_adapter"
    result = gradtf("generate", "--update", tiny_adapter, "--transformer", files.transformer, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["base_model"] == files.llm
    from peft import PeftModel

    base = load_model(files.llm)[0]
    prompt = torch.tensor([[3, 4, 5]])
    before = base(prompt).logits.detach()
    loaded = PeftModel.from_pretrained(base, out)
    assert not torch.allclose(before, loaded(prompt).logits)
    other = tmp_path / "other"
    unmoved = initial_state(load_model(files.tiny)[0], AdapterSpec())
    save_adapter(tmp_path / "unmoved", unmoved, AdapterSpec(), files.tiny)
    arguments = ("--update", tmp_path / "unmoved", "--transformer", files.transformer, "--out", other)
    assert gradtf("generate", *arguments).exit_code == 0
    assert any(not torch.equal(load_adapter(out)[0][n], t) for n, t in load_adapter(other)[0].items())


def test_generate_names_every_missing_path_at_once(tmp_path: Path) -> None:
    arguments = ("--update", tmp_path, "--transformer", tmp_path / "none", "--out", tmp_path)
    (tmp_path / "something").write_text("")
    result = gradtf("generate", *arguments)
    assert result.exit_code == 2
    assert [line.split()[1] for line in result.stderr.splitlines()] == ["--update", "--transformer", "--out"]


@pytest.mark.parametrize("what", ["base", "rank", "kind", "unnamed"])
def test_generate_refuses_an_adapter_of_another_kind(what: str, files: Files, tmp_path: Path) -> None:
    specs = {"rank": AdapterSpec(rank=4, alpha=8.0), "kind": AdapterSpec(kind="lora-xs")}
    spec = specs.get(what, AdapterSpec())
    base = {"base": files.llm, "unnamed": ""}.get(what, files.tiny)
    state = initial_state(load_model(base or files.tiny)[0], spec)
    save_adapter(tmp_path / "adapter", state, spec, base)
    result = gradtf(
        "generate", "--update", tmp_path / "adapter", "--transformer", files.transformer, "--out", tmp_path / "out"
    )
    assert result.exit_code == 2
    expected = {"base": "another base model", "rank": "rank is 4", "unnamed": "does not say which base model"}
    expected |= {"kind": "kind is lora-xs"}
    assert expected[what] in result.stderr
    assert not (tmp_path / "out").exists()


def test_generate_refuses_a_transformer_of_another_pair(files: Files, tiny_adapter: Path, tmp_path: Path) -> None:
    config = Path(files.tiny) / "config.json"
    text = config.read_text()

    try:
        config.write_text(text + "\n")
        arguments = ("--update", tiny_adapter, "--transformer", files.transformer, "--out", tmp_path / "out")
        result = gradtf("generate", *arguments)
    finally:
        config.write_text(text)
    assert result.exit_code == 2
    assert "trained for another" in result.stderr


def test_evaluate_scores_and_computes_pgr(files: Files, tiny_adapter: Path, rows: Path) -> None:
    bounds = ("--floor", "0.5", "--ceiling", "0.75")
    result = gradtf("evaluate", "--model", files.tiny, "--adapter", tiny_adapter, "--task", rows, *bounds, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["rows"] == 3
    assert document["pgr"] == pytest.approx((document["exact_match"] - 0.5) / 0.25)
    limited = gradtf("evaluate", "--model", files.tiny, "--task", "house-rules:afk", "--limit", 5)
    assert limited.stdout.endswith("on 5 rows\n")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model", "/nowhere", "--task", "house-rules:afk"], "/nowhere"),
        (["--model", "embedded:huge", "--task", "house-rules:afk"], "embedded:huge"),
        (["--model", "embedded:tiny", "--task", "house-rules:zzz"], "zzz"),
        (["--model", "embedded:tiny", "--task", "none.jsonl"], "none.jsonl"),
        (["--model", "embedded:tiny", "--task", "house-rules:afk", "--floor", "0.5"], "--ceiling"),
    ],
)
def test_evaluate_refuses(arguments: list[str], named: str) -> None:
    result = gradtf("evaluate", *arguments)
    assert result.exit_code == 2
    assert named in result.stderr


def test_evaluate_refuses_an_adapter_of_another_model(files: Files, tiny_adapter: Path, rows: Path) -> None:
    result = gradtf("evaluate", "--model", files.llm, "--adapter", tiny_adapter, "--task", rows)
    assert result.exit_code == 2
    assert "another base model" in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("verb", ["evaluate", "generate", "train", "curate"])
def test_a_device_that_is_not_there_is_refused(verb: str, files: Files, tiny_adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "tuples").mkdir()
    arguments = {
        "evaluate": ["--model", files.tiny, "--task", "none.jsonl"],
        "generate": ["--update", tiny_adapter, "--transformer", files.transformer, "--out", out],
        "train": ["--tuples", tmp_path / "tuples", "--out", out],
        "curate": ["--out", out],
    }[verb]
    result = gradtf(verb, *arguments, "--device", "cuda:1")
    assert result.exit_code == 2
    assert "--device 'cuda:1': this machine has no CUDA device" in result.stderr
    assert ("none.jsonl" in result.stderr) == (verb == "evaluate")  # all problems at once
    assert not out.exists()


def test_evaluate_and_generate_with_bf16_weights(
    files: Files, tiny_adapter: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refinement on public prompts holds both models so; the adapter that is written stays float32."""
    held: list[torch.dtype] = []
    answer_logits = StackedAdapters.answer_logits

    def noted(self: StackedAdapters, *arguments: Any) -> torch.Tensor:
        held.append(self.model.get_input_embeddings().weight.dtype)
        return answer_logits(self, *arguments)

    monkeypatch.setattr(StackedAdapters, "answer_logits", noted)
    scored = gradtf("evaluate", "--model", files.tiny, "--adapter", tiny_adapter, "--task", rows, "--precision", "bf16")
    assert scored.exit_code == 0, scored.stderr
    prompts = tmp_path / "prompts.jsonl"
    write_rows(prompts, [Row(f"[_][_][_]{i}?58=", "13") for i in range(10, 50)])
    arguments = ("--update", tiny_adapter, "--transformer", files.transformer, "--prompts", prompts)
    made = gradtf("generate", *arguments, "--answer-tokens", 2, "--precision", "bf16", "--out", tmp_path / "out")
    assert made.exit_code == 0, made.stderr
    assert set(held) == {torch.bfloat16}
    state, _, _ = load_adapter(tmp_path / "out")
    assert all(tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in state.values())


def test_train_refuses_a_missing_and_a_damaged_store(tmp_path: Path) -> None:
    store = tmp_path / "tuples"
    out = tmp_path / "gt.safetensors"
    assert gradtf("train", "--tuples", store, "--out", out).exit_code == 2
    store.mkdir()
    (store / "index.json").write_text("{")
    damaged = gradtf("train", "--tuples", store, "--out", out)
    assert damaged.exit_code == 2
    assert "damaged" in damaged.stderr
    assert not out.exists()


@pytest.mark.slow
def test_curate_then_train_then_a_damaged_shard(files: Files, tmp_path: Path) -> None:
    store, out = tmp_path / "tuples", tmp_path / "gt.safetensors"
    sizes = ("--rules", 3, "--rows", 64, "--single-groups", 1, "--extra-singles", 1, "--plain-singles", 2)
    none = ("--mixture-groups", 0, "--plain-mixtures", 0, "--pair-mixtures", 0, "--pair-singles", 2, "--workers", 1)
    curated = gradtf("curate", "--out", store, "--tiny", files.tiny, "--llm", files.llm, *sizes, *none, "--json")
    assert curated.exit_code == 0, curated.stderr
    assert json.loads(curated.stdout)["shards"] >= 2
    controls = tmp_path / "controls.safetensors"
    arguments = ("--tuples", store, "--out", out, "--steps", 2, "--groups", 2, "--rows", 2)
    trained = gradtf("train", *arguments, "--controls", controls, "--json")
    assert trained.exit_code == 0, trained.stderr
    assert len(json.loads(trained.stdout)["sha256"]) == 64
    assert controls.is_file()
    shard = next(store.glob("plain-*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    damaged = gradtf("train", *arguments)
    assert damaged.exit_code == 2
    assert shard.name in damaged.stderr
