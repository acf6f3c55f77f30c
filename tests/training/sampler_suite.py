"""What every gradient sampler owes, whoever computes the gradients: one test class per sampler inherits this suite."""

from __future__ import annotations

import copy
import warnings
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from opacus.optimizers import DPOptimizer
from torch import nn

from gradtf_fl.config import Sampler
from gradtf_fl.errors import ConfigError
from gradtf_fl.privacy import DpEvent
from gradtf_fl.tasks import TokenRows
from gradtf_fl.training.dp_sgd import DpCheckpoint, DpOutcome, RowLosses, noisy_step, private_optimizer, train_dp
from gradtf_fl.training.grad_samplers import SAMPLERS
from gradtf_fl.training.private_adam import PrivateAdam
from gradtf_fl.training.randomness import Draws
from gradtf_fl.training.sensitivity import measure_sensitivity

from .conftest import ALL_LINEAR, QV, base_model, lora_model, trainable

EVERY, NONE = torch.arange(12), torch.tensor([], dtype=torch.long)
PLAN: dict[str, Any] = {"sigma": 1.0, "clip": 0.5, "batch": 4, "steps": 6, "rate": 1e-2, "seed": 7}


def one_row_at_a_time(model: nn.Module, rows: TokenRows) -> dict[str, torch.Tensor]:
    """Gradients [rows, *p.shape] of each row's loss by name: PEFT's own forward pass, a backward pass for each row."""
    model.train()
    forward, parameters = RowLosses(model, rows), trainable(model)
    found = [torch.autograd.grad(forward(EVERY[i : i + 1]).sum(), list(parameters.values())) for i in EVERY]
    return {name: torch.stack(parts) for name, parts in zip(parameters, zip(*found, strict=True), strict=True)}


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def adapter(model: nn.Module) -> torch.Tensor:
    return flat(trainable(model).values())


class SamplerSuite:
    """Subclasses name the sampler."""

    sampler: ClassVar[Sampler]

    def optimizer(
        self, model: nn.Module, sigma: float = 0.0, clip: float = 1.0, batch: float = 8.0
    ) -> AbstractContextManager[PrivateAdam]:
        return private_optimizer(model, trainable(model), sigma, clip, batch, 1e-2, Draws.make(3), self.sampler)

    def train(self, model: nn.Module, rows: TokenRows, **plan: Any) -> DpOutcome:
        return train_dp(model, rows, **{**PLAN, **plan}, sampler=self.sampler)

    def step(self, rows: TokenRows, drawn: torch.Tensor, physical_batch: int = 512, **options: float) -> torch.Tensor:
        """What Adam is given [size] in one step of a new model."""
        model = lora_model()
        with self.optimizer(model, **options) as optimizer:
            noisy_step(optimizer, RowLosses(model, rows), drawn, physical_batch)
            given = flat(p.grad for p in trainable(model).values())
            assert torch.equal(given, optimizer.gradient)
            assert optimizer.steps == 1
        return given

    def test_opacus_is_the_engine(self) -> None:
        model = lora_model()
        with self.optimizer(model) as optimizer:
            assert isinstance(optimizer, DPOptimizer)
            assert isinstance(optimizer.sampler, GradSampleHooks)
            assert type(optimizer.sampler) is SAMPLERS[self.sampler]

    @pytest.mark.parametrize("family", ["llama", "qwen2"])
    @pytest.mark.parametrize("targets", [QV, ALL_LINEAR], ids=["qv", "all"])
    @pytest.mark.parametrize("train_a", [True, False])
    def test_gradients_are_those_of_one_row_at_a_time(
        self, random_rows: TokenRows, family: str, targets: tuple[str, ...], train_a: bool
    ) -> None:
        model = lora_model(base_model(family), targets, train_a)
        expected = one_row_at_a_time(model, random_rows)
        with self.optimizer(model) as optimizer, warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.sampler.backward(RowLosses(model, random_rows)(EVERY))
            for name, p in trainable(model).items():
                largest = float(expected[name].abs().max())
                assert largest > 1e-3
                torch.testing.assert_close(p.grad_sample, expected[name], atol=1e-5 * largest, rtol=0)
            assert optimizer.row_gradients().dtype == torch.float32

    @pytest.mark.parametrize("family", ["llama", "qwen2"])
    @pytest.mark.parametrize("train_a", [True, False])
    def test_checkpointing_changes_no_gradient(self, random_rows: TokenRows, family: str, train_a: bool) -> None:
        """Dropout is off in both; nothing stays behind for the next step."""
        model = lora_model(base_model(family, attention_dropout=0.1), ALL_LINEAR, train_a, lora_dropout=0.2)
        found: dict[bool, list[torch.Tensor]] = {}
        for checkpointing in (False, True):
            plan = {"sampler": self.sampler, "gradient_checkpointing": checkpointing}
            with private_optimizer(model, trainable(model), 0.0, 1.0, 8.0, 1e-2, Draws.make(3), **plan) as optimizer:
                for step in range(2):
                    torch.manual_seed(step)
                    optimizer.sampler.backward(RowLosses(model, random_rows)(EVERY))
                    found.setdefault(checkpointing, []).append(optimizer.row_gradients())
        for plain, again in zip(found[False], found[True], strict=True):
            assert float(plain.abs().max()) > 1e-3
            torch.testing.assert_close(again, plain, atol=1e-6 * float(plain.abs().max()), rtol=0)

    @pytest.mark.parametrize("quantity", ["gradient", "norm"])
    def test_bf16_base_weights_change_gradients_by_their_rounding_alone(
        self, random_rows: TokenRows, quantity: str
    ) -> None:
        exact, rough = lora_model(), lora_model()
        for name, p in rough.named_parameters():
            if "lora_" not in name:
                p.data = p.data.bfloat16()
        found = []
        for model in (exact, rough):
            with self.optimizer(model) as optimizer:
                optimizer.sampler.backward(RowLosses(model, random_rows)(EVERY))
                found.append(optimizer.row_gradients())
        assert found[0].dtype == found[1].dtype == torch.float32
        difference = (found[1] - found[0]).norm(dim=1) if quantity == "gradient" else found[1].norm(dim=1)
        if quantity == "norm":
            difference = (difference - found[0].norm(dim=1)).abs()
        shares = difference / found[0].norm(dim=1)
        assert 1e-5 < float(shares.max()) < 0.03  # 2^-8 a product, a few of them in a row

    def test_no_row_counts_more_than_the_clip_with_bf16_base_weights(self, random_rows: TokenRows) -> None:
        model = lora_model()
        for name, p in model.named_parameters():
            if "lora_" not in name:
                p.data = p.data.bfloat16()
        with self.optimizer(model, clip=1e-3, batch=1.0) as optimizer:
            for row in EVERY[:4]:
                noisy_step(optimizer, RowLosses(model, random_rows), row.view(1), 512)
                norm = float(optimizer.gradient.double().norm())
                assert 0.99e-3 < norm < 1e-3 * (1 + 1e-6)

    def test_clipped_as_opacus_own_optimizer_clips(self, random_rows: TokenRows) -> None:
        """Half of the rows are clipped, over the whole adapter; the denominator is the expected batch (5)."""
        model = lora_model()
        with self.optimizer(model, batch=5.0) as optimizer:
            optimizer.sampler.backward(RowLosses(model, random_rows)(EVERY))
            clip = float(optimizer.row_gradients().norm(dim=1).median())
            options = {"noise_multiplier": 0.0, "max_grad_norm": clip, "expected_batch_size": 5}
            stock = DPOptimizer(torch.optim.SGD(trainable(model).values(), lr=0.0), **options)
            stock.step()
            expected = flat(p.grad for p in trainable(model).values())
        found = self.step(random_rows, EVERY, clip=clip, batch=5.0)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)

    def test_no_row_counts_more_than_the_clip(self, random_rows: TokenRows) -> None:
        for row in EVERY:
            norm = float(self.step(random_rows, row.view(1), clip=1e-3, batch=1.0).double().norm())
            assert 0.99e-3 < norm < 1e-3 * (1 + 1e-6)

    def test_under_autocast_too(self, random_rows: TokenRows) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            for row in EVERY[:4]:
                norm = float(self.step(random_rows, row.view(1), clip=1e-3, batch=1.0).double().norm())
                assert 0.99e-3 < norm < 1e-3 * (1 + 1e-6)

    def test_noise_is_exactly_that_of_our_draws(self, random_rows: TokenRows) -> None:
        """Three steps over no rows: sigma n_t times C / batch, where n_t are the draws of step t."""
        model, draws = lora_model(), Draws.make(3)
        with self.optimizer(model, sigma=1.5, clip=0.4, batch=8.0) as optimizer:
            for step in range(3):
                noisy_step(optimizer, RowLosses(model, random_rows), NONE, 512)
                noise = draws.normals(step, adapter(model).numel(), torch.device("cpu"))
                assert torch.equal(optimizer.gradient, (noise * 1.5 * (0.4 / 8.0)).float())
            assert optimizer.steps == 3

    def test_noise_is_added_to_the_sum(self, random_rows: TokenRows) -> None:
        quiet, noise, both = (
            self.step(random_rows, drawn, sigma=sigma) for sigma, drawn in ((0.0, EVERY), (1.0, NONE), (1.0, EVERY))
        )
        assert float(quiet.norm()) > 0.1
        torch.testing.assert_close(quiet + noise, both, atol=1e-6, rtol=0)

    def test_an_empty_draw_takes_no_forward_pass_and_moves_the_adapter(self, random_rows: TokenRows) -> None:
        model = lora_model()
        before, seen = adapter(model), []
        model.get_input_embeddings().register_forward_hook(lambda *_: seen.append(1))
        with self.optimizer(model, sigma=1.0) as optimizer:
            assert noisy_step(optimizer, RowLosses(model, random_rows), NONE, 512) == 0.0
        assert not seen
        assert bool((adapter(model) != before).all())

    @pytest.mark.parametrize("physical_batch", [1, 5, 6])
    def test_parts_of_a_draw_are_one_step(self, random_rows: TokenRows, physical_batch: int) -> None:
        whole = self.step(random_rows, EVERY, sigma=1.0)
        torch.testing.assert_close(self.step(random_rows, EVERY, physical_batch, sigma=1.0), whole, atol=1e-6, rtol=0)

    def test_nothing_of_a_draw_is_in_the_next(self, random_rows: TokenRows) -> None:
        alone = self.step(random_rows, EVERY[6:])
        model = lora_model()
        with self.optimizer(model) as optimizer:
            kept = adapter(model)
            noisy_step(optimizer, RowLosses(model, random_rows), EVERY[:6], 4)
            with torch.no_grad():
                torch.nn.utils.vector_to_parameters(kept, trainable(model).values())
            noisy_step(optimizer, RowLosses(model, random_rows), EVERY[6:], 512)
            torch.testing.assert_close(optimizer.gradient, alone, atol=1e-6, rtol=0)

    def test_gradients_are_used_once(self, random_rows: TokenRows) -> None:
        model = lora_model()
        with self.optimizer(model) as optimizer:
            noisy_step(optimizer, RowLosses(model, random_rows), EVERY, 512)
            with pytest.raises(ValueError, match="not initialized"):
                optimizer.step()

    def test_one_overflowing_row_does_not_poison_the_sum(self, random_rows: TokenRows) -> None:
        model = lora_model()
        with self.optimizer(model) as optimizer:
            optimizer.sampler.backward(RowLosses(model, random_rows)(EVERY))
            next(iter(trainable(model).values())).grad_sample[4] = torch.inf
            optimizer.step()
            assert bool(optimizer.gradient.isfinite().all())
            assert 0.1 < float(optimizer.gradient.norm()) < 12 / 8

    def test_observed_steps_are_the_event_with_empty_draws_among_them(self, random_rows: TokenRows) -> None:
        """Two rows and one expected per step: a quarter of the draws is empty."""
        few = random_rows.take(slice(0, 2))
        sizes = [len(Draws.make(7).rows(step, 2, 0.5)) for step in range(12)]
        assert 0 in sizes
        assert self.train(lora_model(), few, batch=1, steps=12).event == DpEvent(1.0, 0.5, 12)

    def test_a_resumed_run_ends_with_the_same_bits(self, random_rows: TokenRows, tmp_path: Path) -> None:
        whole = lora_model(lora_dropout=0.2)
        outcome = self.train(whole, random_rows)

        def stop(done: int, _: int) -> None:
            if done == 4:
                raise KeyboardInterrupt

        checkpoint = DpCheckpoint(tmp_path / "state", every=3)
        with pytest.raises(KeyboardInterrupt):
            self.train(lora_model(lora_dropout=0.2), random_rows, progress=stop, checkpoint=checkpoint)
        model = lora_model(lora_dropout=0.2)
        assert self.train(model, random_rows, checkpoint=checkpoint) == replace(outcome, resumed_at=4)
        assert torch.equal(adapter(model), adapter(whole))

    def test_a_rows_gradient_depends_on_no_other_row_and_one_row_moves_at_most_the_clip(self) -> None:
        assert measure_sensitivity(partial(train_dp, sampler=self.sampler)).problems == []

    @pytest.mark.parametrize("interrupted", [False, True])
    def test_the_model_is_as_before_afterwards(self, random_rows: TokenRows, interrupted: bool) -> None:
        model = lora_model().eval()
        modules = {name: set(vars(module)) for name, module in model.named_modules()}
        hooks = {name: len(m._forward_hooks) + len(m._backward_hooks) for name, m in model.named_modules()}

        def stop(*_: int) -> None:
            raise KeyboardInterrupt

        if interrupted:
            with pytest.raises(KeyboardInterrupt):
                self.train(model, random_rows, progress=stop)
        else:
            self.train(model, random_rows)
        assert not model.training
        assert {name: set(vars(module)) for name, module in model.named_modules()} == modules
        assert {name: len(m._forward_hooks) + len(m._backward_hooks) for name, m in model.named_modules()} == hooks
        assert all(p.grad is None and not vars(p) for p in model.parameters())
        self.train(model, random_rows, steps=1, gradient_checkpointing=True)
        assert {name: set(vars(module)) for name, module in model.named_modules()} == modules
        twin = copy.deepcopy(model)
        for again in (model, twin):
            self.train(again, random_rows)
        assert torch.equal(adapter(model), adapter(twin))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"targets": ("embed_tokens", "q_proj")}, "LoRA on Embedding"),
            ({"use_dora": True}, "variant"),
            ({"lora_bias": True}, "bias"),
        ],
    )
    def test_adapters_without_row_gradients_are_refused(
        self, random_rows: TokenRows, options: dict[str, Any], message: str
    ) -> None:
        model = lora_model(base_model(attention_bias=True), **options)
        with pytest.raises(ConfigError, match=message):
            self.train(model, random_rows)
        assert all(not vars(p) for p in model.parameters())

    def test_layers_that_mix_rows_are_refused_before_a_row_is_read(self, random_rows: TokenRows) -> None:
        model, seen = lora_model(targets=("up_proj",)), []
        model.get_input_embeddings().register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape)))
        for layer in model.get_base_model().model.layers:
            layer.mlp = Mixing(layer.mlp)
        with pytest.raises(ConfigError, match="one sequence for each of the 3"):
            self.train(model, random_rows)
        assert seen == [(3, 5)]  # made-up rows

    def test_a_layer_that_no_gradient_reaches_is_refused(self, random_rows: TokenRows) -> None:
        model = lora_model()
        model.get_base_model().config.num_hidden_layers = 1
        with pytest.raises(ConfigError, match=r"no gradient reaches 4 matrices, e\.g\. .*layers\.1"):
            self.train(model, random_rows)


class Mixing(nn.Module):
    """An MLP that sees all rows as one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.inner(x.reshape(1, -1, x.shape[-1])).reshape(x.shape)
        return mixed
