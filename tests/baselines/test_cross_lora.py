"""Cross-LoRA: exact between a model and itself, hand-checked between widths, its losses measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradtf_fl.adapters import AdapterSpec
from gradtf_fl.baselines import CrossLora, Pair
from gradtf_fl.baselines.cross_lora import _weight_deltas
from gradtf_fl.errors import ConfigError
from gradtf_fl.training import StackedAdapters


def random_update(side: StackedAdapters, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.1 * rng.normal(size=tuple(side.initial.shape))).astype(np.float32)


def test_exact_between_a_model_and_itself(pair: Pair) -> None:
    cross, update = CrossLora(pair.tiny, pair.tiny), random_update(pair.tiny)
    made = cross.generate(update)
    before, after = _weight_deltas(pair.tiny, update), _weight_deltas(pair.tiny, made)
    for place, delta in before.items():
        torch.testing.assert_close(after[place], delta, atol=1e-5, rtol=1e-4)
    error = cross.truncation_error(update)
    assert error.subspace < 1e-6
    assert error.rank < 1e-6


def test_the_tuned_model_answers_the_same_after_a_round_trip(pair: Pair) -> None:
    update = random_update(pair.tiny)
    ids = torch.arange(2, 14)[None]
    logits = []
    for vector in (update, CrossLora(pair.tiny, pair.tiny).generate(update)):
        pair.tiny.set((pair.tiny.initial + torch.from_numpy(vector))[None])
        logits.append(pair.tiny.model(input_ids=ids).logits)
    torch.testing.assert_close(logits[0], logits[1], atol=1e-3, rtol=1e-3)


def test_coordinates_in_singular_vectors_are_kept_across_widths(pair: Pair) -> None:
    """U_s^T delta W_s V_s = U_t^T delta W_t V_t, with the target layer at the same relative depth."""
    cross, update = CrossLora(pair.tiny, pair.llm), random_update(pair.tiny)
    made = cross.generate(update)
    assert made.shape == tuple(pair.llm.initial.shape)
    before, after = _weight_deltas(pair.tiny, update), _weight_deltas(pair.llm, made)
    for layer, source_layer in enumerate((0, 0, 1, 1)):
        for name in ("self_attn.q_proj", "self_attn.v_proj"):
            source, target = cross._pairs[(layer, name)]
            wanted = source.left.T @ before[(source_layer, name)] @ source.right
            found = target.left.T @ after[(layer, name)] @ target.right
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_singular_pairs_flip_sign_together_and_always_the_same_way(pair: Pair) -> None:
    for (layer, name), (_, target) in CrossLora(pair.tiny, pair.llm)._pairs.items():
        weight = pair.llm.model.get_submodule(f"model.layers.{layer}.{name}").base.weight.double()
        core = target.left.T @ weight @ target.right
        torch.testing.assert_close(core, torch.diag(torch.linalg.svdvals(weight)[:32]), atol=1e-6, rtol=1e-6)
        assert bool((target.left.gather(0, target.left.abs().argmax(0)[None]) > 0).all())


def test_truncation_error_is_what_lies_outside_the_kept_singular_pairs(pair: Pair) -> None:
    update = random_update(pair.tiny)
    errors = [CrossLora(pair.tiny, pair.llm, rank).truncation_error(update).subspace for rank in (2, 8, 32)]
    assert 1 > errors[0] > errors[1] > 0.1
    assert errors[2] < 1e-6
    # by hand for one rank: the part of delta W outside U_s and V_s
    cross = CrossLora(pair.tiny, pair.tiny, 8)
    lost = whole = 0.0
    for place, delta in _weight_deltas(pair.tiny, update).items():
        u, _, vh = torch.linalg.svd(pair.tiny.model.get_submodule(f"model.layers.{place[0]}.{place[1]}").base.weight)
        u, vh = u.double()[:, :8], vh.double()[:8]
        lost += float((delta - u @ u.T @ delta @ vh.T @ vh).square().sum())
        whole += float(delta.square().sum())
    assert cross.truncation_error(update).subspace == pytest.approx((lost / whole) ** 0.5, rel=1e-3)


def test_a_smaller_target_rank_keeps_the_largest_part_and_says_what_is_lost(pair: Pair) -> None:
    narrow = StackedAdapters.load("embedded:tiny", AdapterSpec(rank=1, alpha=2.0))
    cross, update = CrossLora(pair.tiny, narrow), random_update(pair.tiny)
    made = _weight_deltas(narrow, cross.generate(update))
    lost = whole = 0.0
    for place, delta in _weight_deltas(pair.tiny, update).items():
        sizes = torch.linalg.svdvals(delta)
        torch.testing.assert_close(torch.linalg.svdvals(made[place])[0], sizes[0], atol=1e-5, rtol=1e-4)
        lost += float(sizes[1:].square().sum())
        whole += float(sizes.square().sum())
    assert cross.truncation_error(update).rank == pytest.approx((lost / whole) ** 0.5, rel=1e-3)


def test_a_frozen_a_gives_the_nearest_b(pair: Pair) -> None:
    frozen = StackedAdapters.load("embedded:tiny", AdapterSpec(train_a=False))
    update = random_update(frozen)
    cross = CrossLora(frozen, frozen)
    np.testing.assert_allclose(cross.generate(update), update, atol=1e-5)  # delta W lies in A's rows: nothing is lost
    assert CrossLora(pair.tiny, frozen).truncation_error(random_update(pair.tiny)).rank > 0.1


def test_what_can_not_be_carried_is_refused(pair: Pair) -> None:
    keys = StackedAdapters.load("embedded:tiny", AdapterSpec(targets=("q_proj", "k_proj")))
    with pytest.raises(ConfigError, match=r"no adapted projection self_attn\.k_proj"):
        CrossLora(pair.tiny, keys)
    full = StackedAdapters.load("embedded:tiny", AdapterSpec(kind="full"))
    with pytest.raises(ConfigError, match="kind lora and full"):
        CrossLora(pair.tiny, full)
