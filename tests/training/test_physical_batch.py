"""How many rows go through the model at once: found out on made-up rows, halved where memory runs out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gradtf_fl.config import ComputeSection, Sampler
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import TokenRows
from gradtf_fl.training import memory, physical_batch, private_adam, rehearsal
from gradtf_fl.training.dp_sgd import DpCheckpoint, train_dp
from gradtf_fl.training.memory import is_out_of_memory, peak_bytes
from gradtf_fl.training.physical_batch import MOST_ROWS, StepMemory, fit_physical_batch, half_of, step_memory
from gradtf_fl.training.randomness import Draws
from gradtf_fl.training.rehearsal import measure_step, rehearse
from gradtf_fl.training.row_losses import RowLosses

from .conftest import lora_model, trainable

PLAN: dict[str, Any] = {"sigma": 1.0, "clip": 0.5, "batch": 9, "steps": 6, "rate": 1e-2, "seed": 7}
SAMPLERS: list[Sampler] = ["lora", "opacus"]
CPU = torch.device("cpu")


def adapter(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainable(model).values()])


class Device:
    """Memory for so many rows at once, from the given step on."""

    def __init__(self, model: nn.Module, rows: int, from_call: int = 0) -> None:
        self.seen: list[int] = []
        self._rows, self._from_call = rows, from_call
        model.get_base_model().lm_head.register_forward_hook(self._check)  # late: layers have kept activations

    def _check(self, _: nn.Module, args: tuple[torch.Tensor], __: torch.Tensor) -> None:
        rows = len(args[0])
        self.seen.append(rows)
        if len(self.seen) > self._from_call and rows > self._rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_out_of_memory_at_once_ends_with_the_bits_of_smaller_parts(random_rows: TokenRows, sampler: Sampler) -> None:
    expected = lora_model(lora_dropout=0.2)
    outcome = train_dp(expected, random_rows, **PLAN, physical_batch=2, sampler=sampler)
    model = lora_model(lora_dropout=0.2)
    device = Device(model, rows=3)
    assert train_dp(model, random_rows, **PLAN, physical_batch=8, sampler=sampler) == outcome
    assert torch.equal(adapter(model), adapter(expected))
    assert max(device.seen) == 8
    assert device.seen.count(8) == device.seen.count(4) == 1  # tried once, and never again


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("part", [1, 2, 5])
def test_out_of_memory_in_the_middle_repeats_its_step_with_the_same_draws_and_noise(
    random_rows: TokenRows, sampler: Sampler, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first or second part of a step: what that step has summed up is thrown away."""
    noise: list[tuple[int, torch.Tensor]] = []
    blocks = Draws.normal_blocks

    def noted(self: Draws, step: int, count: int, device: torch.device) -> Iterator[tuple[int, torch.Tensor]]:
        for first, drawn in blocks(self, step, count, device):
            noise.append((step, drawn))
            yield first, drawn

    monkeypatch.setattr(Draws, "normal_blocks", noted)
    expected, model = lora_model(), lora_model()
    outcome = train_dp(expected, random_rows, **PLAN, physical_batch=4, sampler=sampler)
    wanted, noise = noise, []
    Device(model, rows=3, from_call=1 + part)  # the first call is the probe's
    found = train_dp(model, random_rows, **PLAN, physical_batch=4, sampler=sampler)
    assert found.event == outcome.event
    assert found.mean_loss == pytest.approx(outcome.mean_loss, rel=1e-5)
    torch.testing.assert_close(adapter(model), adapter(expected), atol=1e-5, rtol=0)  # other order of addition
    assert [step for step, _ in noise] == [step for step, _ in wanted] == list(range(6))
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(noise, wanted, strict=True))


def test_out_of_memory_while_rows_are_clipped_is_the_same(
    random_rows: TokenRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the backward pass, with a signal to Opacus still waiting."""
    expected, model = lora_model(), lora_model()
    train_dp(expected, random_rows, **PLAN, physical_batch=2)
    summed = private_adam.unit_sum

    def narrow(gradients: Sequence[torch.Tensor], clip: float) -> torch.Tensor:
        if len(gradients[0]) > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        return summed(gradients, clip)

    monkeypatch.setattr(private_adam, "unit_sum", narrow)
    train_dp(model, random_rows, **PLAN, physical_batch=4)
    assert torch.equal(adapter(model), adapter(expected))


def test_a_step_that_is_being_released_is_not_repeated(random_rows: TokenRows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam may have moved a part of the adapter: the same noise on a second sum would be a second release."""

    tried = []

    def fail(*_: Any, **__: Any) -> None:
        tried.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim.Adam, "step", fail)
    with pytest.raises(torch.OutOfMemoryError):
        train_dp(lora_model(), random_rows, **PLAN, physical_batch=4)
    assert len(tried) == 1


def test_other_errors_and_single_rows_are_not_repeated(random_rows: TokenRows) -> None:
    model = lora_model()
    device = Device(model, rows=0, from_call=5)  # the calls before belong to the preflight
    with pytest.raises(torch.OutOfMemoryError):
        train_dp(model, random_rows, **PLAN, physical_batch=4)
    assert device.seen == [3, 1, 1, 1, 2, 4, 2, 1]
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"))
    assert is_out_of_memory(MemoryError())


def test_halves() -> None:
    assert [half_of(512, 60), half_of(512, 512), half_of(3, 2), half_of(8, 8), half_of(2, 2)] == [32, 256, 1, 4, 1]


def test_a_run_resumes_with_another_physical_batch(random_rows: TokenRows, tmp_path: Path) -> None:
    """A device that ran out of memory halves it: the file must still be of the same run."""

    def stop(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    whole, model = lora_model(), lora_model()
    train_dp(whole, random_rows, **PLAN, physical_batch=4)
    checkpoint = DpCheckpoint(tmp_path / "state", every=1)
    with pytest.raises(KeyboardInterrupt):
        train_dp(model, random_rows, **PLAN, physical_batch=4, checkpoint=checkpoint, progress=stop)
    model = lora_model()
    resumed = train_dp(model, random_rows, **PLAN, physical_batch=2, gradient_checkpointing=True, checkpoint=checkpoint)
    assert resumed.resumed_at == 3
    torch.testing.assert_close(adapter(model), adapter(whole), atol=1e-5, rtol=0)


def test_peak_bytes_by_hand() -> None:
    def work() -> None:
        a = torch.zeros(1000)  # 4000 bytes
        b = a * 2  # 8000
        view = b.view(10, 100)  # no new ones
        view += 1
        del a, b, view
        x = torch.ones(500, requires_grad=True)  # 2000
        torch.autograd.backward((x * 2).sum())

    assert peak_bytes(work) == 8000


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_memory_of_a_step_is_linear_in_its_rows(random_rows: TokenRows, sampler: Sampler, checkpointing: bool) -> None:
    model = lora_model()
    compute = ComputeSection(sampler=sampler, gradient_checkpointing=checkpointing)
    with rehearsal._optimizer(model, 4, compute) as optimizer:
        made_up = RowLosses(model, random_rows).made_up(16)
        memory = step_memory(optimizer, made_up)
        for rows in (4, 16):
            found = peak_bytes(lambda rows=rows: physical_batch.try_rows(optimizer, made_up, rows))  # type: ignore[misc]
            assert memory.of(rows) == pytest.approx(found, rel=0.1)


def test_checkpointing_takes_less_memory_for_a_row(random_rows: TokenRows) -> None:
    wide = TokenRows(
        *(tensor.repeat(1, 4) for tensor in (random_rows.input_ids, random_rows.attention_mask)),
        *(tensor.repeat(1, 4) for tensor in (random_rows.labels,)),
    )
    model = lora_model()
    costs = []
    for checkpointing in (False, True):
        with rehearsal._optimizer(model, 4, ComputeSection(gradient_checkpointing=checkpointing)) as optimizer:
            costs.append(step_memory(optimizer, RowLosses(model, wide).made_up(4)).row)
    assert costs[1] < 0.8 * costs[0]


def test_made_up_rows_hold_nothing_of_the_real_ones_and_are_as_wide(random_rows: TokenRows) -> None:
    forward = RowLosses(lora_model(), random_rows)
    made_up = forward.made_up(3)
    assert made_up.rows.input_ids.tolist() == [[n % 40 for n in range(i * 9, i * 9 + 9)] for i in range(3)]
    assert (made_up.width, forward.width) == (9, 9)
    assert int(made_up.first_label.min()) == int(forward.first_label.min()) == 2
    assert bool(made_up.rows.attention_mask.all())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_physical_batch_follows_from_the_memory_at_hand(
    random_rows: TokenRows, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lora_model()
    compute = ComputeSection(sampler=sampler)
    before = adapter(model)
    assert rehearse(model, random_rows, 4, compute) == MOST_ROWS
    with rehearsal._optimizer(model, 4, compute) as optimizer:
        memory = step_memory(optimizer, RowLosses(model, random_rows).made_up(2))
    room = round((memory.fixed + 7.5 * memory.row) / physical_batch.ROOM)
    monkeypatch.setattr(physical_batch, "available_bytes", lambda _: room)
    assert rehearse(model, random_rows, 4, compute) == 7
    assert rehearse(model, random_rows, 4, ComputeSection(sampler=sampler, physical_rows=3)) == 3
    monkeypatch.setattr(physical_batch, "available_bytes", lambda _: memory.fixed)
    with pytest.raises(ConfigError, match="one row of 9 tokens does not fit alongside the model"):
        rehearse(model, random_rows, 4, compute)
    assert torch.equal(adapter(model), before)
    assert all(p.grad is None and not vars(p) for p in model.parameters())


def test_auto_is_found_before_a_step_and_changes_nothing(
    random_rows: TokenRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed, found = lora_model(lora_dropout=0.2), lora_model(lora_dropout=0.2)
    train_dp(fixed, random_rows, **PLAN, physical_batch=3)
    monkeypatch.setattr(physical_batch, "MOST_ROWS", 3)
    train_dp(found, random_rows, **PLAN, physical_batch="auto")
    assert torch.equal(adapter(found), adapter(fixed))
    monkeypatch.setattr(physical_batch, "available_bytes", lambda _: 0)
    with pytest.raises(ConfigError, match="out of memory"):
        train_dp(found, random_rows, **PLAN)
    assert torch.equal(adapter(found), adapter(fixed))


def test_a_device_is_tried_with_as_many_rows_as_a_draw_has(
    random_rows: TokenRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU says itself what fits: as if this were one."""
    model = lora_model()
    forward = RowLosses(model, random_rows)
    forward.device = torch.device("meta")
    monkeypatch.setattr(physical_batch, "available_bytes", lambda _: 2**40)
    with rehearsal._optimizer(model, 9, ComputeSection()) as optimizer:
        made_up = RowLosses(model, random_rows).made_up(MOST_ROWS)
        monkeypatch.setattr(RowLosses, "made_up", lambda self, count: made_up)
        assert fit_physical_batch(optimizer, forward, 9) == MOST_ROWS
        device = Device(model, rows=10)
        assert fit_physical_batch(optimizer, forward, 9) == 8
        assert device.seen == [1, 2, 27, 16, 8]  # one and two to measure, then the likely draw
        device._rows = 0
        with pytest.raises(ConfigError, match="out of memory"):
            fit_physical_batch(optimizer, forward, 9)


def test_memory_limits_of_a_container_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = memory.available_bytes(CPU)
    assert 2**20 < free < 2**50
    for name, value in (("max", "5000000"), ("current", "1000000")):
        (tmp_path / name).write_text(value)
    monkeypatch.setattr(memory, "_CGROUPS", ((str(tmp_path / "max"), str(tmp_path / "current")),))
    assert memory.available_bytes(CPU) == 4_000_000
    (tmp_path / "max").write_text("max")
    assert memory.available_bytes(CPU) > 2**20


def test_costs_by_hand() -> None:
    cost = StepMemory(fixed=100, row=7, after=115)
    assert (cost.of(3), cost.of(1)) == (121, 115)
    assert [cost.most_rows(bytes_) for bytes_ in (121, 120, 114, 50)] == [3, 2, 0, 0]


def test_a_measured_step_has_a_time_and_a_size(random_rows: TokenRows) -> None:
    model = lora_model()
    before = adapter(model)
    cost = measure_step(model, random_rows, 64, ComputeSection(physical_rows=16))
    assert torch.equal(adapter(model), before)
    assert (cost.rows, cost.physical_batch) == (64, 16)
    assert 0 < cost.seconds < 60
    assert cost.peak_bytes > memory.held_bytes(CPU) / 2
