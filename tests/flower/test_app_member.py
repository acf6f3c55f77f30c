"""A member's folder: made once, private, and every problem of its policy at once."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gradtf_fl.config import MemberPolicy, load_toml
from gradtf_fl.errors import ConfigError
from gradtf_fl.flower import OpenRound, Refused, RoundKey, new_member
from gradtf_fl.flower.app_member import AppStore, load_member
from gradtf_fl.flower.arrays import decoded, difference, encoded, model_digest, moved
from gradtf_fl.secagg import Identity


def keys(count: int) -> list[str]:
    return [Identity.generate().public.hex() for _ in range(count)]


def test_a_new_member_has_a_key_and_a_commented_policy(tmp_path: Path) -> None:
    folder = tmp_path / "ward"
    key = new_member(folder)
    assert Identity.load(folder / "identity.key").public.hex() == key
    assert load_toml(MemberPolicy, folder / "policy.toml") == MemberPolicy()
    lines = (folder / "policy.toml").read_text().splitlines()
    for name in MemberPolicy.model_fields:
        (at,) = [number for number, line in enumerate(lines) if line.startswith((f"{name} =", f"# {name} ="))]
        assert lines[at - 1].startswith("# "), name
    for path in (folder, folder / "policy.toml", folder / "identity.key"):
        assert path.stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="never overwritten"):
        new_member(folder)


def test_a_folder_that_is_open_to_others_gets_no_key(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match="others can read it"):
        new_member(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_roster_is_a_list_or_a_file(tmp_path: Path) -> None:
    own = new_member(tmp_path / "ward")
    roster = [own, *keys(2)]
    (tmp_path / "ward" / "roster.txt").write_text("\n".join(roster))
    from_file = load_member(tmp_path / "ward" / "policy.toml").roster
    policy = (tmp_path / "ward" / "policy.toml").read_text()
    (tmp_path / "ward" / "policy.toml").write_text(policy.replace('"roster.txt"', str(roster)))
    assert load_member(tmp_path / "ward" / "policy.toml").roster == from_file


@pytest.mark.parametrize("listed", [1, 2])
def test_a_roster_in_a_file_is_held_to_n_min(tmp_path: Path, listed: int) -> None:
    new_member(tmp_path / "ward")
    (tmp_path / "ward" / "roster.txt").write_text("\n".join(keys(listed)))
    with pytest.raises(ConfigError, match=r"n_min is 3|at least two"):
        load_member(tmp_path / "ward" / "policy.toml")


def test_all_problems_of_a_policy_at_once(tmp_path: Path) -> None:
    new_member(tmp_path / "ward")
    path = tmp_path / "ward" / "policy.toml"
    path.write_text('roster = ["ab"]\nmax_bits = 17\nmetrics = [""]\nclip = 3\nattempts = "4"\nn_min = 1\n')
    with pytest.raises(ConfigError) as error:
        load_member(path)
    for key in ("roster.keys.0", "max_bits", "metrics.0", "clip: is not a known key", "attempts", "n_min"):
        assert f"{path}: {key}" in str(error.value)


def test_two_organizations_need_a_word(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_two"):
        MemberPolicy(n_min=2)
    assert MemberPolicy(n_min=2, allow_two=True).n_min == 2


def test_what_came_with_an_update_is_kept_with_it(tmp_path: Path) -> None:
    store = AppStore(tmp_path / "state.sqlite")
    key = RoundKey("run", 3, 1)
    assert store.reply(key) is None
    opened, figures = OpenRound(key, b"", np.zeros(3, np.float32), 0.25), {"loss": 1.5, "lists": [1, 2]}
    with pytest.raises(Refused, match="another round was claimed"):  # nothing of a training that came too late
        store.open_replied(opened, b"training", figures)
    assert store.reply(key) is None
    store.claim(key, "plan", b"training")
    store.open_replied(opened, b"training", figures)
    assert AppStore(tmp_path / "state.sqlite").reply(RoundKey("run", 3, 2)) == (0.25, {"loss": 1.5, "lists": [1, 2]})
    assert store.reply(RoundKey("run", 4, 0)) is None
    assert (tmp_path / "state.sqlite").stat().st_mode & 0o077 == 0
    with sqlite3.connect(tmp_path / "state.sqlite") as database:
        assert database.execute("SELECT count(*) FROM reply").fetchone() == (1,)


def test_differences_and_moves_are_inverse_in_each_array_s_own_type() -> None:
    before = {
        "half": np.array([1.0, 2.0], np.float16),
        "flag": np.array([True]),
        "matrix": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        "nothing": np.zeros((0, 3), np.float32),
        "when": np.array(["2026-01-01"], "datetime64[D]"),
        "one": np.array(3.0, np.float32),
    }
    before = decoded(encoded(before))
    after = {**before, "half": before["half"] + np.float16(0.5), "matrix": before["matrix"].T.copy().reshape(2, 3)}
    vector = difference(before, after)
    assert vector.tolist() == [0.5, 0.5, 0, 2, -1, 1, -2, 0, 0]  # [0 1 2; 3 4 5] becomes [0 3 1; 4 2 5]
    found = moved(before, vector.astype(np.float64))
    assert list(found) == list(before)
    for name, array in after.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_the_hash_of_a_model_is_of_names_types_shapes_values_and_order() -> None:
    zeros = np.zeros((2, 3), np.float32)
    models = [
        {"a": zeros, "b": zeros},
        {"b": zeros, "a": zeros},
        {"a": zeros, "c": zeros},
        {"a": zeros, "b": zeros.reshape(3, 2)},
        {"a": zeros, "b": zeros.astype(np.int32)},
        {"a": zeros, "b": zeros.astype(">f4")},
        {"a": zeros, "b": zeros + np.float32(1e-45)},
        {"a": zeros, "b": -zeros},
        {"a": zeros},
        {"ab": zeros, "": zeros},
    ]
    assert len({model_digest(model) for model in models}) == len(models)
    ordered = {"a": np.arange(6.0).reshape(2, 3)}
    assert model_digest(ordered) == model_digest({"a": np.asfortranarray(ordered["a"])})


def test_the_mod_comes_without_torch() -> None:
    code = "import sys; from gradtf_fl.flower import SecureAverage, secagg_mod; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
