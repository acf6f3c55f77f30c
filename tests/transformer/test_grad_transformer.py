"""The Grad-Transformer: generation equals teacher forcing on its own output, checkpoints, and that it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gradtf_fl.adapters import AdapterSpec, UpdateSpace
from gradtf_fl.adapters.update_vectors import BlockLayout, Slot
from gradtf_fl.curation import CurationConfig, TupleStore, curate
from gradtf_fl.errors import ConfigError, CorruptFile
from gradtf_fl.training.stacked import DpRecipe, PlainRecipe
from gradtf_fl.transformer import GradTransformer, TrainConfig, train_grad_transformer
from gradtf_fl.transformer.model import Backbone, GradTransformerModel, Standardisation

SMALL = Backbone(width=32, feed_forward=48, heads=2, head_dim=16)
TRIAL = CurationConfig(
    rows=64,
    rules=6,
    single_groups=1,
    extra_singles=1,
    mixture_groups=2,
    plain_singles=2,
    plain_mixtures=2,
    pair_singles=2,
    pair_mixtures=2,
    plain=PlainRecipe(steps=20, batch=8),
    llm_recipe=PlainRecipe(steps=20, batch=8),
    dp=DpRecipe(rounds=2, steps=3, batch=8),
    snapshots=(10, 20),
    last_k=2,
)


def small_model(seed: int = 0) -> GradTransformerModel:
    torch.manual_seed(seed)
    source = Standardisation(torch.randn(2, 12), torch.rand(2, 12) + 0.5)
    target = Standardisation(torch.randn(5, 20), torch.rand(5, 20) + 0.5)
    return GradTransformerModel(SMALL, source, target).eval()


@pytest.fixture(scope="module")
def tuples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuples")
    curate(TRIAL, folder)
    return folder


def test_cached_generation_equals_teacher_forcing_on_its_own_blocks() -> None:
    model = small_model()
    updates = torch.randn(3, 2, 12)
    with torch.no_grad():
        generated = model(updates)
        forced = model.teacher_forced(updates, generated) * model.target_scale + model.target_mean
    torch.testing.assert_close(forced, generated, atol=1e-4, rtol=1e-4)


def test_later_blocks_never_change_earlier_ones() -> None:
    model = small_model()
    updates, targets = torch.randn(1, 2, 12), torch.randn(1, 5, 20)
    changed = targets.clone()
    changed[:, 3:] += 5
    with torch.no_grad():
        first, second = model.teacher_forced(updates, targets), model.teacher_forced(updates, changed)
    torch.testing.assert_close(first[:, :4], second[:, :4])
    assert (first[:, 4] - second[:, 4]).abs().max() > 1e-3


def test_gradients_flow_through_generation_to_every_parameter() -> None:
    model = small_model().train()
    model(torch.randn(2, 2, 12)).square().mean().backward()
    for name, parameter in model.named_parameters():
        if "shared" not in name and "embed_tokens" not in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_standardisation_has_one_scale_per_block_and_matrix() -> None:
    updates = torch.randn(500, 2, 6) * torch.tensor([1.0, 1, 1, 10, 10, 10]) + 3
    fitted = Standardisation.fit(updates, [(0, 3), (3, 6)])
    torch.testing.assert_close(fitted.mean, updates.mean(0))
    assert fitted.scale.shape == (2, 6)
    assert torch.equal(fitted.scale[:, 0], fitted.scale[:, 2])
    torch.testing.assert_close(fitted.scale[0, 3] / fitted.scale[0, 0], torch.tensor(10.0), atol=1.5, rtol=0)


def checkpoint(path: Path) -> GradTransformer:
    source = UpdateSpace("a", "00", AdapterSpec(), BlockLayout("m.", 2, (Slot("q.lora_A.weight", 0, (2, 6)),)))
    target = UpdateSpace("b", "11", AdapterSpec(), BlockLayout("m.", 5, (Slot("q.lora_A.weight", 0, (2, 10)),)))
    made = GradTransformer(small_model(), SMALL, source, target)
    made.save(path)
    return made


def test_checkpoint_round_trip_and_refusals(tmp_path: Path) -> None:
    path = tmp_path / "gt.safetensors"
    made = checkpoint(path)
    loaded = GradTransformer.load(path)
    update = np.random.default_rng(0).normal(size=(2, 12)).astype(np.float32)
    np.testing.assert_allclose(loaded.generate(update), made.generate(update), atol=0.03)  # stored as float16
    assert (loaded.source, loaded.target) == (made.source, made.target)
    with pytest.raises(ConfigError, match="takes"):
        loaded.generate(update[:1])
    with pytest.raises(ConfigError, match="NaN"):
        loaded.generate(update * np.nan)
    with pytest.raises(ConfigError, match="no such file"):
        GradTransformer.load(tmp_path / "none")
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptFile, match="SHA-256"):
        GradTransformer.load(path)
    path.write_bytes(b"junk")
    with pytest.raises(CorruptFile, match="damaged"):
        GradTransformer.load(path)


@pytest.mark.parametrize("objective", ["mse", "functional", "mse-then-functional"])
def test_every_objective_lowers_its_loss(tuples: Path, tmp_path: Path, objective: str) -> None:
    losses: list[float] = []
    config = TrainConfig(objective=objective, steps=60, groups=6, rows=4, rate=3e-3, warm_up=5, backbone=SMALL)  # type: ignore[arg-type]
    made = train_grad_transformer(config, tuples, tmp_path / "gt", lambda step, total, loss: losses.append(loss))
    assert sum(losses[-10:]) < 0.9 * sum(losses[-60:-50])
    update = TupleStore.open(tuples).shards()[0].tensors["tiny"][-1, 0].numpy()
    assert made.generate(update).shape == (made.target.layout.blocks, made.target.layout.block_dim)


def test_a_killed_training_run_resumes_to_the_same_checkpoint(tuples: Path, tmp_path: Path) -> None:
    config = TrainConfig(steps=6, groups=2, rows=2, checkpoint_every=2, backbone=SMALL)
    whole = train_grad_transformer(config, tuples, tmp_path / "whole")

    def kill(step: int, total: int, loss: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_grad_transformer(config, tuples, tmp_path / "parts", kill)
    assert (tmp_path / "parts.training").exists()
    with pytest.raises(ConfigError, match="other settings"):
        train_grad_transformer(TrainConfig(steps=7, groups=2, rows=2, backbone=SMALL), tuples, tmp_path / "parts")
    resumed = train_grad_transformer(config, tuples, tmp_path / "parts")
    assert resumed.sha256 == whole.sha256


def test_training_refuses_missing_and_damaged_stores(tuples: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"index\.json"):
        train_grad_transformer(TrainConfig(), tmp_path, tmp_path / "gt")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in tuples.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    shard = next(damaged.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(CorruptFile, match="SHA-256"):
        train_grad_transformer(TrainConfig(), damaged, tmp_path / "gt")
