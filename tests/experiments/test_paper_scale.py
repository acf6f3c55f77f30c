"""The paper's scale without weights, and the whole dry run on a small pair."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from gradtf_fl.adapters import AdapterSpec
from gradtf_fl.transformer.backbone import SIZES
from gradtf_fl.transformer.model import GradTransformerModel, Standardisation
from tests.transformer.random_store import CPU, SMALL


def test_the_papers_scale_from_configurations_alone() -> None:
    from experiments.paper.paper_scale import QWEN_3B, QWEN_7B, ScalePlan, Shape, count, dry_run

    sides = [shape.side(AdapterSpec()).layout for shape in (QWEN_3B, QWEN_7B)]
    assert [(layout.blocks, layout.block_dim) for layout in sides] == [(36, 12800), (28, 22528)]
    with torch.device("meta"):
        updates = [torch.zeros(2, layout.blocks, layout.block_dim) for layout in sides]
        fitted = [Standardisation(values[0], values[0]) for values in updates]
        model = GradTransformerModel(SIZES["large"], *fitted)
    assert 700e6 < count(model)["t5"] < count(model)["all"] < 800e6
    shapes = Shape("a", 32, 48, 3, 2, 1, 20), Shape("b", 48, 64, 5, 2, 1, 20)
    small = ScalePlan(*shapes, SMALL, limit_bytes=1, loop_batches=(3,))
    document = dry_run(small, [CPU], lambda line: None)
    run = document["runs"][0]
    assert document["target"]["update"] == [5, 2 * (48 + 48 + 48 + 24)]
    assert run["fits"] is False
    assert document["bytes"]["weights"] == 4 * document["parameters"]["all"]
    assert 0 < run["generation_s"] < 5
    beside = run["beside_plain_loop"][0]
    assert beside["batch"] == 3
    assert beside["times"] == beside["plain_s"] / beside["shipped_s"]
    assert beside["times_adamw"] == beside["plain_s"] / beside["adamw_s"]


def test_the_steps_that_are_compared_train_what_they_say() -> None:
    from experiments.paper.plain_loop import training_steps
    from gradtf_fl.transformer import TrainConfig

    torch.manual_seed(0)
    updates, targets = torch.randn(4, 3, 8), torch.randn(4, 5, 6)
    fitted = [Standardisation(torch.zeros_like(values[0]), torch.ones_like(values[0])) for values in (updates, targets)]
    model = GradTransformerModel(SMALL, *fitted).train()
    shipped, adamw, plain = training_steps(model, TrainConfig(rate=1e-3), updates, targets, nullcontext)
    for ours in (shipped, adamw):
        with torch.no_grad():
            before = model.mse(updates, targets).item()
        for _ in range(5):
            ours()
        assert model.mse(updates, targets).item() < before
    after = [p.clone() for p in model.parameters()]
    plain()  # has weights of its own
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), after, strict=True))
