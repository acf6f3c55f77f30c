"""Where training runs: devices, precisions, and several processes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gradtf_fl.adapters import AdapterSpec, Place
from gradtf_fl.curation import TupleStore
from gradtf_fl.errors import ConfigError
from gradtf_fl.training.stacked import StackedAdapters
from gradtf_fl.transformer import GradTransformer, train_grad_transformer
from gradtf_fl.transformer.objectives import Objectives
from gradtf_fl.transformer.processes import ALONE, Processes
from gradtf_fl.transformer.sampling import ShadowSampler
from tests.transformer.random_store import CONFIG, CPU


def test_a_place_that_is_not_there_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError) as refused:
        train_grad_transformer(replace(CONFIG, device="cuda", precision="bf16"), tmp_path / "none", tmp_path / "gt")
    assert [problem.split()[:2] for problem in refused.value.problems] == [["device", "'cuda':"]]
    with pytest.raises(ConfigError) as unknown:
        Place.find("tpu", "int8")
    assert len(unknown.value.problems) == 2
    assert Place.find("auto", "float32").device == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated: False)
    with pytest.raises(ConfigError, match="bf16"):
        Place.find("auto", "bf16")
    assert Place.find("auto", "float32", number=3).device == torch.device("cuda", 3)


def test_bf16_is_close_to_float32(objectives: Callable[[Processes], Objectives], random_tuples: Path) -> None:
    sampler = ShadowSampler(TupleStore.open(random_tuples).shards(), 0.5, 0.2)
    batch, pairs = sampler.batch(np.random.default_rng(0), 4, 2), sampler.tuples(np.random.default_rng(0), 4)
    exact = objectives(ALONE)
    place = replace(CPU, precision="bf16")
    llm = StackedAdapters.load("embedded:llm", AdapterSpec(), place)
    assert llm.model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert llm.initial.dtype == llm.model.model.rotary_emb.inv_freq.dtype == torch.float32
    rough = replace(exact, llm=llm, place=place)
    for one, other in (
        (exact.mse(*pairs), rough.mse(*pairs)),
        (exact.distance(*pairs), rough.distance(*pairs)),
        (exact.functional(batch.updates, batch.rows)[0], rough.functional(batch.updates, batch.rows)[0]),
    ):
        assert one != other
        assert other.dtype == torch.float32
        torch.testing.assert_close(other, one, rtol=0.05, atol=0)


def test_shares_of_several_processes_add_up_to_one_process(
    random_tuples: Path, objectives: Callable[[Processes], Objectives]
) -> None:
    sampler = ShadowSampler(TupleStore.open(random_tuples).shards(), 0.5, 0.2)
    batch, pairs = sampler.batch(np.random.default_rng(0), 5, 2), sampler.tuples(np.random.default_rng(0), 5)
    model = objectives(ALONE).model

    class Apart(Processes):
        def total(self, values: torch.Tensor) -> torch.Tensor:
            return values.detach()

    def gradient(loss_of: Callable[[Objectives], torch.Tensor], *processes: Processes) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        losses = [loss_of(objectives(one)) for one in processes]
        torch.autograd.backward(losses)  # adds up, as `add_gradients` does
        assert model.output.weight.grad is not None
        return float(sum(loss.detach() for loss in losses)), model.output.weight.grad.clone()

    for loss_of in (
        lambda o: replace(o, model=model).mse(*pairs),
        lambda o: replace(o, model=model).functional(batch.updates, batch.rows)[0],
    ):
        whole, parts = gradient(loss_of, ALONE), gradient(loss_of, Apart(0, 2), Apart(1, 2))
        assert math.isclose(whole[0], parts[0], rel_tol=1e-5)
        torch.testing.assert_close(whole[1], parts[1], rtol=1e-3, atol=1e-6)
    losses = [objectives(one).functional(batch.updates, batch.rows)[1] for one in (Apart(0, 2), Apart(1, 2))]
    assert [loss == 0 for loss in losses[0]] == [False, True, False, True, False]
    assert [loss == 0 for loss in losses[1]] == [True, False, True, False, True]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 2e-3), ("bf16", 3e-2)])
def test_a_cuda_device_trains_what_the_cpu_does(
    precision: str, tolerance: float, random_tuples: Path, tmp_path: Path
) -> None:
    here = replace(CONFIG, validate_every=2, checkpoint_every=4)
    there = replace(here, device="cuda", precision=precision)
    made = {
        config.device: train_grad_transformer(config, random_tuples, tmp_path / config.device)
        for config in (here, there)
    }
    losses = [
        [loss for _, loss in json.loads((tmp_path / f"{device}.json").read_text())["validations"]] for device in made
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=tolerance)
    assert {p.device.type for p in made["cuda"].model.parameters()} == {"cpu"}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torch.distributed.run", "accelerate.commands.launch"])
def test_two_processes_train_what_one_does(launcher: str, random_tuples: Path, tmp_path: Path) -> None:
    options = ("--steps", "4", "--groups", "4", "--rows", "2", "--rate", "1e-3", "--validate-every", "2", "--seed", "3")
    command = ("gradtf_fl.cli.main", "train", "--tuples", str(random_tuples), *options)
    one, two = tmp_path / "one", tmp_path / "two"
    start = {
        "torch.distributed.run": ("--nproc-per-node=2", "--master-port=29517", "-m"),
        "accelerate.commands.launch": ("--cpu", "--num_processes=2", "--main_process_port=29518", "--module"),
    }[launcher]
    subprocess.run([sys.executable, "-m", *command, "--out", one], check=True)
    found = subprocess.run(
        [sys.executable, "-m", launcher, *start, *command, "--out", two], check=True, capture_output=True, text=True
    )
    assert found.stdout.count("SHA-256") == 1  # one process writes and reports
    first, second = (json.loads(Path(f"{path}.json").read_text()) for path in (one, two))
    np.testing.assert_allclose(
        [loss for _, loss in second["validations"]], [loss for _, loss in first["validations"]], rtol=1e-3
    )
    made = [GradTransformer.load(path) for path in (one, two)]
    update = np.full((made[0].source.layout.blocks, made[0].source.layout.block_dim), 0.1, np.float32)
    np.testing.assert_allclose(made[0].generate(update), made[1].generate(update), atol=0.02)
