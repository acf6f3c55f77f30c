"""Curation over any text tasks and any two models: other widths, depths and tokenizers; resume, workers, mechanisms."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from gradtf_fl.adapters import AdaptedModel, AdapterSpec, initial_state, load_adapter, save_adapter
from gradtf_fl.adapters.models import load_model
from gradtf_fl.baselines import Controls
from gradtf_fl.cli.main import cli
from gradtf_fl.config import TaskSection
from gradtf_fl.curation import TaskCuration, TupleStore, curate
from gradtf_fl.curation.langevin import LangevinRecipe, langevin_fine_tune
from gradtf_fl.curation.store import token_tensors
from gradtf_fl.curation.text_shadow import draw_rows, encode_causal, mixture, single
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks.task_rows import _read_once
from gradtf_fl.training.stacked import PlainRecipe, StackedAdapters, fine_tune_stacked
from gradtf_fl.transformer import GradTransformer, TrainConfig, train_grad_transformer
from gradtf_fl.transformer.model import Backbone
from gradtf_fl.transformer.sampling import ShadowSampler
from tests.curation.text_pair import CONTEXT, TextFiles, write_files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TextFiles:
    return write_files(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def whole(files: TextFiles, tmp_path_factory: pytest.TempPathFactory) -> TupleStore:
    return curate(files.curation(), tmp_path_factory.mktemp("stores") / "whole")


def same(first: TupleStore, second: TupleStore) -> bool:
    if first.names != second.names or first.header != second.header:
        return False
    shards = [(first.shard(name), second.shard(name)) for name in first.names]
    return all(
        a.about == b.about and all(torch.equal(a.tensors[key], b.tensors[key]) for key in {*a.tensors, *b.tensors})
        for a, b in shards
    )


def test_a_store_holds_each_mechanism_and_the_llms_tokens(files: TextFiles, whole: TupleStore) -> None:
    shards = {shard.name: shard for shard in whole.shards()}
    assert list(shards) == ["pairs-0000", "pairs-0001", "plain-0000", "plain-0001", "sgld-0000", "dp-0000"]
    pairs = shards["pairs-0000"]
    spec = AdapterSpec()
    for name, model in (("tiny", files.tiny), ("llm", files.llm)):
        shape = StackedAdapters.load(str(model), spec).initial.shape
        assert pairs.tensors[name].shape[-2:] == shape
        assert whole.header[name]["layout"]["blocks"] == shape[0]
    assert shards["plain-0000"].tensors["tiny"].shape[0] == 2
    assert shards["dp-0000"].tensors["tiny"].shape[0] == 1
    tokenizer = load_model(str(files.llm))[1]
    public = {one.row for one in files.curation().task_rows("animals").public}
    for shard in shards.values():
        for number, about in enumerate(shard.about["groups"]):
            if about["task"] != "animals":
                continue
            ids, labels = (shard.tensors[key][shard.tensors["group"] == number][0] for key in ("input_ids", "labels"))
            assert (ids[labels != -100] == labels[labels != -100]).all()
            allowed = {tuple(encode_causal([row], tokenizer, CONTEXT).input_ids[0].tolist()) for row in public}
            stored = [
                tuple(i[: int((k != -100).nonzero().max()) + 1].tolist()) for i, k in zip(ids, labels, strict=True)
            ]
            assert set(stored) <= allowed
    tasks = [about["task"] for name in ("plain-0000", "plain-0001") for about in shards[name].about["groups"]]
    assert sorted(task for task in tasks if "[" not in task) == ["animals", "numbers"]
    assert len({task for task in tasks if "[" in task}) == 2  # a mixture is a task of its own


def test_a_killed_run_resumes(files: TextFiles, whole: TupleStore, tmp_path: Path) -> None:
    def kill(name: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curate(files.curation(), tmp_path / "parts", kill)
    assert len(TupleStore.open(tmp_path / "parts").names) == 2
    assert same(curate(files.curation(), tmp_path / "parts"), whole)
    with pytest.raises(ConfigError, match="other settings"):
        curate(files.curation(seed=1), tmp_path / "parts")


@pytest.mark.slow
def test_processes_make_the_same_store(files: TextFiles, whole: TupleStore, tmp_path: Path) -> None:
    assert same(curate(files.curation(), tmp_path / "processes", workers=2), whole)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is an extra")
def test_ray_makes_the_same_store(files: TextFiles, whole: TupleStore, tmp_path: Path) -> None:
    assert same(curate(files.curation(), tmp_path / "ray", workers="ray"), whole)


def test_without_ray_one_clear_error(files: TextFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"gradtf-fl\[ray\]"):
        curate(files.curation(), tmp_path / "ray", workers="ray")


def test_changed_rows_are_another_store(tmp_path: Path) -> None:
    files = write_files(tmp_path)
    few: dict[str, Any] = {"shadow_sets": 1, "mixtures": 0, "mechanisms": ("adamw",)}
    curate(files.curation(**few), tmp_path / "store")
    text = files.data / "animals.txt"
    text.write_text(text.read_text().replace("cat", "dog"))
    _read_once.cache_clear()  # another process reads again
    with pytest.raises(ConfigError, match="other settings"):
        curate(files.curation(**few), tmp_path / "store")


def test_everything_missing_is_named_at_once(files: TextFiles, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        curate(files.curation(tiny="/nowhere/tiny", sources=files.sources("animals", "birds")), tmp_path / "none")
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["model '/nowhere/tiny'", "task birds"]
    assert not (tmp_path / "none").exists()
    with pytest.raises(ConfigError, match=r"task animals: \d+ public rows.*--rows"):
        curate(files.curation(rows=5000), tmp_path / "none")
    with pytest.raises(ConfigError, match=rf"task animals: answers of up to 59 tokens.*{CONTEXT - 1} .*tiny.*--window"):
        curate(files.curation(task=TaskSection(format="text", window=60), rows=2), tmp_path / "none")
    with pytest.raises(ConfigError, match="named twice"):
        curate(files.curation(sources=files.sources("animals", "animals")), tmp_path / "none")


def test_a_mixture_draws_by_its_weights_and_no_row_twice(files: TextFiles) -> None:
    rng = np.random.default_rng(0)
    public = {name: files.curation().task_rows(name) for name in ("animals", "numbers")}
    group = mixture(rng, ("animals", "numbers"))
    assert group.tasks == ("animals", "numbers")
    assert sum(group.weights[0]) == pytest.approx(1)
    drawn = draw_rows(rng, group, 8, public)[0]
    counts = [len([row for row in drawn if row in {one.row for one in public[name].public}]) for name in group.tasks]
    assert counts[0] == pytest.approx(8 * group.weights[0][0], abs=4)
    assert len(draw_rows(rng, single("animals"), 20, public)[0]) == 20


def test_the_mask_that_is_left_out_changes_no_loss(files: TextFiles) -> None:
    model, tokenizer = load_model(str(files.llm))
    rows = [files.curation().task_rows("animals").public[k].row for k in range(4)]
    from gradtf_fl.tasks import Row, encode_rows

    rows.append(Row("", "cat"))
    stack = StackedAdapters(AdaptedModel.of(model, None, AdapterSpec()))
    encoded = [encode(rows, tokenizer, CONTEXT) for encode in (encode_causal, encode_rows)]
    assert not encoded[1].attention_mask.all()
    losses = [stack.row_losses(stack.initial[None], tokens) for tokens in encoded]
    torch.testing.assert_close(losses[0], losses[1])


def test_tokens_of_several_shards_are_one_batch() -> None:
    short = (torch.tensor([[5, 6]]), torch.tensor([[-100, 6]]))
    long = (torch.tensor([[1, 2, 3, 4]]), torch.tensor([[-100, 2, 3, -100]]))
    ids, labels = token_tensors([short, long])
    assert ids.tolist() == [[5, 6, 0], [1, 2, 3]]
    assert labels.tolist() == [[-100, 6, -100], [-100, 2, 3]]


def test_langevin_is_plain_descent_plus_noise_of_its_scale(files: TextFiles) -> None:
    stack = StackedAdapters.load(str(files.tiny), AdapterSpec())
    some = [one.row for one in files.curation().task_rows("animals").public[:8]]
    rows = encode_causal(some, load_model(str(files.tiny))[1], CONTEXT)
    recipes = files.curation(plain=PlainRecipe(steps=1, batch=8), snapshots=(1,))
    seeds = [[1]]
    silent = langevin_fine_tune(stack, rows, seeds, LangevinRecipe(0.1, 0.0), recipes)[0, 0]
    theta = stack.initial[None].clone().requires_grad_(True)
    stack.row_losses(theta, rows).mean().backward()
    assert theta.grad is not None
    gradient = theta.grad[0] * min(1.0, 1.0 / float(theta.grad.norm()))
    torch.testing.assert_close(silent, -0.1 * gradient, atol=1e-6, rtol=1e-4)
    noisy = langevin_fine_tune(stack, rows, seeds, LangevinRecipe(0.1, 0.3), recipes)[0, 0]
    assert float((noisy - silent).std()) == pytest.approx(0.3, rel=0.1)
    other = fine_tune_stacked(stack, rows, 1, recipes.plain, seeds, [1])[0, 0]
    assert not torch.allclose(other, silent)


def test_the_whole_way_from_text_to_an_adapter_for_another_tokenizer(
    files: TextFiles, whole: TupleStore, tmp_path: Path
) -> None:
    out = tmp_path / "gt.safetensors"
    small = Backbone(width=16, feed_forward=32, heads=2, head_dim=8, encoder_layers=1, decoder_layers=1)
    config = TrainConfig("mse-then-functional", steps=8, groups=4, rows=1, backbone=small)
    trained = train_grad_transformer(config, whole.folder, out)
    assert (trained.source.model, trained.target.model) == (str(files.tiny), str(files.llm))
    controls = Controls.fit_on_store(whole.folder)
    assert controls.nearest(controls.tiny[1]).tolist() == controls.llm[1].tolist()
    with pytest.raises(ConfigError, match="2 shadow sets"):
        Controls.fit(controls.tiny[:2], controls.llm[:2])
    state = initial_state(load_model(str(files.tiny))[0], AdapterSpec())
    moved = {name: tensor + 0.1 for name, tensor in state.items()}
    save_adapter(tmp_path / "tiny_adapter", moved, AdapterSpec(), str(files.tiny))
    arguments = [
        "--update",
        tmp_path / "tiny_adapter",
        "--transformer",
        out,
        "--out",
        tmp_path / "llm_adapter",
        "--json",
    ]
    result = CliRunner().invoke(cli, ["generate", *map(str, arguments)])
    assert result.exit_code == 0, result.stderr
    made, spec, base = load_adapter(tmp_path / "llm_adapter")
    assert (spec, base) == (AdapterSpec(), str(files.llm))
    layout = GradTransformer.load(out).target.layout
    assert layout.to_vector(made).shape == (3, layout.block_dim)


def test_functional_batches_hold_the_rows_of_the_drawn_task(whole: TupleStore) -> None:
    sampler = ShadowSampler(whole.shards(), 1.0, 0.0)
    batch = sampler.batch(np.random.default_rng(0), 16, 2)
    numbers = batch.rows.input_ids >= 10  # the LLM's words come first, then numbers
    of_numbers = torch.tensor([task == (None, "numbers") for task in batch.tasks]).repeat_interleave(2)
    assert 0 < int(of_numbers.sum()) < 32
    assert torch.equal((numbers & (batch.rows.labels != -100)).any(1), of_numbers)


def command(*arguments: object) -> Any:
    return CliRunner().invoke(cli, ["curate", *map(str, arguments)])


def test_curate_by_command_line(files: TextFiles, tmp_path: Path) -> None:
    models = ("--tiny", files.tiny, "--llm", files.llm, "--data", files.data, "--tasks", "animals,numbers")
    sizes = ("--rows", 64, "--shadow-sets", 1, "--pair-sets", 1, "--window", 5, "--workers", 1, "--seed", 2)
    result = command("--out", tmp_path / "store", *models, *sizes, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["header"]["config"]["task"]["window"] == 5
    assert set(document["header"]["rows_sha256"]) == {"animals", "numbers"}
    mixed = command("--out", tmp_path / "no", *models, "--rules", 4, "--plain-singles", 2)
    assert mixed.exit_code == 2
    assert [line.split()[1].rstrip(":") for line in mixed.stderr.splitlines()] == ["--rules", "--plain-singles"]
    lone = command("--out", tmp_path / "no", "--window", 5, "--mechanism", "sgld")
    assert lone.exit_code == 2
    assert [line.split()[1].rstrip(":") for line in lone.stderr.splitlines()] == ["--window", "--mechanism"]
    bare = command("--out", tmp_path / "no", "--tasks", "animals")
    assert [line.split()[1].rstrip(":") for line in bare.stderr.splitlines()] == ["--tiny", "--llm", "--data"]
    assert command("--out", tmp_path / "no", "--workers", "many").exit_code == 2


def test_adapter_tuning_and_device_by_command_line(files: TextFiles, tmp_path: Path) -> None:
    models = ("--tiny", files.tiny, "--llm", files.llm, "--data", files.data, "--tasks", "animals,numbers")
    sizes = ("--rows", 64, "--shadow-sets", 1, "--pair-sets", 1, "--window", 5, "--workers", 1)
    adapter = ("--rank", 3, "--alpha", 6, "--targets", "k_proj,o_proj")
    tuning = ("--steps", 8, "--batch", 4, "--rate", 0.02, "--stack", 1, "--device", "cpu")
    result = command("--out", tmp_path / "store", *models, *sizes, *adapter, *tuning, "--json")
    assert result.exit_code == 0, result.stderr
    header = json.loads(result.stdout)["header"]
    assert header["spec"] == AdapterSpec(3, 6.0, ("k_proj", "o_proj")).to_json()
    assert header["config"]["plain"] == header["config"]["llm_recipe"] == asdict(PlainRecipe(8, 4, 0.02))
    assert header["config"]["snapshots"] == [2, 4, 6, 8]  # a quarter each, as by default
    store = TupleStore.open(tmp_path / "store")
    assert [len(shard.tensors["group"]) for shard in store.shards()] == [1] * 4
    assert store.shards()[0].tensors["tiny"].shape[0] == 4
    if not torch.cuda.is_available():
        refused = command("--out", tmp_path / "no", *models, *sizes, "--device", "cuda")
        assert refused.exit_code == 2
        assert "no CUDA device" in refused.stderr
    unknown = command("--out", tmp_path / "no", *models, *sizes, "--targets", "q_prj")
    assert unknown.exit_code == 2
    assert "q_prj" in unknown.stderr


def test_a_task_curation_is_frozen_and_its_plan_is_the_seeds(files: TextFiles) -> None:
    first, second = files.curation(), files.curation()
    assert first.plan() == second.plan()
    assert first.plan() != files.curation(seed=5).plan()
    assert isinstance(first, TaskCuration)
