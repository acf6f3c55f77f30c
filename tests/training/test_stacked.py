"""Stacked adapters against the plain ways: PEFT models one after the other, and a loop over examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradtf_fl.adapters import AdapterSpec, adapter_state, attach, set_adapter_state
from gradtf_fl.adapters.models import load_model, load_tokenizer
from gradtf_fl.curation.shadow import as_token_rows, single_task
from gradtf_fl.tasks import Row, encode_rows
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
from gradtf_fl.training.stacked_layers import StackedEmbedding

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
    stack = StackedAdapters.load(model, spec)
    if double:
        stack.model.double()
        stack.initial = stack.initial.double()
        stack._frozen = {name: tensor.double() for name, tensor in stack._frozen.items()}
    stacked = fine_tune_stacked(stack, stack_rows(sets), 3, recipe, [[k] for k in range(3)], [8])[0]
    for k, rows in enumerate(sets):
        peft_model = attach(load_model(model)[0], spec)
        if double:
            peft_model.double()
        fine_tune(peft_model, rows, steps=8, batch=6, rate=1e-2, seed=k)
        sequential = torch.from_numpy(stack.layout.to_vector(adapter_state(peft_model))) - stack.initial
        assert sequential.abs().max() > 1e-2  # it did move
        assert (stacked[k] - sequential).abs().max() < tolerance


@pytest.mark.parametrize("train_a", [True, False])
@pytest.mark.parametrize("model", ["embedded:tiny", "embedded:llm"])
def test_gradients_on_all_modules_are_those_of_peft(model: str, train_a: bool) -> None:
    """Gradients, because Adam would blow up rounding where an embedding's are nearly zero."""
    targets = ("k_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens")
    spec, rows = AdapterSpec(targets=targets, train_a=train_a), shadow_rows("dhm", 8, 4)
    stack = StackedAdapters.load(model, spec)
    noise = torch.randn(stack.initial.shape, generator=torch.Generator().manual_seed(0))
    theta = (stack.initial + 0.1 * noise * stack.mask)[None].requires_grad_(True)
    stack.row_losses(theta, rows).sum().backward()
    plain = attach(load_model(model)[0], spec).eval()
    set_adapter_state(plain, {**adapter_state(plain), **stack.layout.to_state(theta.detach()[0].numpy())})
    logits = plain(input_ids=rows.input_ids[:, :-1], use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(logits.mT, rows.labels[:, 1:], reduction="none")
    (losses.sum(1) / (rows.labels[:, 1:] != -100).sum(1)).sum().backward()
    found = {n.replace(".default", ""): p.grad for n, p in plain.named_parameters() if p.requires_grad}
    assert theta.grad is not None
    assert set(found) == {name for name, _, _ in stack.layout.pieces(theta)}
    gradient = torch.from_numpy(stack.layout.to_vector(found))
    assert gradient.abs().amax(1).min() > 1e-3
    torch.testing.assert_close(theta.grad[0], gradient, atol=2e-5, rtol=1e-4)


def test_one_copy_per_row_gives_the_gradient_of_each_row() -> None:
    stack = StackedAdapters.load("embedded:tiny", SPEC)
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


@pytest.mark.parametrize("kind", ["lora-xs", "full"])
def test_gradients_of_other_kinds_follow_from_the_whole_weights(kind: str) -> None:
    """With G the gradient of W: that of the full delta is G, that of LoRA-XS's R is s B^T G A^T."""
    spec = AdapterSpec(rank=3, alpha=6.0, targets=("k_proj", "down_proj"), kind=kind)
    stack = StackedAdapters.load("embedded:tiny", spec)
    rows = shadow_rows("bfk", 6, 1)
    theta = stack.initial[None].clone().requires_grad_(True)
    for layer in stack._layers.values():
        layer.base.weight.requires_grad_(True)
    stack.row_losses(theta, rows).sum().backward()
    assert theta.grad is not None
    for name, shape, found in stack.layout.pieces(theta.grad[0]):
        module = name.rsplit(".", 2)[0]
        wanted = stack._layers[module].base.weight.grad
        assert isinstance(wanted, torch.Tensor)
        if kind == "lora-xs":
            a, b = (stack._frozen[f"{module}.lora_{role}.weight"] for role in "AB")
            wanted = 2.0 * b.T @ wanted @ a.T
        assert wanted.abs().max() > 1e-3
        torch.testing.assert_close(found.reshape(shape), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["lora-xs", "full"])
def test_other_kinds_train_apart_and_learn(kind: str) -> None:
    spec = AdapterSpec(rank=4, targets=("q_proj", "v_proj"), kind=kind)
    stack = StackedAdapters.load("embedded:tiny", spec)
    sets = [shadow_rows(name, 48, 3) for name in NAMES]
    recipe = PlainRecipe(steps=12, batch=12, rate=3e-2)
    together = fine_tune_stacked(stack, stack_rows(sets), 3, recipe, [[k] for k in range(3)], [12])[0]
    for k, rows in enumerate(sets):
        alone = fine_tune_stacked(stack, rows, 1, recipe, [[k]], [12])[0]
        torch.testing.assert_close(together[k], alone[0], atol=1e-4, rtol=0)
        before, after = (stack.row_losses(stack.initial[None] + u, rows).mean() for u in (0 * alone, alone))
        assert after < before - 0.05


def test_an_embedding_never_learns_from_its_padding_token() -> None:
    base = torch.nn.Embedding(6, 2, padding_idx=3)
    layer = StackedEmbedding(base, 1.0)
    a = torch.randn(2, 1, 6, requires_grad=True)
    layer.put({"lora_embedding_A": a, "lora_embedding_B": torch.ones(2, 2, 1)})
    out = layer(torch.tensor([[3, 1], [5, 3]]))  # a row for each of two adapters
    torch.testing.assert_close(out[1, 1], base.weight[3] + a[1, 0, 3])  # but it is read like any other
    out.sum().backward()
    assert a.grad is not None
    assert a.grad.tolist() == [[[0, 2, 0, 0, 0, 0]], [[0, 0, 0, 0, 0, 2]]]


def test_dp_noise_leaves_alone_what_rows_are_filled_up_with() -> None:
    stack = StackedAdapters.load("embedded:tiny", AdapterSpec(targets=("q_proj", "embed_tokens")))
    assert not stack.mask.all()
    rows, recipe = shadow_rows("aej", 64, 0), DpRecipe(rounds=1, steps=2, batch=16)
    update = dp_fine_tune_stacked(stack, rows, [0], [1.0], recipe, [5])[0, 0]
    assert not update[~stack.mask].any()
    assert update[stack.mask].ne(0).all()


def test_row_losses_ignore_padding_and_neighbours() -> None:
    stack = StackedAdapters.load("embedded:tiny", SPEC)
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
    stack = StackedAdapters.load("embedded:tiny", SPEC)
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
    stack = StackedAdapters.load("embedded:tiny", SPEC)
    rows = shadow_rows("aej", 64, 0)
    small, large = (
        dp_fine_tune_stacked(stack, rows, [0], [0.0], DpRecipe(rounds=1, steps=3, batch=16, clip=clip), [5])
        for clip in (0.01, 1e6)
    )
    assert (small - large).abs().max() > 1e-3  # Adam hides one factor for all rows, not one for each


def test_a_batch_in_parts_is_the_batch() -> None:
    """A large vocabulary's logits of a whole batch take more memory than the model: parts of it, one step."""
    tokenizer = load_tokenizer("embedded:tiny")
    rows = encode_rows([Row("[_][_][_]37?58=", "13"), Row("[_][_][_]11?22=", "33")] * 6, tokenizer)
    states, sizes = [], []
    for logit_bytes in (10**9, 5 * 4 * len(tokenizer) * rows.input_ids.shape[1]):
        tuned = attach(load_model("embedded:tiny")[0], AdapterSpec())
        tuned.register_forward_pre_hook(lambda _, args, named: sizes.append(len(named["input_ids"])), with_kwargs=True)
        fine_tune(tuned, rows, steps=3, batch=12, rate=1e-2, seed=0, logit_bytes=logit_bytes)
        states.append(adapter_state(tuned))
    assert sizes == [12] * 3 + [5, 5, 2] * 3
    assert max(float((states[1][name] - value).abs().max()) for name, value in states[0].items()) < 1e-5
