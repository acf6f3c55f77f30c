"""The paper's scale without weights, and the whole dry run on a small pair."""

from __future__ import annotations

import torch

from gradtf_fl.adapters import AdapterSpec
from gradtf_fl.transformer.backbone import SIZES
from gradtf_fl.transformer.model import GradTransformerModel, Standardisation
from tests.transformer.random_store import CPU, SMALL


def test_the_papers_scale_from_configurations_alone() -> None:
    from experiments.paper_scale import QWEN_3B, QWEN_7B, Plan, Shape, count, dry_run

    sides = [shape.side(AdapterSpec()).layout for shape in (QWEN_3B, QWEN_7B)]
    assert [(layout.blocks, layout.block_dim) for layout in sides] == [(36, 12800), (28, 22528)]
    with torch.device("meta"):
        updates = [torch.zeros(2, layout.blocks, layout.block_dim) for layout in sides]
        fitted = [Standardisation(values[0], values[0]) for values in updates]
        model = GradTransformerModel(SIZES["large"], *fitted)
    assert 700e6 < count(model)["t5"] < count(model)["all"] < 800e6
    small = Plan(Shape("a", 32, 48, 3, 2, 1, 20), Shape("b", 48, 64, 5, 2, 1, 20), SMALL, limit_bytes=1)
    document = dry_run(small, [CPU], lambda line: None)
    run = document["runs"][0]
    assert document["target"]["update"] == [5, 2 * (48 + 48 + 48 + 24)]
    assert run["fits"] is False
    assert document["bytes"]["weights"] == 4 * document["parameters"]["all"]
    assert 0 < run["generation_s"] < 5
