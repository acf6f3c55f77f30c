"""Exact resume: at every step, after SIGKILL at random moments, and of nothing but the same run."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gradtf_fl.errors import ConfigError, CorruptFile, GradtfError
from gradtf_fl.privacy import DpEvent
from gradtf_fl.tasks import TokenRows
from gradtf_fl.training import dp_checkpoint
from gradtf_fl.training.dp_sgd import DpCheckpoint, DpOutcome, train_dp

from .conftest import lora_model, trainable

PLAN: dict[str, Any] = {"sigma": 1.0, "clip": 0.5, "batch": 4, "steps": 12, "rate": 1e-2, "seed": 7}


def adapter(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainable(model).values()])


def run(rows: TokenRows, path: Path | None, every: int = 1, stop_at: int = 0, **plan: Any) -> tuple[Any, DpOutcome]:
    """(adapter, outcome); KeyboardInterrupt after step ``stop_at``."""

    def stop(done: int, _: int) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    model = lora_model(lora_dropout=0.2)
    checkpoint = None if path is None else DpCheckpoint(path, every)
    outcome = train_dp(model, rows, **{**PLAN, **plan}, progress=stop, checkpoint=checkpoint)
    return adapter(model), outcome


@pytest.mark.parametrize("every", [1, 5])
def test_resume_at_every_step_is_exact(random_rows: TokenRows, tmp_path: Path, every: int) -> None:
    expected, outcome = run(random_rows, None)
    assert outcome.event == DpEvent(1.0, 1 / 3, 12)
    for stop_at in range(1, 13):
        path = tmp_path / f"{stop_at}"
        with pytest.raises(KeyboardInterrupt):
            run(random_rows, path, every, stop_at)
        found, resumed = run(random_rows, path, every)
        assert torch.equal(found, expected)
        assert resumed == replace(outcome, resumed_at=stop_at)  # the same event, the same mean loss to the bit


def test_many_interruptions_of_one_run(random_rows: TokenRows, tmp_path: Path) -> None:
    expected, outcome = run(random_rows, None)
    for stop_at in (2, 3, 7, 11):
        with pytest.raises(KeyboardInterrupt):
            run(random_rows, tmp_path / "state", 1, stop_at)
    found, resumed = run(random_rows, tmp_path / "state")
    assert torch.equal(found, expected)
    assert resumed == replace(outcome, resumed_at=11)


def test_a_finished_run_takes_no_new_step(random_rows: TokenRows, tmp_path: Path) -> None:
    path = tmp_path / "state"
    found, outcome = run(random_rows, path, every=100, seed=None)
    assert path.stat().st_mode & 0o777 == 0o600
    again, repeated = run(random_rows, path, every=100, stop_at=12, seed=None)  # no step: nothing stops it
    assert torch.equal(found, again)
    assert repeated == replace(outcome, resumed_at=12)


def test_noise_of_the_operating_system_is_never_repeated(random_rows: TokenRows, tmp_path: Path) -> None:
    path = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        run(random_rows, path, 1, 5, seed=None)
    kept = path.read_bytes()
    ends = []
    for _ in range(2):
        path.write_bytes(kept)
        found, outcome = run(random_rows, path, seed=None)
        assert (outcome.event.steps, outcome.resumed_at) == (12, 5)
        ends.append(found)
    assert not torch.equal(*ends)


@pytest.mark.parametrize("other", ["sigma", "clip", "batch", "steps", "rate", "seed", "sampler"])
def test_another_plan_is_refused(random_rows: TokenRows, tmp_path: Path, other: str) -> None:
    run(random_rows, tmp_path / "state", steps=2)
    changed = {"steps": 2, other: {"sigma": 1.1, "clip": 0.6, "rate": 2e-2, "sampler": "opacus"}.get(other, 3)}
    with pytest.raises(ConfigError, match="a different run"):
        run(random_rows, tmp_path / "state", **changed)


def test_other_rows_or_another_model_are_refused(random_rows: TokenRows, tmp_path: Path) -> None:
    path = tmp_path / "state"
    run(random_rows, path, steps=2)
    labels = random_rows.labels.clone()
    labels[0, 4] = 1
    with pytest.raises(ConfigError, match="a different run"):
        run(TokenRows(random_rows.input_ids, random_rows.attention_mask, labels), path, steps=2)
    for name in ("lora_A", "layers.0.mlp.up_proj"):
        model = lora_model(lora_dropout=0.2)
        next(p for key, p in model.named_parameters() if name in key).data[0, 0] += 1e-3
        with pytest.raises(ConfigError, match="a different run"):
            train_dp(model, random_rows, **{**PLAN, "steps": 2}, checkpoint=DpCheckpoint(path))
    with pytest.raises(ConfigError, match="at least 1 step"):
        run(random_rows, path, every=0)


def test_no_damaged_file_is_used(random_rows: TokenRows, tmp_path: Path) -> None:
    path = tmp_path / "state"
    run(random_rows, path, steps=2)
    whole = path.read_bytes()
    damaged = [whole[:size] for size in (0, 7, 100, len(whole) - 1)]
    for position in random.Random(0).sample(range(len(whole)), 40):
        damaged.append(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            dp_checkpoint._unpack(path)
        except CorruptFile:
            refused += 1
    assert refused == len(damaged)
    with pytest.raises(GradtfError):
        run(random_rows, path, steps=2)


def test_a_writer_that_dies_leaves_the_old_file(
    random_rows: TokenRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        run(random_rows, path, 1, 4)
    old = path.read_bytes()

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            run(random_rows, path)
    assert path.read_bytes() == old
    assert torch.equal(run(random_rows, path)[0], run(random_rows, None)[0])


STEPS_UNDER_FIRE = 60


def train_under_fire(rows: TokenRows, folder: Path) -> None:
    """What the killed process does: a run with a save after every second step; its end is written at last."""
    torch.set_num_threads(1)
    torch.set_num_threads(1)
    found, outcome = run(rows, folder / "state", every=2, steps=STEPS_UNDER_FIRE)
    torch.save((found, outcome), folder / "end.new")
    (folder / "end.new").rename(folder / "end")


@pytest.mark.alone
@pytest.mark.parametrize("kills", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments_changes_no_bit(random_rows: TokenRows, tmp_path: Path, kills: int) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gradtf_fl.training.dp_sgd", "transformers.models.llama.modeling_llama"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums of floats are the same bits for the same number of threads only
    try:
        expected, outcome = run(random_rows, None, steps=STEPS_UNDER_FIRE)
    finally:
        torch.set_num_threads(threads)
    moments = random.Random(kills)
    resumed_at: list[int] = []
    died = finished = 0
    while died < kills or not finished:
        folder = tmp_path / str(finished)
        folder.mkdir(exist_ok=True)
        child = context.Process(target=train_under_fire, args=(random_rows, folder))
        state = folder / "state"
        before = state.stat().st_mtime_ns if state.exists() else 0
        child.start()
        if died < kills:
            while child.is_alive() and (not state.exists() or state.stat().st_mtime_ns == before):
                time.sleep(0.001)  # until it has saved once: a child that is always killed earlier gets nowhere
            child.join(moments.uniform(0, 0.12))
            child.kill()
        child.join()
        died += child.exitcode == -9
        assert child.exitcode in (0, -9)
        if (folder / "end").exists():
            found, resumed = torch.load(folder / "end", weights_only=False)
            assert torch.equal(found, expected)
            assert replace(resumed, resumed_at=0) == outcome
            resumed_at.append(resumed.resumed_at)
            finished += 1
    assert died >= kills
    assert any(0 < steps < STEPS_UNDER_FIRE for steps in resumed_at)
