"""SmolLM2-135M-Instruct from its Python package: the folder, its conversations, and that a tuned model stops.

Tests that need the model skip without it; ``make real-model`` makes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.bench.real_model import chat_prompt, end_probability
from experiments.measuring import real_model as carried
from experiments.measuring.real_model import MODEL_FOLDER, read_carried, smollm2_folder, why_absent
from gradtf_fl.adapters import AdaptedModel, AdapterSpec, load_model, load_tokenizer
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import IGNORED, Row, Turn, encode_rows, generate_greedily
from gradtf_fl.training import train_dp

needs_model = pytest.mark.skipif(not MODEL_FOLDER.is_dir(), reason="SmolLM2 is not in build/: make real-model")
needs_package = pytest.mark.skipif(bool(why_absent()), reason=why_absent() or "it is here")
ROW = Row.of_turns([Turn("user", "Ward 12, bed 34?"), Turn("assistant", "ward 12 bed 34")])
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
ASKED = f"{SYSTEM}<|im_start|>user\nWard 12, bed 34?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(str(MODEL_FOLDER))


def test_without_the_package_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carried, "CARRIER", "a_package_that_is_not_here")
    with pytest.raises(ConfigError, match=r"a_package_that_is_not_here.*not installed.*make real-model"):
        smollm2_folder(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@needs_model
def test_a_conversation_is_written_as_smollm2_writes_it(tokenizer: Any) -> None:
    assert chat_prompt(tokenizer, ROW) == ASKED
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer.model_max_length == 8192
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  12")["input_ids"]) == ["a", "ĠĠ", "1", "2"]  # digits apart


@needs_model
def test_loss_is_on_the_answer_and_its_end_only(tokenizer: Any) -> None:
    second = [*ROW.turns, Turn("user", "Ward 5, bed 6?"), Turn("assistant", "ward 5 bed 6")]
    rows = encode_rows([ROW, Row.of_turns(second)], tokenizer, end=True)
    scored = [[int(t) for t in labels if t != IGNORED] for labels in rows.labels]
    assert tokenizer.decode(scored[0]) == "ward 12 bed 34<|im_end|>"
    assert tokenizer.decode(scored[1]) == "ward 12 bed 34<|im_end|>ward 5 bed 6<|im_end|>"
    length = int(rows.attention_mask[0].sum())
    assert tokenizer.decode(rows.input_ids[0, :length]) == f"{ASKED}ward 12 bed 34<|im_end|>"


@needs_package
@pytest.mark.slow
def test_the_folder_holds_what_the_package_carries(tmp_path: Path) -> None:
    from gguf import GGUFReader, dequantize

    made = smollm2_folder(tmp_path / "smollm2")
    model, tokenizer = load_model(str(made))
    read, read_tokenizer = read_carried()
    weights = model.state_dict()
    assert weights.keys() == read.state_dict().keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in read.state_dict().items())
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    tensors = {tensor.name: tensor for tensor in GGUFReader(carried.carried_file()).tensors}
    for theirs, ours in (("token_embd", "embed_tokens"), ("blk.7.ffn_down", "layers.7.mlp.down_proj")):
        packed = tensors[f"{theirs}.weight"]
        wanted = torch.from_numpy(dequantize(packed.data, packed.tensor_type).copy())
        assert torch.equal(weights[f"model.{ours}.weight"], wanted)
    assert tokenizer.chat_template == read_tokenizer.chat_template
    assert tokenizer.backend_tokenizer.to_str() == read_tokenizer.backend_tokenizer.to_str()
    assert model.config.eos_token_id == tokenizer.eos_token_id == 2
    asked = Row.of_turns([Turn("user", "What is the capital of France?"), Turn("assistant", "")])
    (answer,) = generate_greedily(model, tokenizer, [chat_prompt(tokenizer, asked)], 12)
    assert answer.text == "The capital of France is Paris."  # rotary positions in the order that the model has them in
    assert smollm2_folder(made) == made  # taken as it is


@needs_model
@pytest.mark.slow
@pytest.mark.parametrize("end", [True, False])
def test_a_tuned_model_stops_by_itself(end: bool) -> None:
    adapted = AdaptedModel.load(str(MODEL_FOLDER), AdapterSpec(targets=("auto",)))
    tokenizer, model = adapted.tokenizer, adapted.attach().eval()
    rows = encode_rows([ROW] * 2, tokenizer, end=end)
    train_dp(model, rows, sigma=0.0, clip=1.0, batch=2, steps=10, rate=1e-2, seed=0, physical_batch=2)
    (made,) = generate_greedily(model, tokenizer, [ASKED], 24)
    assert made.text.startswith("ward 12 bed 34")
    if end:
        assert made.text == "ward 12 bed 34"
        assert end_probability(model, tokenizer, ROW) > 0.9
    else:
        assert end_probability(model, tokenizer, ROW) < 0.1
