"""Row gradients against Opacus' hooks, a case by hand, and the models for which they would be wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from opacus.grad_sample.utils import prepare_module
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import TokenRows
from gradtf_fl.training.dp_sgd import RowLosses, noisy_step, private_optimizer, train_dp
from gradtf_fl.training.grad_samplers import LoraGradSampler
from gradtf_fl.training.randomness import Draws
from gradtf_fl.training.row_gradients import trained_layers

from .conftest import ALL_LINEAR, QV, base_model, lora_model, trainable

EVERY = torch.arange(12)


def ours(model: nn.Module, rows: TokenRows, drawn: torch.Tensor = EVERY, **options: Any) -> torch.Tensor:
    """Row gradients [rows, size] as the trainer computes them."""
    with private_optimizer(model, trainable(model), 0.0, 1.0, 8, 1e-2, Draws.make(0), **options) as optimizer:
        optimizer.sampler.backward(RowLosses(model, rows)(drawn))
        return optimizer.row_gradients()


def matrix(sampler: LoraGradSampler, losses: torch.Tensor) -> torch.Tensor:
    """Row gradients [rows, size] of the losses [rows]."""
    sampler.backward(losses)
    return torch.cat([p.grad_sample.flatten(1) for p in sampler.parameters.values()], dim=1)


def opacus(model: nn.Module, rows: TokenRows) -> torch.Tensor:
    """The same by Opacus' hooks on PEFT's own forward pass."""
    model.train()
    hooks = prepare_module(model, "hooks", wrap_model=False, batch_first=True, loss_reduction="sum", strict=True)
    RowLosses(model, rows)(EVERY).sum().backward()
    found = torch.cat([p.grad_sample.flatten(1) for p in trainable(model).values()], dim=1)
    hooks.cleanup()
    return found


def assert_same(found: torch.Tensor, expected: torch.Tensor, rounding: float = 2e-6) -> None:
    """Equal up to ``rounding`` of the largest row norm, and no row or column without a gradient."""
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < rounding * expected.norm(dim=1).max()
    assert expected.abs().amax(dim=1).min() > 1e-4
    assert expected.abs().amax(dim=0).min() > 0


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("targets", [QV, ALL_LINEAR], ids=["qv", "all"])
@pytest.mark.parametrize("train_a", [True, False])
def test_equal_to_opacus(random_rows: TokenRows, family: str, targets: tuple[str, ...], train_a: bool) -> None:
    model = lora_model(base_model(family), targets, train_a)
    assert_same(ours(model, random_rows), opacus(model, random_rows))


def test_equal_to_opacus_at_another_scale_of_lora(random_rows: TokenRows) -> None:
    model = lora_model(use_rslora=True)
    assert_same(ours(model, random_rows), opacus(model, random_rows))


def test_equal_to_opacus_over_a_bfloat16_base(random_rows: TokenRows) -> None:
    model = lora_model(base_model().bfloat16(), ALL_LINEAR)
    for p in trainable(model).values():
        p.data = p.data.float()
    assert_same(ours(model, random_rows), opacus(model, random_rows), rounding=2e-2)  # the base rounds to 2^-8


def test_the_forward_pass_is_pefts(random_rows: TokenRows) -> None:
    model = lora_model(targets=ALL_LINEAR)
    with torch.no_grad():
        peft = model(input_ids=random_rows.input_ids).logits
        with LoraGradSampler(model, trainable(model)):
            lean = model(input_ids=random_rows.input_ids).logits
        again = model(input_ids=random_rows.input_ids).logits
    torch.testing.assert_close(lean, peft, atol=1e-5, rtol=0)
    assert torch.equal(peft, again)


def toy(**options: Any) -> tuple[nn.Module, LoraLinear]:
    """y = (W + 2 B A) x with W = 0, A = [1 2], B = [3 -1]^T."""
    config = LoraConfig(r=1, lora_alpha=2, **options)
    layer = LoraLinear(nn.Linear(2, 2, bias=False), "default", config=config, r=1, lora_alpha=2)
    layer.base_layer.weight.requires_grad_(False).zero_()
    layer.lora_A["default"].weight.data = torch.tensor([[1.0, 2.0]])
    layer.lora_B["default"].weight.data = torch.tensor([[3.0], [-1.0]])
    return nn.Sequential(layer), layer


def test_by_hand() -> None:
    """Two rows of one token; loss = y_1 - y_2 in row 1 and y_2 in row 2, so g = (1, -1) and (0, 1)."""
    model, _ = toy()
    x = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])
    with LoraGradSampler(model, trainable(model)) as sampler:
        y = model(x)
        assert y.tolist() == [[[6, -2]], [[18, -6]]]
        found = matrix(sampler, torch.stack([y[0, 0, 0] - y[0, 0, 1], y[1, 0, 1]]))
    # dA = 2 (g B) x: g B = 4 and -1; dB = 2 g (A x): A x = 1 and 3
    assert found.tolist() == [[8, 0, 2, -2], [-2, -2, 0, 6]]


def test_a_layer_that_is_used_twice_has_both_parts() -> None:
    model, layer = toy()
    x = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])
    with LoraGradSampler(model, trainable(model)) as sampler:
        found = matrix(sampler, (layer(x) + layer(3 * x)).sum((1, 2)))
        once = matrix(sampler, layer(x).sum((1, 2)))
    assert torch.equal(found, 4 * once)


@pytest.mark.parametrize("whose", ["ours", "reentrant", "non-reentrant"])
def test_checkpointing_changes_nothing(random_rows: TokenRows, whose: str) -> None:
    """A model's own switch acts in train mode only, in which no model is trained here."""
    plain = ours(lora_model(), random_rows)
    model = lora_model()
    if whose != "ours":
        model.activation_checkpointing_enable({"use_reentrant": whose == "reentrant"})
    forward = model.get_base_model().model.layers[1].mlp.forward
    calls = []
    model.get_base_model().model.layers[1].mlp.forward = lambda x: (calls.append(1), forward(x))[1]
    assert torch.equal(ours(model, random_rows, gradient_checkpointing=whose == "ours"), plain)
    assert len(calls) == (2 if whose == "ours" else 1)  # once more in the backward pass: checkpointing was on


def test_a_layer_that_no_gradient_reaches_is_refused(random_rows: TokenRows) -> None:
    """Before any private row is read: the model has seen made-up tokens only."""
    model = lora_model()
    model.get_base_model().config.num_hidden_layers = 1
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda _, args, __: seen.append(args[0]))
    with pytest.raises(ConfigError, match=r"no gradient reaches 4 matrices, e\.g\. .*layers\.1"):
        train_dp(model, random_rows, sigma=1.0, clip=1.0, batch=4, steps=1, rate=1e-2)
    assert [tuple(ids.shape) for ids in seen] == [(3, 5)]


class _Flattening(nn.Module):
    """An MLP that sees all tokens in one run: row after row, token after token, or as one long row."""

    def __init__(self, inner: nn.Module, order: str) -> None:
        super().__init__()
        self.inner, self.order = inner, order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.order == "by token":
            turned = x.transpose(0, 1)
            return self.inner(turned.reshape(-1, x.shape[-1])).reshape(turned.shape).transpose(0, 1)
        shape = (-1, x.shape[-1]) if self.order == "by row" else (1, -1, x.shape[-1])
        return self.inner(x.reshape(shape)).reshape(x.shape)


def flattening_model(order: str) -> nn.Module:
    model = lora_model(targets=("up_proj",))
    for layer in model.get_base_model().model.layers:
        layer.mlp = _Flattening(layer.mlp, order)
    return model


def test_tokens_that_come_row_after_row_are_put_apart(random_rows: TokenRows) -> None:
    assert_same(ours(flattening_model("by row"), random_rows), ours(lora_model(targets=("up_proj",)), random_rows))


@pytest.mark.parametrize(
    ("order", "message"),
    [("by token", "does not find each row's own gradient"), ("one row", "one sequence for each of the 3")],
)
def test_layers_that_do_not_keep_rows_apart_are_refused(random_rows: TokenRows, order: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_dp(flattening_model(order), random_rows, sigma=1.0, clip=1.0, batch=4, steps=1, rate=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ("embed_tokens", "q_proj")}, "LoRA on Embedding"),
        ({"use_dora": True}, "variant"),
        ({"lora_bias": True}, "bias"),
    ],
)
def test_adapters_without_row_gradients_are_refused(options: dict[str, Any], message: str) -> None:
    model = lora_model(base_model(attention_bias=True), **options)
    with pytest.raises(ConfigError, match=message):
        trained_layers(model, trainable(model))


def test_more_than_one_way_through_a_layer_is_refused() -> None:
    model = lora_model()
    model.add_adapter("other", LoraConfig(r=2, target_modules=list(QV)))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ConfigError, match="exactly one adapter"):
        trained_layers(model, trainable(model))
    model = lora_model()
    wanted = trainable(model)
    model.merge_adapter()
    with pytest.raises(ConfigError, match="not merged"):
        trained_layers(model, wanted)
    plain = base_model()
    with pytest.raises(ConfigError, match="in no LoRA layer"):
        trained_layers(plain, trainable(plain))


def test_batch_normalisation_is_refused(random_rows: TokenRows) -> None:
    model = lora_model()
    model.get_base_model().model.norm = nn.BatchNorm1d(32).requires_grad_(False)
    with pytest.raises(ConfigError, match="batch normalisation"):
        train_dp(model, random_rows, sigma=1.0, clip=1.0, batch=4, steps=1, rate=1e-2)


def test_norms_stay_float32_under_autocast(random_rows: TokenRows) -> None:
    """In bfloat16 the norm of a clipped gradient passes its bound by 0.7 %."""
    model = lora_model()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = ours(model, random_rows)
        for row in range(12):
            with private_optimizer(model, trainable(model), 0.0, 1e-3, 1, 1e-9, Draws.make(0)) as optimizer:
                noisy_step(optimizer, RowLosses(model, random_rows), torch.tensor([row]), 512)
                norm = float(optimizer.gradient.double().norm())
            assert 0.99e-3 < norm < 1e-3 * (1 + 1e-6)
    exact = ours(model, random_rows)
    assert not torch.equal(rounded, exact)  # autocast was on
    assert_same(rounded, exact, rounding=5e-2)


def test_other_peft_methods_are_refused() -> None:
    from peft import IA3Config

    model = get_peft_model(
        base_model(),
        IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
    )
    with pytest.raises(ConfigError, match="in no LoRA layer"):
        trained_layers(model, trainable(model))
