"""Which attempt a killed simulation was in, and how it is asked for once more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gradtf_fl.flower import RoundKey, RoundRecord
from gradtf_fl.flower.run_state import RunState, open_run, save_run
from strategies import checkpoints


def finish(out: Path, number: int) -> RoundRecord:
    """A finished round on disk."""
    record = RoundRecord(number, 0, "completed")
    update = np.zeros((1, 2), np.float32)
    with checkpoints.new_round(out, number) as folder:
        checkpoints.write_update(folder, update, update.astype(np.float64))
        checkpoints.write_record(folder, record, {})
    return record


def test_there_is_none_before_the_first_one_and_after_a_finished_one(tmp_path: Path) -> None:
    assert checkpoints.interrupted_attempt(tmp_path) is None
    save_run(tmp_path, RunState("run", {}))
    assert checkpoints.interrupted_attempt(tmp_path) is None
    finish(tmp_path, 1)  # killed between the rename and the record
    save_run(tmp_path, RunState("run", {}, (1, 0)))
    assert checkpoints.interrupted_attempt(tmp_path) is None


@pytest.mark.parametrize(("attempt", "before"), [(0, (1, 0)), (2, (2, 1))])
def test_the_interrupted_one_is_the_next_with_the_adapter_before_it(
    tmp_path: Path, attempt: int, before: tuple[int, int]
) -> None:
    first, aborted = finish(tmp_path, 1), RoundRecord(2, attempt, "aborted")
    save_run(tmp_path, RunState("run", {"llm": "hash"}, (2, attempt), 1, (first, aborted)))
    key = checkpoints.interrupted_attempt(tmp_path)
    assert key == RoundKey("run", 2, attempt)
    checkpoints.forget_attempt(tmp_path, key)
    assert open_run(tmp_path, {"llm": "hash"}, "") == RunState("run", {"llm": "hash"}, before, 0, (first,))
