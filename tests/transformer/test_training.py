"""Training: refusals, validation on generated updates, the best weights, and going on after kill -9."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradtf_fl.curation import Shard, TupleStore
from gradtf_fl.errors import ConfigError
from gradtf_fl.training.stacked import StackedAdapters
from gradtf_fl.transformer import TrainConfig, train_grad_transformer, training
from gradtf_fl.transformer.objectives import Objectives
from gradtf_fl.transformer.processes import ALONE, Processes
from gradtf_fl.transformer.sampling import ShadowSampler
from gradtf_fl.transformer.training import new_optimizers, take_step
from gradtf_fl.transformer.validation import BATCHES, Validation, hold_out
from tests.transformer.random_store import CONFIG, SMALL, federation


def test_settings_that_no_machine_can_train_with_are_named_together(random_tuples: Path, tmp_path: Path) -> None:
    bad = replace(CONFIG, partition="rows", validation_share=1.0, validate_every=-1, patience=0)
    with pytest.raises(ConfigError) as refused:
        train_grad_transformer(bad, random_tuples, tmp_path / "gt")
    assert [p.split()[0] for p in refused.value.problems] == [
        *("partition", "validation_share", "validate_every", "patience")
    ]
    with pytest.raises(ConfigError, match="groups 4"):
        CONFIG.check(processes=5)


def test_the_scale_is_the_same_learnt_a_block_at_a_time(random_tuples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TupleStore.open(random_tuples)
    sampler = ShadowSampler(store.shards(), 0.5, 0.2)
    sides = [training._space(store.header, role) for role in ("tiny", "llm")]
    whole = training._new_model(CONFIG, sampler, *sides)
    monkeypatch.setattr(training, "FIT_BYTES", 1)
    sampler = ShadowSampler(store.shards(), 0.5, 0.2)
    for name, value in training._new_model(CONFIG, sampler, *sides).state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name])


def test_held_out_federations_are_of_every_kind_and_training_never_sees_them(random_tuples: Path) -> None:
    shards = TupleStore.open(random_tuples).shards()
    held = hold_out(shards, 0.25, seed=0)
    kinds = [(number, len(shards[number].about["groups"][g]["parts"]) > 1) for number, g in held]
    assert {kind: kinds.count(kind) for kind in sorted(kinds)} == {  # a quarter of 12 singles, of 4 mixtures
        **{(number, False): 3 for number in range(3)},
        **{(number, True): 1 for number in range(3)},
    }
    assert held == hold_out(shards, 0.25, seed=0) != hold_out(shards, 0.25, seed=1)
    everyone = {(number, g) for number, shard in enumerate(shards) for g in range(len(shard.about["groups"]))}
    seen = ShadowSampler(shards, 0.5, 0.2, held)
    kept = {ref for refs in seen.sets.values() for ref in refs}  # each set is a federation of its own here
    assert kept == everyone - held
    singles = {task for task in seen.sets if len(json.loads(task[1])) == 1}
    assert len(singles) == 4 * 2  # every task is still trained, with and without DP
    assert len(seen.outputs()) == 16 - sum(number == 0 for number, _ in held)
    alone = Shard("plain", shards[1].tensors, {"groups": [federation("a")]})
    with pytest.raises(ConfigError, match="held out"):
        hold_out([alone], 0.25, 0)


@torch.no_grad()
@pytest.mark.parametrize("objective", ["mse", "functional"])
def test_validation_scores_what_is_generated(
    objective: Any,
    random_tuples: Path,
    objectives: Callable[[Processes], Objectives],
    stacks: dict[str, StackedAdapters],
) -> None:
    config, made = replace(CONFIG, objective=objective), objectives(ALONE)
    validation = Validation.of(TupleStore.open(random_tuples).shards(), config)
    rng, model, losses = np.random.default_rng([config.seed, 13]), made.model.eval(), []
    for _ in range(BATCHES):
        if objective == "mse":
            updates, targets = validation.sampler.tuples(rng, 4)
            losses.append(float(((model(updates) - targets) / 0.1).square().mean()))
            assert abs(losses[-1] - float(model.mse(updates, targets))) > 1e-4  # teacher-forced is another figure
        else:
            batch = validation.sampler.batch(rng, 4, 2)
            losses.append(float(stacks["llm"].row_losses(made.llm.initial + model(batch.updates), batch.rows).mean()))
    assert math.isclose(validation.loss(made, config), sum(losses) / BATCHES, rel_tol=1e-5)
    assert model.training


def test_the_best_weights_are_kept_and_patience_ends_training(
    random_tuples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, weights = [3.0, math.nan, 1.0, 2.0, 1.0, *[0.5] * 5], []

    def scripted(_: Validation, objectives: Objectives, config: TrainConfig) -> float:
        weights.append({n: t.clone() for n, t in objectives.model.state_dict().items()})
        return script[len(weights) - 1]

    monkeypatch.setattr(Validation, "loss", scripted)
    config = replace(CONFIG, steps=20, validate_every=2, patience=2)
    made = train_grad_transformer(config, random_tuples, tmp_path / "gt")
    record = json.loads((tmp_path / "gt.json").read_text())
    assert record["validations"] == [[2, 3.0], [4, math.inf], [6, 1.0], [8, 2.0], [10, 1.0]]
    assert (record["best_step"], record["steps"]) == (6, 10)
    best, last = weights[2]["output.weight"], weights[4]["output.weight"]
    torch.testing.assert_close(made.model.output.weight, best.half().float())
    assert (best - last).abs().max() > 1e-3
    weights.clear()
    train_grad_transformer(replace(config, patience=3), random_tuples, tmp_path / "patient")
    assert json.loads((tmp_path / "patient.json").read_text())["best_step"] == 12


TRAIN_AND_DIE = """
import os, pickle, signal, sys
from gradtf_fl.transformer import train_grad_transformer

def die(step, total, loss):
    if step == 7:
        os.kill(os.getpid(), signal.SIGKILL)

train_grad_transformer(pickle.loads(bytes.fromhex(sys.argv[1])), sys.argv[2], sys.argv[3], die)
"""


def test_after_kill_9_the_result_is_that_of_a_whole_run(random_tuples: Path, tmp_path: Path) -> None:
    import pickle

    dropout = replace(SMALL, dropout=0.2)  # torch's random state has to go on too
    config = replace(CONFIG, checkpoint_every=4, validate_every=2, patience=3, backbone=dropout)
    whole = train_grad_transformer(config, random_tuples, tmp_path / "whole")
    arguments = (pickle.dumps(config).hex(), str(random_tuples), str(tmp_path / "killed"))
    killed = subprocess.run([sys.executable, "-c", TRAIN_AND_DIE, *arguments], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "killed.training").exists()
    assert train_grad_transformer(config, random_tuples, tmp_path / "killed").sha256 == whole.sha256
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "killed"))
    assert first["validations"] == second["validations"]
    assert len(first["validations"]) == 4


def test_a_step_clips_the_gradient(objectives: Callable[[Processes], Objectives]) -> None:
    model = objectives(ALONE).model
    take_step(model, new_optimizers(model, CONFIG), 1e6 * model(torch.ones(1, *model.source_mean.shape)).sum())
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    assert math.isclose(float(torch.stack(norms).norm()), 1.0, rel_tol=1e-3)
