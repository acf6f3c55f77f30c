"""DP-SGD: every quantity that the sensitivity argument names is checked against a plain loop or its distribution."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional

from experiments.embedded.pretrain_pair import build_model
from gradtf_fl.adapters import AdapterSpec, adapter_state, save_adapter
from gradtf_fl.errors import ConfigError
from gradtf_fl.privacy import NOISE_CSPRNG, NOISE_SEEDED, DpEvent
from gradtf_fl.tasks import TokenRows
from gradtf_fl.training import dp_sgd
from gradtf_fl.training.dp_sgd import NothingTrained, RowLosses, noisy_step, private_optimizer, train_dp
from gradtf_fl.training.loss import row_mean_loss
from gradtf_fl.training.private_adam import PrivateAdam
from gradtf_fl.training.randomness import Draws

from .conftest import adapter_model

QUIET = {"sigma": 0.0, "clip": 0.5, "batch": 16, "steps": 3, "rate": 1e-2, "seed": 1}


def adapter(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def looped_gradients(model: nn.Module, rows: TokenRows) -> dict[str, torch.Tensor]:
    """Gradients [N, ...] of each row's mean answer loss, one row at a time, without padding and without Opacus."""
    model.train()
    gradients: dict[str, list[torch.Tensor]] = {name: [] for name in trainable(model)}
    for i in range(len(rows)):
        length = int(rows.attention_mask[i].sum())
        ids, labels = rows.input_ids[i : i + 1, :length], rows.labels[i, 1:length]
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1]
        wanted = labels != -100
        loss = functional.cross_entropy(logits[wanted], labels[wanted])
        found = torch.autograd.grad(loss, list(trainable(model).values()))
        for name, gradient in zip(gradients, found, strict=True):
            gradients[name].append(gradient)
    return {name: torch.stack(parts) for name, parts in gradients.items()}


def perturb(model: nn.Module) -> nn.Module:
    """Move B off zero, so that gradients of A do not vanish."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in trainable(model).values():
            p += 0.3 * torch.randn(p.shape, generator=generator)
    return model


def test_row_loss_by_hand() -> None:
    logits = torch.log(torch.tensor([[[0.5, 0.5], [0.9, 0.1], [0.3, 0.7]], [[0.2, 0.8], [0.5, 0.5], [0.5, 0.5]]]))
    labels = torch.tensor([[-100, 1, 0], [-100, 1, -100]])
    expected = [-(math.log(0.5) + math.log(0.9)) / 2, -math.log(0.8)]
    assert row_mean_loss(logits, labels).tolist() == pytest.approx(expected, abs=1e-6)


def test_a_rows_loss_does_not_depend_on_its_neighbours(model: nn.Module, ragged_rows: TokenRows) -> None:
    losses = RowLosses(model, ragged_rows)
    together = losses(torch.arange(8)).detach()
    alone = torch.cat([losses(torch.tensor([i])).detach() for i in range(8)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    # the batch's token mean, which transformers' own loss takes, is another number
    tokens = (ragged_rows.labels != -100).sum(1).double()
    assert abs(float((together * tokens).sum() / tokens.sum() - together.mean())) > 1e-4


def test_a_row_without_labels_costs_nothing(model: nn.Module, ragged_rows: TokenRows) -> None:
    labels = ragged_rows.labels.clone()
    labels[2] = -100
    blank = TokenRows(ragged_rows.input_ids, ragged_rows.attention_mask, labels)
    assert RowLosses(model, blank)(torch.arange(8))[2] == 0


@pytest.mark.parametrize("train_a", [True, False])
def test_per_sample_gradients_equal_a_loop(ragged_rows: TokenRows, train_a: bool) -> None:
    model = perturb(adapter_model(train_a=train_a))
    expected = looped_gradients(model, ragged_rows)
    assert any("lora_A" in name for name in expected) == train_a
    with private_optimizer(model, trainable(model), 0.0, 1.0, 8, 1e-2, Draws.make(0)) as optimizer:
        optimizer.sampler.backward(RowLosses(model, ragged_rows)(torch.arange(8)))
        matrix = optimizer.row_gradients()
    wanted = torch.cat([expected[name].flatten(1) for name in trainable(model)], dim=1)
    torch.testing.assert_close(matrix, wanted, atol=1e-6, rtol=1e-4)
    assert all(expected[name].abs().max() > 1e-4 for name in expected)


@pytest.mark.parametrize("physical_batch", [512, 3])
def test_the_step_takes_the_mean_of_clipped_gradients(ragged_rows: TokenRows, physical_batch: int) -> None:
    """Clipping over the WHOLE adapter, a denominator of the expected batch (5, not the drawn 8)."""
    model = perturb(adapter_model())
    gradients = looped_gradients(model, ragged_rows)
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
    clip = float(norms.median())
    factors = (clip / norms).clamp(max=1)
    assert 0 < int((factors < 1).sum()) < 8
    with private_optimizer(model, trainable(model), 0.0, clip, 5, 1e-2, Draws.make(0)) as optimizer:
        noisy_step(optimizer, RowLosses(model, ragged_rows), torch.arange(8), physical_batch)
        for name, p in trainable(model).items():
            expected = torch.einsum("i,i...->...", factors, gradients[name]) / 5
            assert p.grad is not None
            torch.testing.assert_close(p.grad, expected, atol=1e-6, rtol=1e-4)


def test_noise_has_the_standard_deviation_that_sigma_promises(model: nn.Module, rows: TokenRows) -> None:
    sigma, clip, batch = 1.5, 0.4, 16
    noise = []
    with private_optimizer(model, trainable(model), sigma, clip, batch, 1e-2, Draws.make(0)) as optimizer:
        for _ in range(100):
            noisy_step(optimizer, RowLosses(model, rows), torch.tensor([], dtype=torch.long), 512)
            noise.append(torch.cat([p.grad.flatten() for p in trainable(model).values() if p.grad is not None]))
    drawn = torch.stack(noise) * batch / (sigma * clip)  # standard normal
    assert drawn.numel() > 50_000
    assert abs(float(drawn.mean())) < 4 / math.sqrt(drawn.numel())
    assert abs(float(drawn.std()) - 1) < 4 / math.sqrt(2 * drawn.numel())
    assert abs(float((drawn[1:] * drawn[:-1]).mean())) < 4 / math.sqrt(drawn.numel())  # fresh in every step


def test_a_step_is_its_noiseless_step_plus_noise(rows: TokenRows) -> None:
    """The noise does not depend on the rows: same key, with and without them."""
    drawn, nothing = torch.arange(16), torch.tensor([], dtype=torch.long)
    gradients = []
    for sigma, draw in ((0.0, drawn), (1.0, nothing), (1.0, drawn)):
        model = perturb(adapter_model())
        with private_optimizer(model, trainable(model), sigma, 0.5, 16, 1e-2, Draws.make(3)) as optimizer:
            noisy_step(optimizer, RowLosses(model, rows), draw, 512)
            gradients.append(torch.cat([p.grad.flatten() for p in trainable(model).values() if p.grad is not None]))
    torch.testing.assert_close(gradients[0] + gradients[1], gradients[2], atol=1e-6, rtol=1e-5)


def test_poisson_draws_vary_in_size_as_they_must() -> None:
    source = Draws.make(0)
    draws = [source.rows(step, 400, 0.05) for step in range(2000)]
    sizes = torch.tensor([float(len(draw)) for draw in draws])
    assert abs(float(sizes.mean()) - 20) < 4 * math.sqrt(19 / 2000)
    assert abs(float(sizes.var()) / 19 - 1) < 4 * math.sqrt(2 / 2000)  # a fixed-size batch has 0
    often = torch.bincount(torch.cat(draws), minlength=400).double()
    assert float(((often - 100) ** 2 / 95).mean()) == pytest.approx(1, abs=4 * math.sqrt(2 / 400))
    assert len(source.rows(0, 400, 1.0)) == 400


def test_empty_draws_are_noisy_steps_and_are_counted(rows: TokenRows) -> None:
    """Three rows and one expected per step: 30 % of the draws are empty."""
    model = adapter_model()
    few = rows.take(slice(0, 3))
    states = []
    outcome = train_dp(
        model,
        few,
        sigma=1.0,
        clip=0.5,
        batch=1,
        steps=40,
        rate=1e-2,
        seed=2,
        progress=lambda *_: states.append(adapter(model)),
    )
    assert outcome.event == DpEvent(1.0, 1 / 3, 40)
    assert len(states) == 40
    assert not any(equal(a, b) for a, b in pairwise(states))


def test_nothing_but_the_adapter_moves_and_all_of_b_does(model: nn.Module, rows: TokenRows) -> None:
    before = copy.deepcopy(model.state_dict())
    train_dp(model, rows, sigma=1.0, clip=0.5, batch=16, steps=1, rate=1e-2, seed=0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) != ("lora_" in name), name


def test_a_run_that_trains_nothing_fails_loudly(model: nn.Module, rows: TokenRows) -> None:
    with pytest.raises(NothingTrained, match="lora_B"):
        train_dp(model, rows, **{**QUIET, "sigma": 1.0, "rate": 1e-60})


def test_training_learns(rows: TokenRows) -> None:
    quiet = {"sigma": 0.0, "clip": 0.5, "batch": 32, "rate": 2e-2, "seed": 1}
    model = adapter_model()
    with torch.no_grad():
        before = float(RowLosses(model, rows)(torch.arange(128)).mean())
    outcome = train_dp(model, rows, steps=30, **quiet)
    with torch.no_grad():
        after = float(RowLosses(model, rows)(torch.arange(128)).mean())
    assert after < before - 0.3
    assert after < outcome.mean_loss < before


def test_a_seed_replays_a_run_and_no_seed_does_not(rows: TokenRows) -> None:
    def run(seed: int | None) -> dict[str, torch.Tensor]:
        model = adapter_model()
        outcome = train_dp(model, rows, sigma=1.0, clip=0.5, batch=16, steps=4, rate=1e-2, seed=seed)
        assert outcome.noise == (NOISE_CSPRNG if seed is None else NOISE_SEEDED)
        return adapter(model)

    assert equal(run(7), run(7))
    assert not equal(run(7), run(8))
    torch.manual_seed(0)
    unseeded = run(None)
    torch.manual_seed(0)
    assert not equal(unseeded, run(None))


def test_q_is_the_share_that_was_sampled(model: nn.Module, rows: TokenRows) -> None:
    assert train_dp(model, rows, **QUIET).event == DpEvent(0.0, 0.125, 3)
    assert train_dp(model, rows, **{**QUIET, "batch": 4096, "sigma": 2.0}).event == DpEvent(2.0, 1.0, 3)


@pytest.mark.parametrize("there", [40, 96, 128])
def test_q_and_the_denominator_come_from_the_declared_number(
    rows: TokenRows, there: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many rows there are: 16 of 96 declared ones are expected, and so many divide the sum."""
    drawn: list[tuple[int, float]] = []
    seen: list[float] = []
    real_rows, real_scale = Draws.rows, PrivateAdam.scale_grad

    def spy_rows(self: Draws, step: int, count: int, q: float) -> torch.Tensor:
        drawn.append((count, q))
        return real_rows(self, step, count, q)

    def spy_scale(self: PrivateAdam) -> None:
        seen.append(float(self.expected_batch_size))
        real_scale(self)

    monkeypatch.setattr(Draws, "rows", spy_rows)
    monkeypatch.setattr(PrivateAdam, "scale_grad", spy_scale)
    plan = {"sigma": 1.0, "clip": 0.5, "batch": 16, "steps": 2, "rate": 1e-2, "seed": 0}
    model = adapter_model()
    outcome = train_dp(model, rows.take(slice(0, there)), **plan, declared=96)
    assert outcome.event == DpEvent(1.0, 16 / 96, 2)
    assert (drawn, seen) == ([(there, 16 / 96)] * 2, [16.0] * 2)
    if there == 96:
        undeclared = adapter_model()
        assert train_dp(undeclared, rows.take(slice(0, there)), **plan) == outcome
        assert equal(adapter(model), adapter(undeclared))


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_model_is_as_before_afterwards(model: nn.Module, rows: TokenRows, interrupted: bool) -> None:
    model.eval()
    kept = {name: set(vars(module)) for name, module in model.named_modules()}

    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            train_dp(model, rows, **QUIET, progress=stop)
    else:
        train_dp(model, rows, **QUIET)
    assert not model.training
    assert {name: set(vars(module)) for name, module in model.named_modules()} == kept
    assert all(p.grad is None for p in model.parameters())
    twin = copy.deepcopy(model)
    for again in (model, twin):
        train_dp(again, rows, **QUIET)
    assert equal(adapter(model), adapter(twin))


def test_one_exploding_row_does_not_poison_the_sum(rows: TokenRows) -> None:
    model = adapter_model()
    model.get_input_embeddings().weight.data[0] = 3e38  # token 0 is padding, used by the bad row alone
    ids = rows.input_ids.clone()
    ids[0, 4] = 0
    train_dp(
        model,
        TokenRows(ids, rows.attention_mask, rows.labels),
        sigma=1.0,
        clip=0.5,
        batch=128,
        steps=2,
        rate=1e-2,
        seed=0,
    )
    assert all(bool(tensor.isfinite().all()) for tensor in adapter(model).values())


def test_what_was_trained_survives_a_file_and_generates(rows: TokenRows, tmp_path: Path) -> None:
    model = adapter_model()
    plain = model.get_base_model().generate(rows.input_ids[:4, :9], max_new_tokens=2, do_sample=False)  # type: ignore[operator]
    train_dp(model, rows, sigma=0.5, clip=0.5, batch=64, steps=30, rate=5e-2, seed=1)
    save_adapter(tmp_path / "adapter", adapter_state(model), AdapterSpec(), "")
    again = PeftModel.from_pretrained(build_model("tiny", 0), tmp_path / "adapter").eval()
    ids = rows.input_ids[:4]
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    answers = again.generate(input_ids=ids[:, :9], max_new_tokens=2, do_sample=False)
    assert answers.shape == (4, 11)
    assert not torch.equal(answers, plain)


def test_every_bad_argument_is_named(model: nn.Module, rows: TokenRows) -> None:
    with pytest.raises(ConfigError) as caught:
        train_dp(model, rows.take([]), sigma=-1, clip=math.inf, batch=0, steps=1, rate=math.nan)
    assert len(caught.value.problems) == 5
    flipped = TokenRows(*(torch.flip(t, [1]) for t in (rows.input_ids, rows.attention_mask, rows.labels)))
    flipped.attention_mask[:, 0] = 0
    with pytest.raises(ConfigError, match="padded on the right"):
        train_dp(model, flipped, **QUIET)


def test_models_that_break_the_argument_are_refused(model: nn.Module, rows: TokenRows) -> None:
    with pytest.raises(ConfigError, match="no trainable LoRA"):
        train_dp(build_model("tiny", 0).requires_grad_(False), rows, **QUIET)
    half = adapter_model()
    for p in trainable(half).values():
        p.data = p.data.bfloat16()
    with pytest.raises(ConfigError, match="float32"):
        train_dp(half, rows, **QUIET)
    model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(ConfigError, match="outside the adapter"):
        train_dp(model, rows, **QUIET)


def test_the_denominator_is_the_expected_batch(
    model: nn.Module, rows: TokenRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam hides a wrong scale, so it is read off the optimizer."""
    seen = []

    def spy(optimizer: PrivateAdam, *arguments: object) -> float:
        seen.append(optimizer)
        return noisy_step(optimizer, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(dp_sgd, "noisy_step", spy)
    train_dp(model, rows, **QUIET)
    optimizer = seen[0]
    assert (optimizer.expected_batch_size, optimizer.max_grad_norm) == (16, 0.5)
    assert (optimizer.noise_multiplier, optimizer.steps) == (0.0, 3)
