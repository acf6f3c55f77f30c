"""Trials: small Grad-Transformers trained end to end, kept by their settings, and the switches of the ablations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.paper.measures.ablations import B_ONLY, AblationParameters, variants
from experiments.paper.measures.partitions import partitions
from experiments.paper.measures.private_sets import private_rules
from experiments.paper.measures.trial import Site, Trial, first_sets, key_of, run_trials, score_trial, store_folder
from experiments.paper.measures.trial_parameters import TrialParameters
from experiments.paper.measures.tuples import tuples
from experiments.paper.recomputation import recomputed
from gradtf_fl.curation import TupleStore, curate
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import house_rules as hr
from gradtf_fl.transformer import TrainConfig, train_grad_transformer
from gradtf_fl.transformer.backbone import Backbone
from gradtf_fl.transformer.model import GradTransformerModel, Standardisation
from gradtf_fl.transformer.partition import PLANS
from gradtf_fl.transformer.sampling import ShadowSampler

SIZES: dict[str, Any] = {
    "public_rules": 8,
    "pair_singles": 1,
    "pair_mixtures": 4,
    "plain_singles": 0,
    "plain_mixtures": 4,
    "rows": 64,
    "stack": 4,
    "tuning_steps": 3,
    "steps": 5,
    "groups": 4,
    "batch_rows": 2,
    "width": 16,
    "private_rules": 2,
    "private_rows": 64,
    "test_rows": 16,
    "workers": 1,
    "device": "cpu",
}


def silent(what: str, done: int, total: int) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trials")


def parameters(place: Path, **changes: Any) -> TrialParameters:
    return TrialParameters(**{**SIZES, "cache": str(place), **changes})


def scores_of(place: Path, trials: Mapping[str, Trial], seed: int = 0) -> dict[str, dict[str, float]]:
    return run_trials(trials, parameters(place).private(seed), Site(place), silent)


def test_a_trial_end_to_end_scores_every_way_and_keeps_its_scores(place: Path) -> None:
    base = parameters(place).trial(0)
    found = scores_of(place, {"base": base})["base"]
    for name in ("seen one generated", "unseen five ridge", "seen tiny_tuned", "unseen llm_ceiling"):
        assert 0 <= found[name] <= 1, name
    assert found["seen spread"] >= 0
    folder = store_folder(Site(place), base.store)
    kept = {path: path.stat().st_mtime_ns for path in [*folder.glob("scores-*"), *folder.glob("*.safetensors")]}
    assert scores_of(place, {"base": base})["base"] == found
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_what_is_kept_is_found_by_its_settings_only(place: Path) -> None:
    sizes = parameters(place)
    base = sizes.trial(0)
    others = [sizes.trial(1), replace(base, store=replace(base.store, rows=65)), variants(ablated(place), 0)[B_ONLY]]
    assert len({store_folder(Site(place), trial.store) for trial in (base, *others)}) == 4
    assert store_folder(Site(place), sizes.trial(0, steps=6).store) == store_folder(Site(place), base.store)
    longer = scores_of(place, {"longer": sizes.trial(0, steps=6), "base": base})
    assert longer["longer"] != longer["base"]


def ablated(place: Path) -> AblationParameters:
    return AblationParameters(**{**SIZES, "cache": str(place)})


def test_no_scaling_really_hands_the_model_raw_updates(place: Path) -> None:
    base = parameters(place).trial(0)
    store = curate(base.store, store_folder(Site(place), base.store))
    made = {}
    for scaled in (True, False):
        config = replace(base.train, scaled=scaled)
        made[scaled] = train_grad_transformer(config, store.folder, place / f"scaled-{scaled}").model
    raw = store.shards()[0].tensors["tiny"][-1]
    torch.testing.assert_close(made[False]._source_parts(raw)[0], raw)
    rms = [float(made[scaled]._source_parts(raw)[0].square().mean().sqrt()) for scaled in (True, False)]
    assert rms[0] > 3 * rms[1]


def test_the_averages_switch_leaves_single_updates(place: Path) -> None:
    base = parameters(place, pair_mixtures=0, plain_mixtures=0, plain_singles=2).trial(0)
    store = curate(base.store, store_folder(Site(place), base.store))
    kept = torch.cat([shard.tensors["tiny"].flatten(0, 1) for shard in store.shards()]).flatten(1)
    furthest = {}
    for averaged in (True, False):
        sampler = ShadowSampler(store.shards(), 1.0, 0.0, averaged=averaged)
        drawn = sampler.batch(np.random.default_rng(0), 16, 1).updates.flatten(1)
        furthest[averaged] = float((drawn[:, None] - kept).norm(dim=2).min(1).values.max())
    assert furthest[False] < 1e-5
    assert furthest[True] > 0.01


def test_a_run_without_ablations_keeps_the_names_and_records_it_had_before_there_were_switches() -> None:
    assert key_of(TrainConfig().to_json()) == "10849120491e"
    assert TrainConfig(scaled=False).to_json() == TrainConfig().to_json() | {"scaled": False}
    assert TrainConfig(averaged=False).to_json() == TrainConfig().to_json() | {"averaged": False}


def test_b_only_variants_train_and_generate_b_alone(place: Path) -> None:
    trials = variants(ablated(place), 0)
    found = scores_of(place, {B_ONLY: trials[B_ONLY]})[B_ONLY]
    assert 0 <= found["seen one generated"] <= 1
    header = TupleStore.open(store_folder(Site(place), trials[B_ONLY].store)).header
    assert all("lora_B" in suffix for suffix, _ in header["tiny"]["layout"]["slots"])


def test_the_first_sets_of_a_store_are_a_store(place: Path) -> None:
    base = parameters(place).trial(0)
    store = curate(base.store, store_folder(Site(place), base.store))
    part = TupleStore.open(first_sets(store.folder, 8))
    assert part.names == store.names[:2]
    assert sum(len(shard.tensors["group"]) for shard in part.shards()) == 8
    with pytest.raises(ConfigError, match="holds 7 shadow sets"):
        first_sets(store.folder, 7)


def test_private_sets_draw_seen_rules_with_a_gap_and_unseen_rules(place: Path) -> None:
    rules = private_rules(parameters(place, private_rules=8).private(3))
    assert {rule.name for rule in rules["seen"]} <= set(hr.RULES_WITH_A_GAP)
    assert set(rules["unseen"]) <= set(hr.split_rules()[1])
    assert len(set(rules["seen"])) == len(set(rules["unseen"])) == 8


@pytest.mark.slow
def test_measures_give_a_cell_for_each_variant_and_refuse_unknown_keys(place: Path) -> None:
    values = {**SIZES, "cache": str(place), "steps": 1}
    cells = partitions(values, 0, silent)
    assert {cell.row for cell in cells} > set(PLANS)
    assert len({(cell.row, cell.column) for cell in cells}) == len(cells)
    rows = {cell.row for cell in tuples({**values, "counts": [4, 8], "mse_steps": 1}, 0, silent)}
    assert rows == {"4", "8"}
    with pytest.raises(ConfigError, match=r"parameters\.stepz: is not a known key"):
        partitions({**values, "stepz": 1}, 0, silent)


def test_generation_without_a_cache_gives_the_same_blocks() -> None:
    torch.manual_seed(0)
    source, target = (Standardisation(torch.randn(n, m), torch.rand(n, m) + 0.5) for n, m in ((3, 12), (7, 20)))
    model = GradTransformerModel(Backbone(width=32, feed_forward=48, heads=2, head_dim=16), source, target).eval()
    updates = torch.randn(2, 3, 12)
    with torch.no_grad():
        made = model(updates)
        for encoder_too in (False, True):
            torch.testing.assert_close(recomputed(model, updates, encoder_too), made, atol=1e-4, rtol=1e-4)


def test_scores_of_one_trial_come_from_its_own_folder(place: Path, tmp_path: Path) -> None:
    base = parameters(place).trial(0)
    with pytest.raises(ConfigError, match=r"index\.json"):
        score_trial(base, parameters(place).private(0), Site(tmp_path))
