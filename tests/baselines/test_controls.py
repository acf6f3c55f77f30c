"""Controls on toy data whose answer is known by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gradtf_fl.baselines import Controls
from gradtf_fl.errors import ConfigError, CorruptFile


def linear_world(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    tiny = rng.normal(size=(count, 2, 3)).astype(np.float32)
    matrix = rng.normal(size=(6, 8))
    llm = (tiny.reshape(count, 6) @ matrix + 1.0).reshape(count, 4, 2).astype(np.float32)
    return tiny, llm, matrix


def test_ridge_recovers_a_linear_map() -> None:
    tiny, llm, matrix = linear_world(200)
    controls = Controls.fit(tiny, llm)
    update = np.random.default_rng(1).normal(size=(2, 3)).astype(np.float32)
    np.testing.assert_allclose(controls.ridge(update).reshape(-1), update.reshape(-1) @ matrix + 1.0, atol=0.05)


def test_nearest_goes_by_direction_and_mean_ignores_the_input() -> None:
    tiny, llm, _ = linear_world(20)
    controls = Controls(tiny, llm, 1.0)
    np.testing.assert_array_equal(controls.nearest(0.2 * tiny[7]), llm[7])
    np.testing.assert_allclose(controls.mean_update(), llm.mean(0))


def test_nearest_is_not_drawn_to_long_updates() -> None:
    tiny = np.array([[[1.0, 0.0]], [[3.0, 3.0]]], dtype=np.float32)
    llm = np.array([[[5.0]], [[6.0]]], dtype=np.float32)
    assert Controls(tiny, llm, 1.0).nearest(np.array([[2.0, 0.0]], dtype=np.float32)) == 5.0


def test_saved_controls_load_and_damage_is_named(tmp_path: Path) -> None:
    tiny, llm, _ = linear_world(10)
    path = tmp_path / "controls.safetensors"
    Controls(tiny, llm, 0.5).save(path)
    loaded = Controls.load(path)
    assert loaded.penalty == 0.5
    np.testing.assert_allclose(loaded.llm, llm, atol=0.01)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFile):
        Controls.load(path)
    path.write_bytes(data[:-1])
    with pytest.raises(CorruptFile):
        Controls.load(path)
    with pytest.raises(ConfigError, match="no such file"):
        Controls.load(tmp_path / "none")
