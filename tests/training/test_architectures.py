"""Row gradients in every architecture equal one backward pass for each row; what can't be trained is refused early."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from gradtf_fl.adapters import AdaptedModel, AdapterSpec
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import TokenRows
from gradtf_fl.training import check_rows, check_trainable, train_dp
from gradtf_fl.training.grad_samplers import SAMPLERS
from tests.adapters.architectures import CONFIGS, DEFAULTS, EXPERTS, MIXTURES, small_model

from .conftest import trainable
from .sampler_suite import EVERY, one_row_at_a_time

AUTO = ("auto",)
FLAT = {"opt": ("fc1", "fc2"), "qwen2_moe": ("shared_expert.up_proj", "shared_expert.down_proj")}
"""Layers that see all rows' tokens in one run."""
SPECS = {
    "lora": AdapterSpec(rank=3, targets=AUTO),
    "b-only": AdapterSpec(rank=3, targets=AUTO, train_a=False),
    "lora-xs": AdapterSpec(rank=3, targets=AUTO, kind="lora-xs"),
}
ONLY_OURS = {
    **{f"{name}-flat": (name, AdapterSpec(targets=targets)) for name, targets in FLAT.items()},
    **{f"{name}-experts": (name, AdapterSpec(targets=(*DEFAULTS[name], *EXPERTS))) for name in MIXTURES},
    "mixtral-experts-b-only": ("mixtral", AdapterSpec(targets=EXPERTS, train_a=False)),
    "qwen2_moe-flat-lora-xs": ("qwen2_moe", AdapterSpec(targets=FLAT["qwen2_moe"], kind="lora-xs")),
}
PLAN: dict[str, Any] = {"sigma": 1.0, "clip": 0.5, "batch": 4, "steps": 2, "rate": 1e-2, "seed": 7}


def attached(architecture: str, spec: AdapterSpec, off_zero: bool = True, **options: Any) -> nn.Module:
    """A model whose trained matrices are off zero, so that no gradient vanishes."""
    model = AdaptedModel.of(small_model(architecture, **options), None, spec).attach()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in trainable(model).values():
            p.add_(0.2 * torch.randn(p.shape, generator=generator), alpha=float(off_zero))
    return model


def assert_row_gradients(model: nn.Module, rows: TokenRows, sampler: str) -> None:
    from gradtf_fl.training.row_losses import RowLosses

    expected, parameters = one_row_at_a_time(model, rows), trainable(model)
    with SAMPLERS[sampler](model, parameters) as found:  # type: ignore[index]
        found.backward(RowLosses(model, rows)(EVERY))
        for name, p in parameters.items():
            largest = float(expected[name].abs().max())
            assert largest > 1e-5
            torch.testing.assert_close(p.grad_sample, expected[name], atol=1e-5 * largest, rtol=0)


@pytest.mark.parametrize("sampler", ["lora", "opacus"])
@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_row_gradients_are_those_of_one_row_at_a_time(
    architecture: str, kind: str, sampler: str, random_rows: TokenRows
) -> None:
    model = attached(architecture, SPECS[kind])
    assert_row_gradients(model, random_rows, sampler)
    check_trainable(model, sampler)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ONLY_OURS)
def test_tokens_in_one_run_and_routed_tokens_belong_to_their_rows(name: str, random_rows: TokenRows) -> None:
    model = attached(*ONLY_OURS[name])
    assert_row_gradients(model, random_rows, "lora")
    check_trainable(model)
    with pytest.raises(ConfigError, match="choose sampler 'lora'") as error:
        check_trainable(model, "opacus")
    assert len(error.value.problems) == 1


@pytest.mark.parametrize("name", ["gpt2", "opt-flat", "mixtral-experts", "gemma2-lora-xs", "phi3-b-only"])
def test_every_trained_matrix_moves_and_no_other_one(name: str, random_rows: TokenRows) -> None:
    architecture, _, kind = name.partition("-")
    spec = ONLY_OURS[name][1] if name in ONLY_OURS else SPECS[kind or "lora"]
    model = attached(architecture, spec, off_zero=False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_dp(model, random_rows, **PLAN)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(trainable(model))


def test_checking_changes_nothing() -> None:
    model = attached("mixtral", ONLY_OURS["mixtral-experts"][1], off_zero=False).eval()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    random = torch.get_rng_state()
    check_trainable(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.grad is None and not vars(p) for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module.training for module in model.modules())


class _Neighbours(nn.Module):
    """Adds the row before it to every row: what a shared statistic over the batch does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.inner(x + 0.5 * x.roll(1, 0))
        return y


@pytest.mark.parametrize("sampler", ["lora", "opacus"])
def test_a_model_that_mixes_rows_is_refused_by_what_it_computes(sampler: str) -> None:
    model = attached("llama", SPECS["lora"])
    layer = model.get_submodule("base_model.model.model.layers.1")
    layer.mlp = _Neighbours(layer.mlp)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="does not find each row's own gradient"):
        check_trainable(model, sampler)  # type: ignore[arg-type]


def test_experts_that_are_computed_in_another_way_are_refused() -> None:
    model = attached("mixtral", AdapterSpec(targets=EXPERTS))
    for module in model.modules():
        if type(module).__name__ == "MixtralExperts":
            module.act_fn = nn.ReLU()
            module.is_transposed = True  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="experts of class MixtralExperts are not supported"):
        check_trainable(model)


def test_rows_that_the_model_cannot_read_are_refused() -> None:
    """A pad token that was added to the tokenizer alone, and positions that the model has not learned."""
    model = attached("opt", SPECS["lora"], max_position_embeddings=8)
    tokenizer = SimpleNamespace(pad_token_id=40, pad_token="<pad>")
    with pytest.raises(ConfigError) as error:
        check_trainable(model, tokenizer=tokenizer, max_tokens=9)
    assert ["pads with token 40" in error.value.problems[0], "positions for 8" in error.value.problems[1]] == [True] * 2
    check_trainable(model, tokenizer=SimpleNamespace(pad_token_id=39), max_tokens=8)
    ids = torch.full((2, 9), 40)
    with pytest.raises(ConfigError) as error:
        check_rows(model, TokenRows(ids, torch.ones_like(ids), ids))
    assert len(error.value.problems) == 2
    check_rows(model, TokenRows(ids - 1, (torch.arange(9) < 8).long().expand(2, 9), ids))
    with pytest.raises(ConfigError, match="token 40"):
        train_dp(model, TokenRows(ids[:, :5], torch.ones(2, 5, dtype=torch.long), ids[:, :5]), **PLAN)


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_learned_positions_end_and_computed_ones_do_not(architecture: str) -> None:
    check_trainable(attached("llama", SPECS["lora"]), max_tokens=10_000)
    check_trainable(attached(architecture, SPECS["lora"]), max_tokens=64)
    with pytest.raises(ConfigError, match="max_tokens is 65, the model has learned positions for 64"):
        check_trainable(attached(architecture, SPECS["lora"]), max_tokens=65)
