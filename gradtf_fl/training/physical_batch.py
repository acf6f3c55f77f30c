"""How many rows go through the model at once: a matter of memory alone, found out on made-up rows.

A step's gradient is a sum over rows, so it may be taken in parts of any size. Where a device runs out of memory all
the same, the step is done again from its beginning in parts of half the size (`half_of`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gradtf_fl.errors import ConfigError
from gradtf_fl.training.memory import available_bytes, is_out_of_memory, peak_bytes, release
from gradtf_fl.training.private_adam import PrivateAdam
from gradtf_fl.training.randomness import BLOCK
from gradtf_fl.training.row_losses import RowLosses
from gradtf_fl.training.units import parts_of

MOST_ROWS = 512
"""In one forward pass."""
ROOM = 0.4
"""Share of the memory at hand that a step's tensors may take. What kernels need and allocators keep comes on top: on a
CPU as much again (measured)."""

AFTER_BYTES, NOISE_BYTES = 20, 56
"""For each parameter of the adapter: sum in float64, gradient and two moments in float32; and for each number of a
block of noise: the number in float64, its words and what is between."""


@dataclass(frozen=True)
class StepMemory:
    """What a step holds at most, in bytes, without the model itself.

    Attributes:
        fixed: in the forward and backward pass, however many rows there are.
        row: there, for each row.
        after: once the rows are gone: the sum, Adam's moments, and the noise while it is made.
    """

    fixed: int
    row: int
    after: int

    def of(self, rows: int) -> int:
        """Bytes for this many rows in one pass."""
        return max(self.after, self.fixed + rows * self.row)

    def most_rows(self, available: int) -> int:
        """How many rows in one pass this many bytes are enough for; 0 where they are too few for one."""
        return max(0, (available - self.fixed) // self.row) if available >= self.after else 0


def step_memory(optimizer: PrivateAdam, made_up: RowLosses, of_persons: bool = False) -> StepMemory:
    """Measured on one and on two rows; it is linear in them."""
    one, two = (peak_bytes(lambda rows=rows: try_rows(optimizer, made_up, rows, of_persons)) for rows in (1, 2))  # type: ignore[misc]
    row = max(1, two - one)
    size = len(optimizer.gradient)
    return StepMemory(max(0, one - row), row, AFTER_BYTES * size + NOISE_BYTES * min(size, BLOCK))


def try_rows(optimizer: PrivateAdam, made_up: RowLosses, rows: int, of_persons: bool = False) -> None:
    """All of a step but its release, on this many rows, each of another person; nothing of it is kept."""
    try:
        optimizer.zero_grad()
        optimizer.part = parts_of(torch.arange(rows), rows, made_up.device)[0] if of_persons else None
        optimizer.sampler.backward(made_up(torch.arange(rows)))
        optimizer.clip_and_accumulate()
    finally:
        optimizer.forget()


def fit_physical_batch(optimizer: PrivateAdam, forward: RowLosses, batch: int, of_persons: bool = False) -> int:
    """Rows of one forward pass, `MOST_ROWS` at most, for draws of ``batch`` expected rows of ``forward``.

    On the CPU it follows from the memory at hand. A GPU is tried with as many rows as a draw is likely to have.

    Args:
        of_persons: several rows may be one person's, whose gradient is then held alongside theirs.

    Raises:
        ConfigError: there is not enough memory for one row.
    """
    made_up = forward.made_up(MOST_ROWS)
    try:
        memory = step_memory(optimizer, made_up, of_persons)
        fitting = min(MOST_ROWS, memory.most_rows(int(ROOM * available_bytes(forward.device))))
        if fitting < 1:
            raise MemoryError
        if forward.device.type == "cpu":
            return fitting
        return _tried(optimizer, made_up, fitting, likely_draw(batch), of_persons)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    release(forward.device)
    free = available_bytes(forward.device) / 1e9
    raise ConfigError(
        f"out of memory: a training step on one row of {made_up.width} tokens does not fit alongside the model "
        f"({free:.1f} GB are left on {forward.device}); shorten the rows, set gradient_checkpointing = true or take a "
        "smaller model"
    )


def _tried(optimizer: PrivateAdam, made_up: RowLosses, rows: int, draw: int, of_persons: bool) -> int:
    """``rows``, or as many after halving as a step on ``draw`` rows at most really goes through with."""
    while True:
        try:
            try_rows(optimizer, made_up, min(rows, draw), of_persons)
            return rows
        except Exception as error:
            if not is_out_of_memory(error) or rows == 1:
                raise
        release(made_up.device)
        rows = half_of(rows, draw)


def likely_draw(batch: int) -> int:
    """A number of rows that a Poisson draw of ``batch`` expected rows hardly ever exceeds: six standard deviations."""
    return batch + math.ceil(6 * math.sqrt(batch))


def half_of(physical_batch: int, drawn: int) -> int:
    """The half, quarter, ... of ``physical_batch`` that is below ``drawn``: in smaller parts than those that failed."""
    physical_batch //= 2
    while physical_batch >= drawn:
        physical_batch //= 2
    return max(1, physical_batch)
