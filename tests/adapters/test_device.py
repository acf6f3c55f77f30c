"""Where base models are held and how exactly: names that are refused, and what reaches a loaded model."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from gradtf_fl.adapters import AdaptedModel, AdapterSpec, Place, adapter_state, kept_model, load_model, state_hash
from gradtf_fl.adapters import device as device_module
from gradtf_fl.adapters.models import EMBEDDED
from gradtf_fl.config import ComputeSection, validate
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import TokenRows, exact_match
from gradtf_fl.training import StackedAdapters, check_trainable
from gradtf_fl.training.dp_sgd import RowLosses, private_optimizer
from gradtf_fl.training.preflight import adapter_parameters
from gradtf_fl.training.randomness import Draws

SPEC = AdapterSpec(rank=2)
BF16 = Place(torch.device("cpu"), "bf16")
needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="the extra quantized is not installed"
)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained model, wide enough for blocks of bitsandbytes, with the embedded tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**shape, intermediate_size=128, vocab_size=28, max_position_embeddings=32)
    LlamaForCausalLM(config).save_pretrained(path)
    AutoTokenizer.from_pretrained(EMBEDDED["embedded:tiny"]).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def rows() -> TokenRows:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 28, (6, 12), generator=generator)
    labels = ids.clone()
    labels[:, :8] = -100
    return TokenRows(ids, torch.ones_like(ids), labels)


@pytest.mark.parametrize(
    ("values", "problems"),
    [
        ({"device": "gpu"}, 1),
        ({"device": "cuda:"}, 1),
        ({"device": "cuda:-1"}, 1),
        ({"device": "cpu:0"}, 1),
        ({"precision": "fp16"}, 1),
        ({"quantization": 8}, 1),
        ({"physical_rows": 0}, 2),  # neither "auto" nor a number
        ({"physical_rows": "many"}, 2),
        ({"gradient_checkpointing": "yes"}, 1),
        ({"device": "tpu", "precision": "int8", "sampler": "none"}, 3),
    ],
)
def test_the_table_refuses(values: dict[str, Any], problems: int) -> None:
    with pytest.raises(ConfigError) as refused:
        validate(ComputeSection, values, lambda key: f"organization.toml: compute.{key}")
    assert len(refused.value.problems) == problems
    assert all(problem.startswith("organization.toml: compute.") for problem in refused.value.problems)


def machine(monkeypatch: pytest.MonkeyPatch, cuda: int = 0, bf16: bool = True, bitsandbytes: bool = False) -> None:
    """A machine with so many CUDA devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated: bf16)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(device_module, "find_spec", lambda name: object() if bitsandbytes else None)


def test_what_this_machine_cannot_do_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    with pytest.raises(ConfigError) as refused:
        Place.of(ComputeSection(device="cuda:1", quantization="4bit"))
    assert refused.value.problems == (
        "[compute] device 'cuda:1': this machine has no CUDA device that torch can use",
        "[compute] quantization '4bit': bitsandbytes is not installed; pip install \"gradtf-fl[quantized]\"",
    )
    with pytest.raises(ConfigError, match="no Apple GPU"):
        Place.find("mps")
    machine(monkeypatch, cuda=2, bf16=False)
    with pytest.raises(ConfigError, match="2 CUDA devices, from cuda:0"):
        Place.find("cuda:2")
    with pytest.raises(ConfigError, match="does not compute in bf16"):
        Place.find("cuda", "bf16")


def test_auto_is_the_best_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    assert Place.of(ComputeSection(device="auto")) == Place(torch.device("cpu"), "float32")
    assert Place.of(ComputeSection()) == Place.find()
    machine(monkeypatch, cuda=2, bitsandbytes=True)
    assert Place.find("auto", "auto", "8bit") == Place(torch.device("cuda", 0), "bf16", "8bit")
    assert str(Place.find("cuda:1", "float32", "4bit")) == "cuda:1, float32, 4bit"
    assert Place.find("cuda:1", number=0).device == torch.device("cuda", 1)
    machine(monkeypatch, cuda=1, bf16=False)
    assert Place.find("auto", "auto").precision == "float32"


def test_base_weights_are_bf16_and_all_else_float32(folder: str, rows: TokenRows) -> None:
    adapted = AdaptedModel.load(folder, SPEC, BF16)
    model = adapted.attach()
    types = {("adapter" if "lora_" in name else "base"): p.dtype for name, p in model.named_parameters()}
    assert types == {"base": torch.bfloat16, "adapter": torch.float32}
    assert {b.dtype for b in model.buffers()} == {torch.float32}  # rotary frequencies in bf16 turn by whole radians
    assert {t.dtype for t in adapter_state(model).values()} == {torch.float32}
    check_trainable(model)
    assert StackedAdapters.load(folder, SPEC, BF16).initial.dtype == torch.float32
    with torch.no_grad():
        exact, rough = (load_model(folder, place)[0](input_ids=rows.input_ids).logits.float() for place in (None, BF16))
    assert 1e-4 < float((rough - exact).norm() / exact.norm()) < 0.03
    assert 0 <= exact_match(model, rows) <= 1


@pytest.mark.parametrize("kind", ["lora", "lora-xs", "full"])
def test_everybody_starts_from_the_same_bytes(folder: str, kind: str) -> None:
    """LoRA-XS starts from the weights' own decomposition, which rounded weights would move."""
    spec = AdapterSpec(rank=2, kind=kind)
    spaces = [AdaptedModel.load(folder, spec, place).space for place in (None, BF16)]
    assert spaces[0] == spaces[1]
    assert spaces[0].initial_sha256


def test_a_kept_model_is_that_of_its_place(folder: str) -> None:
    types = [kept_model(folder, place)[0].get_input_embeddings().weight.dtype for place in (BF16, None, BF16)]
    assert types == [torch.bfloat16, torch.float32, torch.bfloat16]


@pytest.fixture(params=["8bit", "4bit"])
def quantized(request: pytest.FixtureRequest) -> Place:
    return Place.find("cpu", "float32", request.param)


def row_gradients(model: Any, rows: TokenRows, index: list[int]) -> torch.Tensor:
    with private_optimizer(model, adapter_parameters(model), 0.0, 1.0, 6.0, 1e-2, Draws.make(0)) as optimizer:
        optimizer.sampler.backward(RowLosses(model, rows)(torch.tensor(index)))
        return optimizer.row_gradients()


def moved(model: Any) -> Any:
    """``model`` with every B off zero."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.add_(0.1 * torch.randn(p.shape, generator=generator).to(p.device))
    return model


@needs_bitsandbytes
def test_quantized_base_weights_are_trained_through(folder: str, rows: TokenRows, quantized: Place) -> None:
    """Row gradients near those of exact weights; a row's do not depend on its neighbours; everybody's start."""
    exact = AdaptedModel.load(folder, SPEC)
    adapted = AdaptedModel.load(folder, SPEC, quantized, kept=True)
    assert adapted.space == exact.space
    assert state_hash(adapted.initial) == state_hash(exact.initial)
    rough = moved(adapted.attach())
    check_trainable(rough)
    expected, found = (
        row_gradients(moved(exact.attach()), rows, list(range(6))),
        row_gradients(rough, rows, list(range(6))),
    )
    limit = {"8bit": 0.1, "4bit": 0.7}[quantized.quantization]
    assert float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max()) < limit
    alone = torch.cat([row_gradients(rough, rows, [i]) for i in range(6)])
    torch.testing.assert_close(alone, found, atol=1e-4 * float(found.abs().max()), rtol=0)


@needs_bitsandbytes
def test_8bit_weights_that_look_at_the_whole_batch_are_refused(folder: str) -> None:
    model = AdaptedModel.load(folder, SPEC, Place.find("cpu", "float32", "8bit")).attach()
    check_trainable(model)
    next(module for module in model.modules() if hasattr(module, "state")).state.threshold = 6.0
    with pytest.raises(ConfigError, match="outliers of the whole batch"):
        check_trainable(model)


@needs_cuda
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_cuda_device_takes_the_same_private_step(
    folder: str, rows: TokenRows, precision: str, checkpointing: bool
) -> None:
    """The noise of a step is drawn from the same words, so two devices differ by their rounding alone."""
    from gradtf_fl.training import train_dp

    plan: dict[str, Any] = {"sigma": 1.0, "clip": 0.5, "batch": 4, "steps": 3, "rate": 1e-2, "seed": 7}
    ends = []
    for place in (None, Place.find("cuda", precision)):
        model = AdaptedModel.load(folder, SPEC, place, kept=True).attach()
        assert next(model.parameters()).device.type == ("cpu" if place is None else "cuda")
        outcome = train_dp(model, rows, **plan, gradient_checkpointing=checkpointing)
        ends.append((outcome.event, adapter_state(model)))
        assert 0 <= exact_match(model, rows) <= 1
    assert ends[0][0] == ends[1][0]
    for name, tensor in ends[0][1].items():
        torch.testing.assert_close(ends[1][1][name], tensor, atol=3e-2 if precision == "bf16" else 1e-4, rtol=0)


@needs_cuda
def test_a_row_counts_at_most_the_clip_where_cuda_may_use_tf32(folder: str, rows: TokenRows) -> None:
    from gradtf_fl.training.clipping import unit_sum

    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        gradients = torch.randn(4, 1000, device="cuda")
        for row in gradients:
            assert float(unit_sum([row[None]], 0.5).norm()) <= 1
    finally:
        torch.set_float32_matmul_precision(before)


@needs_cuda
def test_a_cuda_device_that_runs_out_of_memory_halves_the_batch(folder: str) -> None:
    from gradtf_fl.training import train_dp

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 28, (512, 32), generator=generator)
    many = TokenRows(ids, torch.ones_like(ids), ids.clone())
    model = AdaptedModel.load(folder, SPEC, Place.find("cuda")).attach()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 64 * 2**20) / total)
        outcome = train_dp(model, many, sigma=1.0, clip=0.5, batch=512, steps=2, rate=1e-2, seed=1, physical_batch=512)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert outcome.event.steps == 2
