"""Stacked adapters against the plain ways: PEFT models one after the other, and a loop over examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradtf_fl.adapters import AdapterSpec, adapter_state, attach
from gradtf_fl.curation.shadow import as_token_rows, single_task
from gradtf_fl.models import load_model
from gradtf_fl.tasks import house_rules as hr
from gradtf_fl.tasks.rows import TokenRows
from gradtf_fl.training.plain import fine_tune
from gradtf_fl.training.stacked import (
    DpRecipe,
    PlainRecipe,
    StackedAdapters,
    batch_indices,
    dp_fine_tune_stacked,
    fine_tune_stacked,
    stack_rows,
)

SPEC = AdapterSpec()
NAMES = ("aej", "bfk", "dhm")


def shadow_rows(name: str, rows: int, seed: int) -> TokenRows:
    return as_token_rows(single_task(hr.rule_named(name)).draw(np.random.default_rng(seed), rows, "public"))


@pytest.mark.parametrize("train_a", [True, False])
@pytest.mark.parametrize(
    ("model", "double", "tolerance"),
    [
        ("embedded:tiny", False, 1e-5),
        # Adam divides by the gradient's size and so blows up float32 rounding where a gradient is nearly zero
        # (2.6e-5 on the LLM after 8 steps): in float64, therefore (RMSNorm stays float32).
        ("embedded:llm", True, 1e-5),
    ],
)
def test_stacked_equals_sequential_peft(model: str, double: bool, tolerance: float, train_a: bool) -> None:
    spec = AdapterSpec(train_a=train_a)
    sets = [shadow_rows(name, 48, 3) for name in NAMES]
    recipe = PlainRecipe(steps=8, batch=6, rate=1e-2)
    stack = StackedAdapters(load_model(model)[0], spec)
    if double:
        stack.model.double()
        stack.initial = stack.initial.double()
        stack._frozen_a = {name: tensor.double() for name, tensor in stack._frozen_a.items()}
    stacked = fine_tune_stacked(stack, stack_rows(sets), 3, recipe, [[k] for k in range(3)], [8])[0]
    for k, rows in enumerate(sets):
        peft_model = attach(load_model(model)[0], spec)
        if double:
            peft_model.double()
        fine_tune(peft_model, rows, steps=8, batch=6, rate=1e-2, seed=k)
        sequential = torch.from_numpy(stack.layout.to_vector(adapter_state(peft_model))) - stack.initial
        assert sequential.abs().max() > 1e-2  # it did move
        assert (stacked[k] - sequential).abs().max() < tolerance


def test_one_copy_per_row_gives_the_gradient_of_each_row() -> None:
    stack = StackedAdapters(load_model("embedded:tiny")[0], SPEC)
    rows = shadow_rows("cgk", 7, 1)
    theta = stack.initial + 0.1 * torch.randn(stack.initial.shape, generator=torch.Generator().manual_seed(0))
    copies = theta.expand(7, -1, -1).clone().requires_grad_(True)
    stack.row_losses(copies, rows).sum().backward()
    assert copies.grad is not None
    for n in range(7):
        alone = theta[None].clone().requires_grad_(True)
        stack.row_losses(alone, rows.take(slice(n, n + 1))).sum().backward()
        assert alone.grad is not None
        torch.testing.assert_close(copies.grad[n], alone.grad[0], atol=1e-5, rtol=1e-4)


def test_row_losses_ignore_padding_and_neighbours() -> None:
    stack = StackedAdapters(load_model("embedded:tiny")[0], SPEC)
    rows = shadow_rows("aej", 4, 2)
    pad = torch.zeros(4, 3, dtype=torch.long)
    padded = TokenRows(
        torch.cat([rows.input_ids, pad], 1),
        torch.cat([rows.attention_mask, pad], 1),
        torch.cat([rows.labels, pad - 100], 1),
    )
    theta = stack.initial[None]
    torch.testing.assert_close(stack.row_losses(theta, rows), stack.row_losses(theta, padded), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(stack.row_losses(theta, rows)[:1], stack.row_losses(theta, rows.take(slice(0, 1))))


def test_batches_pass_over_all_rows_before_repeating() -> None:
    index = batch_indices([1], 10, 4, 5)
    assert index.shape == (5, 4)
    assert sorted(index.reshape(-1)[:10]) == list(range(10))


def test_dp_federations_continue_from_their_mean_and_noise_is_noise() -> None:
    stack = StackedAdapters(load_model("embedded:tiny")[0], SPEC)
    rows = stack_rows([shadow_rows("aej", 64, seed) for seed in range(3)])
    recipe = DpRecipe(rounds=2, steps=1, batch=16, rate=1e-2)
    updates = dp_fine_tune_stacked(stack, rows, [0, 0, 1], [0.0, 0.0, 0.0], recipe, [5])
    assert updates.shape == (2, 3, stack.layout.blocks, stack.layout.block_dim)
    mean = updates[0, :2].mean(0)
    # Adam's first step moves every coordinate by at most its rate: round 2 starts at the group's mean
    assert (updates[1, :2] - mean).abs().max() <= 1e-2 * 1.001
    assert (updates[1, 2] - updates[0, 2]).abs().max() <= 1e-2 * 1.001
    again = dp_fine_tune_stacked(stack, rows, [0, 0, 1], [0.0, 0.0, 0.0], recipe, [5])
    assert torch.equal(updates, again)
    noisy = dp_fine_tune_stacked(stack, rows, [0, 0, 1], [0.0, 0.0, 3.0], recipe, [5])
    assert torch.equal(updates[0, :2], noisy[0, :2])
    assert not torch.equal(updates[0, 2], noisy[0, 2])


def test_dp_shadows_clip_each_row() -> None:
    stack = StackedAdapters(load_model("embedded:tiny")[0], SPEC)
    rows = shadow_rows("aej", 64, 0)
    small, large = (
        dp_fine_tune_stacked(stack, rows, [0], [0.0], DpRecipe(rounds=1, steps=3, batch=16, clip=clip), [5])
        for clip in (0.01, 1e6)
    )
    assert (small - large).abs().max() > 1e-3  # Adam hides one factor for all rows, not one for each
