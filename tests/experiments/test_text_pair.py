"""Pair (b)'s measure on an untrained pair with two tokenizers: what its figures are made of, and what is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from experiments.measuring.cells import Cell
from experiments.paper.measures.shipped import OURS
from experiments.paper.measures.text_pair import (
    AVERAGE,
    BASE,
    TUNED,
    UNSEEN,
    TextPair,
    draw_private,
    model_scales,
    shares,
    text_pair,
)
from experiments.paper.measures.text_provider import nearest_tuned_longer, provider
from experiments.paper.preset import load_preset
from gradtf_fl.curation.text_shadow import encode_causal
from gradtf_fl.errors import ConfigError
from gradtf_fl.training.stacked import fine_tune_stacked
from tests.curation.text_pair import write_files

RIVALS = {"mean", "nearest", "nearest, tuned longer", "ridge", "pca-ridge", "cross-lora"}


@pytest.fixture(scope="module")
def parameters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("shared")
    write_files(folder)
    return {
        "shared": str(folder),
        "tiny": "tiny",
        "llm": "llm",
        "tasks": ["animals", "numbers"],
        "unseen": [],
        "window": 12,
        "rows": 16,
        "shadow_sets": 1,
        "pair_sets": 5,
        "mixtures": 0,
        "objective": "mse-then-functional",
        "steps": 8,
        "groups": 4,
        "rate": 1e-3,
        "folder": str(folder / "kept"),
        "test_rows": 8,
        "least_gain": 0.0,
    }


def silent(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def cells(parameters: dict[str, Any]) -> list[Cell]:
    return text_pair(parameters, 0, silent)


def value(cells: list[Cell], row: str, column: str) -> float:
    return next(cell.value for cell in cells if (cell.row, cell.column) == (row, column))


def test_every_way_has_a_share_made_of_the_losses_shown(cells: list[Cell]) -> None:
    for row in ("animals", "numbers", AVERAGE):
        assert {cell.column for cell in cells if cell.row == row and "nats" not in cell.column} == RIVALS | {OURS}
    base, tuned, ours = (value(cells, "numbers", f"{name}, nats a character") for name in (BASE, TUNED, OURS))
    assert tuned < base
    assert value(cells, "numbers", OURS) == pytest.approx((base - ours) / (base - tuned))


def test_a_domain_without_a_gain_is_shown_and_not_averaged(parameters: dict[str, Any], cells: list[Cell]) -> None:
    gains = {
        row: value(cells, row, f"{BASE}, nats a character") - value(cells, row, f"{TUNED}, nats a character")
        for row in ("animals", "numbers")
    }
    less, more = sorted(gains, key=lambda row: gains[row])
    between = text_pair(parameters | {"least_gain": sum(gains.values()) / 2}, 0, silent)
    assert value(between, AVERAGE, OURS) == pytest.approx(value(cells, more, OURS))
    assert value(between, less, f"{BASE}, nats a character") > 0
    assert not [cell for cell in between if cell.row == less and "nats" not in cell.column]


def test_an_unseen_domain_is_shown_and_not_averaged(parameters: dict[str, Any], cells: list[Cell]) -> None:
    found = text_pair(parameters | {"unseen": ["numbers"]}, 0, silent)  # as if it were none of the provider's
    assert value(found, AVERAGE, OURS) == pytest.approx(value(cells, AVERAGE, OURS), rel=1e-4)
    assert value(found, f"numbers{UNSEEN}", OURS) != pytest.approx(value(found, "numbers", OURS), rel=1e-3)


def test_the_rival_tuned_longer_goes_by_the_nearest_sets_task(parameters: dict[str, Any], cells: list[Cell]) -> None:
    plan = TextPair(**parameters)
    made = provider(plan, plan.llm, silent)
    rival = nearest_tuned_longer(made)
    chosen = [rival.generate(update) for update in made.controls.tiny]
    assert sorted(sum(np.array_equal(update, other) for other in chosen) for update in chosen) == [5] * 10
    assert np.linalg.norm(chosen[0]) > 0
    steps = 8 * 4 // 2 // made.curation.llm_recipe.batch  # as many rows as the functional training saw
    assert len(list(made.folder.glob("longer-*"))) == 1
    pools = [made.curation.task_rows(name).public for name in plan.tasks]
    rng = np.random.default_rng([0, 9])
    rows = [pool[i].row for pool in pools for i in rng.choice(len(pool), 16, replace=False)]
    side = made.pair.llm
    recipe = replace(made.curation.llm_recipe, steps=steps)
    tokens = encode_causal(rows, side.tokenizer, side.max_tokens)
    tuned = fine_tune_stacked(side, tokens, 2, recipe, [[0, 9, 0], [0, 9, 1]], [steps])[0]
    assert any(np.array_equal(tuned[0].numpy(), update) for update in chosen)


def test_means_come_before_the_ratio() -> None:
    losses = {BASE: (3.0, 2.0), TUNED: (1.0, 1.5), "nearest": (2.0, 1.5)}
    assert shares(losses, [0, 1]) == {"nearest": pytest.approx((2.5 - 1.75) / (2.5 - 1.25))}
    assert shares(losses, [1]) == {"nearest": pytest.approx(1.0)}


def test_the_provider_is_kept_and_private_rows_are_fresh(parameters: dict[str, Any], cells: list[Cell]) -> None:
    plan = TextPair(**parameters)
    made = provider(plan, plan.llm, silent)
    written = {path: path.stat().st_mtime_ns for path in made.folder.glob("*.safetensors")}
    assert written
    provider(plan, plan.llm, silent)
    assert {path: path.stat().st_mtime_ns for path in made.folder.glob("*.safetensors")} == written
    first, second = (draw_private(made, plan.tasks, 8, seed) for seed in (0, 1))
    assert first == draw_private(made, plan.tasks, 8, 0)
    assert first.private != second.private
    public = {one.row.answer for one in made.curation.task_rows("numbers").public}
    for side in (first, second):
        private, test = ({row.answer for row in rows[1]} for rows in (side.private, side.test))
        assert not private & public
        assert not test & (public | private)


def test_too_few_rows_and_a_missing_model_are_named(parameters: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="task animals: 24 test rows, 9000 are required"):
        text_pair(parameters | {"test_rows": 9000}, 0, silent)
    with pytest.raises(ConfigError, match="no such folder"):
        text_pair(parameters | {"llm": "none"}, 0, silent)
    with pytest.raises(ConfigError, match=r"parameters\.shadow_sets"):
        text_pair(parameters | {"shadow_sets": 0}, 0, silent)


class FixedScores:
    """House Rules accuracies of two rules, instead of the shipped Grad-Transformer's."""

    def plain(self, rules: list[Any], seed: int) -> dict[str, list[float]]:
        assert len(rules) == 2
        scores = {"llm_base": 0.0, "llm_ceiling": 0.8, "generated": 0.6, "ridge": 0.2}
        return {name: [value, value] for name, value in (scores | {"mean_update": 0.0, "nearest_update": 0.4}).items()}


def test_model_scales_has_a_row_a_pair_and_one_of_house_rules(
    parameters: dict[str, Any], cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.paper.measures.text_pair.bench", FixedScores)
    scales = {key: value for key, value in parameters.items() if key not in ("llm", "unseen")}
    found = model_scales(scales | {"llms": ["llm"], "rules": 2}, 0, silent)
    assert value(found, "tiny -> llm", OURS) == pytest.approx(value(cells, AVERAGE, OURS))
    rules = [cell for cell in found if cell.row.startswith("House Rules")]
    assert {cell.column: round(cell.value, 6) for cell in rules} == {
        OURS: 0.75,
        "mean": 0.0,
        "nearest": 0.5,
        "ridge": 0.25,
    }


@pytest.mark.parametrize("name", ["pair-b", "table2"])
def test_presets_are_well_formed(name: str) -> None:
    assert load_preset(name).file.unit == "recovered share"
