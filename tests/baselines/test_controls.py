"""Controls on toy data whose answer is known by hand."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from gradtf_fl.baselines import Controls, update_parts
from gradtf_fl.baselines.update_parts import UpdateParts
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


def noisy_world() -> tuple[np.ndarray, np.ndarray]:
    """40 tuples far from the origin, so noisy that neither end of the penalties is best."""
    rng = np.random.default_rng(0)
    tiny = rng.normal(2.0, 1.0, (40, 3, 30)).astype(np.float32)
    llm = 0.1 * (tiny.reshape(40, -1) @ rng.normal(size=(90, 80))) + rng.normal(0.0, 2.0, (40, 80))
    return tiny, llm.reshape(40, 4, 20).astype(np.float32)


def test_the_penalty_is_the_one_that_predicts_held_out_tuples_best() -> None:
    tiny, llm = noisy_world()
    order, errors = np.random.default_rng(0).permutation(40), {}
    for penalty in (1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0):
        errors[penalty] = 0.0
        for fold in range(5):
            held = order[fold::5]
            rest = np.setdiff1d(order, held)
            x, y = (values[rest].reshape(32, -1).astype(np.float64) for values in (tiny, llm))
            kernel = (x - x.mean(0)) @ (x - x.mean(0)).T
            ridge = np.linalg.solve(kernel + penalty * np.trace(kernel) / 32 * np.eye(32), y - y.mean(0))
            made = y.mean(0) + (tiny[held].reshape(8, -1) - x.mean(0)) @ (x - x.mean(0)).T @ ridge
            errors[penalty] += float(np.square(made - llm[held].reshape(8, -1)).sum())
            one = Controls(tiny[rest], llm[rest], penalty)
            np.testing.assert_allclose(one.ridge(tiny[held[0]]).reshape(-1), made[0], atol=1e-4)
    best = min(errors, key=lambda penalty: errors[penalty])
    assert 1e-2 < best < 1000.0
    assert Controls.fit(tiny, llm).penalty == best


def test_tuples_in_parts_give_the_same_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, llm = noisy_world()
    whole = Controls.fit(tiny, llm)
    monkeypatch.setattr(update_parts, "GRAM_BYTES", 8 * 40 * 7)  # 7 coordinates at once
    parts = Controls.fit(*(UpdateParts(np.split(values, [3, 4, 25])) for values in (tiny, llm)))
    assert parts.penalty == whole.penalty
    for number in (0, 3, 24, 25, 39):
        assert parts.nearest_set(0.3 * tiny[number]) == number
        np.testing.assert_array_equal(parts.nearest(tiny[number]), llm[number])
    np.testing.assert_allclose(parts.ridge(0.5 * tiny[5]), whole.ridge(0.5 * tiny[5]), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(parts.mean_update(), llm.mean(0))
    np.testing.assert_array_equal(parts.tiny, tiny)
    np.testing.assert_array_equal(parts.llm, llm)


def test_nearest_goes_by_direction_and_mean_ignores_the_input() -> None:
    tiny, llm, _ = linear_world(20)
    controls = Controls(tiny, llm, 1.0)
    np.testing.assert_array_equal(controls.nearest(0.2 * tiny[7]), llm[7])
    np.testing.assert_allclose(controls.mean_update(), llm.mean(0))


def test_nearest_is_not_drawn_to_long_updates() -> None:
    tiny = np.array([[[1.0, 0.0]], [[3.0, 3.0]]], dtype=np.float32)
    llm = np.array([[[5.0]], [[6.0]]], dtype=np.float32)
    assert Controls(tiny, llm, 1.0).nearest(np.array([[2.0, 0.0]], dtype=np.float32)) == 5.0


def test_saved_controls_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither saving nor loading, nor an answer, holds more than a few updates in memory; the file is safetensors'."""
    from safetensors.numpy import load_file

    monkeypatch.setattr(update_parts, "GRAM_BYTES", 1 << 20)
    draw = np.random.default_rng(0)
    tiny = draw.normal(size=(64, 4, 1000)).astype(np.float32)
    llm = draw.normal(size=(64, 8, 10_000)).astype(np.float32)
    controls, path = Controls(tiny, llm, 0.5), tmp_path / "controls.safetensors"
    expected = controls.ridge(tiny[3]), controls.nearest(tiny[3]), controls.mean_update()
    tracemalloc.start()
    controls.save(path)
    loaded = Controls.load(path)
    made = loaded.ridge(tiny[3]), loaded.nearest(tiny[3]), loaded.mean_update()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 10_000_000
    assert peak < 4_000_000
    for one, other in zip(made, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=0.01)
    halves = {name: array.astype(np.float16) for name, array in (("tiny", tiny), ("llm", llm))}
    for name, array in load_file(path).items():
        np.testing.assert_array_equal(array, halves[name])
    in_memory = Controls(halves["tiny"].astype(np.float32), halves["llm"].astype(np.float32), 0.5)
    np.testing.assert_array_equal(made[0], in_memory.ridge(tiny[3]))
    np.testing.assert_array_equal(made[2], in_memory.mean_update())


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
