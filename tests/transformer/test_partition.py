"""Partitions: hand-computed views, exact inverses, and what each does inside the Grad-Transformer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from gradtf_fl.adapters import AdapterSpec, UpdateSpace
from gradtf_fl.adapters.update_vectors import BlockLayout, Slot
from gradtf_fl.errors import ConfigError
from gradtf_fl.transformer import GradTransformer, embedded_checkpoint
from gradtf_fl.transformer.model import Backbone, GradTransformerModel, Standardisation
from gradtf_fl.transformer.partition import PLANS, Partition, PartitionPlan

SMALL = Backbone(width=32, feed_forward=48, heads=2, head_dim=16)


def layout(layers: int, sizes: dict[str, int], extra: int = 0) -> BlockLayout:
    """Projections of ``sizes`` values each in every layer, and ``extra`` values outside the layers."""
    slots: list[Slot] = []
    for name, size in sizes.items():
        slots.append(Slot(f"self_attn.{name}.lora_B.weight", slots[-1].stop if slots else 0, (size, 1)))
    outside = (Slot("embed_tokens.lora_embedding_A", 0, (1, extra)),) if extra else ()
    rows = -(-extra // slots[-1].stop)
    return BlockLayout("m.", layers + rows, tuple(slots), outside)


TWO = layout(2, {"q_proj": 3, "v_proj": 1})
U = torch.tensor([[[1.0, 2, 3, 4], [5, 6, 7, 8]]])


@pytest.mark.parametrize(
    ("partition", "parts"),
    [
        (Partition.of(TWO), [[[1, 2, 3, 4], [5, 6, 7, 8]]]),
        (Partition.of(TWO, "per-projection"), [[[1, 2, 3], [5, 6, 7]], [[4], [8]]]),
        (Partition.of(TWO, reverse=True), [[[5, 6, 7, 8], [1, 2, 3, 4]]]),
        (Partition.of(TWO, chunk=3), [[[1, 2, 3], [4, 0, 0], [5, 6, 7], [8, 0, 0]]]),
        (Partition.of(TWO, chunk=9), [[[1, 2, 3, 4], [5, 6, 7, 8]]]),
        (Partition.of(TWO, reverse=True, chunk=3), [[[5, 6, 7], [8, 0, 0], [1, 2, 3], [4, 0, 0]]]),
        (Partition.of(TWO, "per-projection", chunk=2), [[[1, 2], [3, 0], [5, 6], [7, 0]], [[4], [8]]]),
    ],
)
def test_views_by_hand(partition: Partition, parts: list[list[list[float]]]) -> None:
    split = partition.split(U)
    assert [part[0].tolist() for part in split] == parts
    assert [(part.tokens, part.chunk) for part in partition.parts] == [tuple(part.shape[1:]) for part in split]
    assert torch.equal(partition.join(split), U)


def test_what_is_outside_the_layers_is_a_part_at_its_true_length() -> None:
    updates = torch.tensor([[[1.0, 2, 3, 4], [5, 6, 7, 8], [0, 0, 0, 0]]])  # one layer, 5 values outside
    where = layout(1, {"q_proj": 4}, 5)
    partition = Partition.of(where, reverse=True)
    updates[0, 2, 0] = 9
    assert [part[0].tolist() for part in partition.split(updates)] == [[[1, 2, 3, 4]], [[5, 6, 7], [8, 9, 0]]]
    assert torch.equal(partition.join(partition.split(updates)), updates)
    assert [part[0].tolist() for part in Partition.of(where, chunk=2).split(updates)][1] == [[5, 6], [7, 8], [9, 0]]


@given(
    layers=st.integers(1, 5),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    extra=st.integers(0, 20),
    strategy=st.sampled_from(["block", "per-projection"]),
    reverse=st.booleans(),
    chunk=st.integers(0, 9),
    batch=st.integers(1, 3),
)
@settings(max_examples=200, deadline=None)
def test_split_and_join_are_exact_inverses(
    layers: int, sizes: list[int], extra: int, strategy: str, reverse: bool, chunk: int, batch: int
) -> None:
    where = layout(layers, {f"{n}_proj": size for n, size in enumerate(sizes)}, extra)
    partition = Partition.of(where, strategy, reverse, chunk)
    updates = torch.randn(batch, where.blocks, where.block_dim) * torch.from_numpy(where.parameter_mask())
    parts = partition.split(updates)
    assert torch.equal(partition.join(parts), updates)
    held = sum(part.tokens * part.chunk if part.mask is None else int(part.mask.sum()) for part in partition.parts)
    assert held == int(where.parameter_mask().sum())
    for part, tokens in zip(partition.parts, parts, strict=True):
        mask = torch.ones(part.tokens, part.chunk) if part.mask is None else part.mask
        random = torch.randn(tokens.shape) * mask
        pairs = zip(partition.parts, parts, strict=True)
        others = [random if other is part else torch.zeros_like(t) for other, t in pairs]
        again = partition.split(partition.join(others))
        assert all(torch.equal(a, b) for a, b in zip(again, others, strict=True))


def test_unknown_plans_are_refused_with_every_problem() -> None:
    with pytest.raises(ConfigError) as error:
        PartitionPlan("rows", "sideways", -1, 2.5)  # type: ignore[arg-type]
    assert len(error.value.problems) == 4
    with pytest.raises(ConfigError, match="'stride' is unknown"):
        PartitionPlan.from_json({"strategy": "block", "stride": 2})
    for plan in PLANS.values():
        assert PartitionPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_projection_that_the_source_lacks_is_made_from_all_of_it() -> None:
    source, target = layout(1, {"q_proj": 2, "v_proj": 2}), layout(1, {"k_proj": 2, "q_proj": 3, "v_proj": 2}, 3)
    routes = PLANS["per-projection"].between(source, target).routes
    assert [(route.source, route.target) for route in routes] == [
        ((0, 1), (0,)),
        ((0,), (1,)),
        ((1,), (2,)),
        ((0, 1), (3,)),
    ]


SOURCE = layout(2, {"q_proj": 7, "v_proj": 5}, 17)
TARGET = layout(4, {"q_proj": 6, "v_proj": 10}, 19)
MODEL_PLANS = {
    **PLANS,
    "chunks": PartitionPlan(source_chunk=5, target_chunk=6),
    "per-projection-chunks": PartitionPlan("per-projection", "both", 3, 4),
}


def standardisation(where: BlockLayout, seed: int) -> Standardisation:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.from_numpy(where.parameter_mask())
    shape = (where.blocks, where.block_dim)
    return Standardisation(torch.randn(shape, generator=generator) * mask, torch.rand(shape, generator=generator) + 0.5)


def model_of(plan: PartitionPlan, source: BlockLayout = SOURCE, target: BlockLayout = TARGET) -> GradTransformerModel:
    torch.manual_seed(0)
    between = plan.between(source, target)
    return GradTransformerModel(SMALL, standardisation(source, 1), standardisation(target, 2), between).eval()


def some_updates(where: BlockLayout, batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    values = torch.randn(batch, where.blocks, where.block_dim, generator=generator)
    return values * torch.from_numpy(where.parameter_mask())


@pytest.mark.parametrize("name", MODEL_PLANS)
def test_generation_equals_teacher_forcing_on_its_own_tokens(name: str) -> None:
    model, updates = model_of(MODEL_PLANS[name]), some_updates(SOURCE, 3)
    with torch.no_grad():
        generated = model(updates)
        forced = model.teacher_forced(updates, generated) * model.target_scale + model.target_mean
    torch.testing.assert_close(forced, generated, atol=1e-4, rtol=1e-4)
    assert not generated[:, ~torch.from_numpy(TARGET.parameter_mask())].any()
    assert model.mse(updates, generated) < 1e-6


@pytest.mark.parametrize("name", MODEL_PLANS)
def test_gradients_reach_every_parameter(name: str) -> None:
    model = model_of(MODEL_PLANS[name]).train()
    model(some_updates(SOURCE, 2)).square().mean().backward()
    for parameter_name, parameter in model.named_parameters():
        if "shared" not in parameter_name and "embed_tokens" not in parameter_name:
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.abs().sum() > 0, parameter_name


def test_reversal_is_a_model_of_flipped_blocks() -> None:
    source, target = layout(3, {"q_proj": 4}), layout(5, {"q_proj": 6})
    plain, updates = model_of(PLANS["block"], source, target), some_updates(source, 2)
    reversed_ = model_of(PLANS["reversed"], source, target)
    with torch.no_grad():
        for side in ("source", "target"):
            for name in (f"{side}_mean", f"{side}_scale"):
                getattr(plain, name).copy_(getattr(reversed_, name).flip(0))
        flipped = plain(updates.flip(1)).flip(1)
        torch.testing.assert_close(reversed_(updates), flipped)
        assert (model_of(PLANS["reversed-source"], source, target)(updates) - flipped).abs().max() > 1e-2


@pytest.mark.parametrize(("name", "reached"), [("per-projection", {"v"}), ("block", {"q", "v", "outside"})])
def test_projections_apart_share_nothing(name: str, reached: set[str]) -> None:
    model, updates = model_of(PLANS[name]), some_updates(SOURCE, 1)
    changed = updates.clone()
    changed[:, :2, 7:] += 3  # the source's v columns
    with torch.no_grad():
        moved = (model(changed) - model(updates))[0].abs() > 1e-5
    found = {"q": moved[:4, :6], "v": moved[:4, 6:], "outside": moved[4:]}
    assert {part for part, flags in found.items() if bool(flags.any())} == reached


@pytest.mark.parametrize("name", MODEL_PLANS)
def test_the_encoder_runs_once_and_the_decoder_sees_each_token_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(MODEL_PLANS[name])
    encoded, decoded = [], []
    for sequence, _, _ in model._sequences():
        encoder, decoder = sequence.t5.encoder, sequence.t5.decoder
        encoder.register_forward_hook(lambda *_: encoded.append(1))
        decoder.register_forward_pre_hook(
            lambda *seen: decoded.append(seen[2]["inputs_embeds"].shape[1]), with_kwargs=True
        )
    with torch.no_grad():
        model(some_updates(SOURCE, 1))
    partitioning = model.partitioning
    assert len(encoded) == len(partitioning.routes)
    assert decoded == [1] * sum(part.tokens for part in partitioning.target.parts)


@pytest.mark.parametrize("name", MODEL_PLANS)
def test_a_checkpoint_keeps_its_partition(name: str, tmp_path: Path) -> None:
    sides = UpdateSpace("a", "00", AdapterSpec(), SOURCE), UpdateSpace("b", "11", AdapterSpec(), TARGET)
    made = GradTransformer(model_of(MODEL_PLANS[name]), SMALL, *sides)
    made.save(tmp_path / "gt")
    loaded = GradTransformer.load(tmp_path / "gt")
    assert loaded.model.partitioning == made.model.partitioning
    update = some_updates(SOURCE, 1)[0].numpy()
    np.testing.assert_allclose(loaded.generate(update), made.generate(update), atol=0.03)  # stored as float16


def rewritten(path: Path, **changes: object) -> Path:
    """The checkpoint at ``path`` with other metadata."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    about = json.loads(header["__metadata__"]["grad_transformer"]) | changes
    path.write_bytes(save(load(data), {"grad_transformer": json.dumps(about)}))
    return path


def test_unknown_partitions_and_formats_are_named(tmp_path: Path) -> None:
    path = tmp_path / "gt"
    sides = UpdateSpace("a", "00", AdapterSpec(), SOURCE), UpdateSpace("b", "11", AdapterSpec(), TARGET)
    GradTransformer(model_of(PLANS["reversed"]), SMALL, *sides).save(path)
    with pytest.raises(ConfigError, match=rf"{path}: partition strategy 'rows' is unknown"):
        GradTransformer.load(rewritten(path, partition={"strategy": "rows"}))
    with pytest.raises(ConfigError, match="format 3 is unknown"):
        GradTransformer.load(rewritten(path, format=3))


def test_whole_blocks_are_stored_as_ever(tmp_path: Path) -> None:
    shipped = embedded_checkpoint()
    loaded = GradTransformer.load(shipped)
    assert loaded.model.partitioning.is_whole
    loaded.save(tmp_path / "again")
    first, second = (path.read_bytes() for path in (shipped, tmp_path / "again"))
    assert first == second


def test_each_matrix_outside_the_layers_has_its_own_scale() -> None:
    where = BlockLayout(
        "m.", 3, (Slot("q_proj.lora_B.weight", 0, (4, 1)),), (Slot("e.A", 0, (1, 2)), Slot("e.B", 2, (3, 1)))
    )
    size = torch.tensor([[1.0, 1, 1, 1], [10, 10, 100, 100], [100, 0, 0, 0]])
    signs = torch.tensor([1.0, -1.0])[:, None, None]
    fitted = Standardisation.for_layout(signs * size + 3 * (size > 0), where)
    assert torch.equal(fitted.mean, 3.0 * (size > 0))
    assert fitted.scale[:2].tolist() == [[1, 1, 1, 1], [10, 10, 100, 100]]
    assert fitted.scale[2, 0] == 100


def test_an_expert_is_a_token_in_the_block_of_its_layer() -> None:
    """Two layers of q_proj (1 value) and two experts of rank 1: A [2, 3], B [2, 2] whose columns are the experts'."""
    slots = (
        Slot("mlp.experts.lora_A.weight", 0, (2, 3), experts=2),
        Slot("mlp.experts.lora_B.weight", 6, (2, 2), experts=2),
        Slot("self_attn.q_proj.lora_B.weight", 10, (1, 1)),
    )
    where = BlockLayout("m.", 2, slots)
    updates = torch.arange(22.0).reshape(1, 2, 11)
    parts = Partition.of(where).split(updates)
    assert parts[0][0].tolist() == [[10], [21]]
    assert parts[1][0].tolist() == [
        [0, 1, 2, 6, 8],
        [3, 4, 5, 7, 9],
        [11, 12, 13, 17, 19],
        [14, 15, 16, 18, 20],
    ]
    assert [part[0].tolist() for part in Partition.of(where, reverse=True, chunk=4).split(updates)][1] == [
        *([11, 12, 13, 17], [19, 0, 0, 0], [14, 15, 16, 18], [20, 0, 0, 0]),
        *([0, 1, 2, 6], [8, 0, 0, 0], [3, 4, 5, 7], [9, 0, 0, 0]),
    ]
    for plan in PLANS.values():
        for chunk in (0, 2, 4):
            view = Partition.of(where, plan.strategy, plan.reverse != "none", chunk)
            assert torch.equal(view.join(view.split(updates)), updates)
    assert BlockLayout.from_json(json.loads(json.dumps(where.to_json()))) == where
    plain = BlockLayout("m.", 2, tuple(Slot(slot.suffix, slot.start, slot.shape) for slot in slots))
    assert plain.digest != where.digest
