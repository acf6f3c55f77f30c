"""Curation: what a store holds, resuming, and that shadow tasks use public rules and rows only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gradtf_fl.curation import CurationConfig, TupleStore, curate
from gradtf_fl.curation.shadow import EXTRA_EPSILON, FEDERATIONS, draw_group, mixture_task
from gradtf_fl.errors import ConfigError, CorruptFile
from gradtf_fl.tasks import house_rules as hr
from gradtf_fl.training.stacked import DpRecipe, PlainRecipe

TRIAL = CurationConfig(
    rows=32,
    rules=4,
    single_groups=1,
    extra_singles=1,
    mixture_groups=1,
    plain_singles=1,
    plain_mixtures=1,
    pair_singles=1,
    pair_mixtures=1,
    stack=4,
    plain=PlainRecipe(steps=4, batch=4),
    llm_recipe=PlainRecipe(steps=4, batch=4),
    dp=DpRecipe(rounds=2, steps=2, batch=8),
    snapshots=(2, 4),
    last_k=2,
)


def test_shadow_tasks_stay_public() -> None:
    public = set(hr.split_rules()[0])
    rng = np.random.default_rng(0)
    for _ in range(200):
        task = mixture_task(rng)
        assert set(task.rules) <= public
        assert len(task.rules) == 3
        shown = [
            tuple(p for p, s in zip((r.input_form, r.operation, r.output_form), task.shown, strict=True) if s)
            for r in task.rules
        ]
        assert len(set(shown)) == 3  # what is shown tells the rules apart
    pools = {tuple(pair) for pair in hr.code_pairs("public")}
    tokens = mixture_task(rng).draw(rng, 500, "public")
    codes = {((t[3] - 2) * 10 + t[4] - 2, (t[6] - 2) * 10 + t[7] - 2) for t in tokens}
    assert codes <= pools


def test_every_rule_trains_in_every_kind_of_federation() -> None:
    found: dict[str, list[tuple[int, float]]] = {}
    for name, groups in CurationConfig().plan():
        for group in groups:
            if name.startswith("dp") and len(group.task.rules) == 1:
                assert group.epsilon is not None
                found.setdefault(group.task.rules[0].name, []).append((group.members, group.epsilon))
    assert set(found) == {rule.name for rule in hr.split_rules()[0]}
    wanted = sorted([*FEDERATIONS, *[(1, EXTRA_EPSILON)] * CurationConfig().extra_singles])
    assert all(sorted(kinds) == wanted for kinds in found.values())


def test_plain_mixtures_pool_the_rows_of_several_organizations() -> None:
    rng = np.random.default_rng(3)
    task = mixture_task(rng)
    largest = {
        epsilon: np.mean([max(draw_group(rng, task, 1, epsilon).weights[0]) for _ in range(2000)])
        for epsilon in (None, 1.0)
    }
    assert abs(largest[1.0] - 0.71) < 0.03  # one member of a DP federation: Dirichlet(.5) of three
    assert abs(largest[None] - 0.59) < 0.03  # the mean of 1, 2, 3 or 5 such


def test_a_store_holds_both_kinds_and_resumes_after_a_kill(tmp_path: Path) -> None:
    def kill(name: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curate(TRIAL, tmp_path / "parts", kill)
    kept = TupleStore.open(tmp_path / "parts").names
    assert len(kept) == 2
    resumed = curate(TRIAL, tmp_path / "parts")
    whole = curate(TRIAL, tmp_path / "whole")
    assert resumed.names == whole.names == [name for name, _ in TRIAL.plan()]
    for name in whole.names:
        first, second = resumed.shard(name).tensors, whole.shard(name).tensors
        assert set(first) == set(second)
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert "llm" not in whole.shard("plain-0000").tensors
    pairs = whole.shard("pairs-0000").tensors
    assert pairs["tiny"].shape[0] == 2
    assert pairs["llm_last"].shape[0] == 2
    assert (pairs["llm"].abs().amax((1, 2)) > 0).all()
    assert whole.shard("dp-0000").tensors["tiny"].shape[0] == TRIAL.dp.rounds


def test_damage_and_other_settings_are_refused(tmp_path: Path) -> None:
    store = curate(replace(TRIAL, mixture_groups=0, plain_mixtures=0, pair_mixtures=0, rules=1), tmp_path)
    with pytest.raises(ConfigError, match="other settings"):
        curate(TRIAL, tmp_path)
    path = tmp_path / f"{store.names[0]}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(CorruptFile, match="SHA-256"):
        store.shard(store.names[0])
    path.unlink()
    with pytest.raises(CorruptFile, match="missing"):
        store.shard(store.names[0])
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(CorruptFile, match=r"index\.json"):
        TupleStore.open(tmp_path)
    with pytest.raises(ConfigError, match=r"index\.json"):
        TupleStore.open(tmp_path / "none")
