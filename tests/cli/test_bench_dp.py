"""bench dp: its document, and that every way that is timed takes the same step."""

from __future__ import annotations

import copy
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.bench import dp as bench_dp
from experiments.bench.dp import DpBench
from experiments.bench.dp_peers import OURS, PLAIN, WAYS, ways
from gradtf_fl.adapters import AdapterSpec, attach
from gradtf_fl.adapters.models import load_model
from gradtf_fl.tasks import TokenRows
from tests.cli.conftest import gradtf

TINY = DpBench(batches=(4, 8), threads=(1,), rounds=3, least=1)


@pytest.fixture(scope="module")
def model() -> Any:
    attached = attach(load_model("embedded:tiny")[0], AdapterSpec())
    with torch.no_grad():
        for name, p in attached.named_parameters():
            if "lora_B" in name:
                p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    return attached


@pytest.fixture(scope="module")
def rows(model: Any) -> TokenRows:
    return bench_dp._token_rows("embedded:tiny", model, 0)


def test_every_private_way_takes_the_same_step(model: Any, rows: TokenRows) -> None:
    drawn = torch.tensor([3, 17, 600, 601, 5, 1023])
    with ways(model, rows, 8, sigma=0.0) as made:
        for way in made.values():
            way.step(drawn)
        ours, plain = made[OURS], made[PLAIN]
        assert ours.gradient().norm() < 0.9 * plain.gradient().norm()  # some rows were clipped
        moved = [torch.cat([p.detach().flatten() for p in way.parameters.values()]) for way in made.values()]
        for name, way in made.items():
            if name not in (OURS, PLAIN):
                torch.testing.assert_close(way.gradient(), ours.gradient(), atol=1e-6, rtol=1e-4)
        assert all(bool((after != moved[0]).any()) for after in moved[1:])
        assert all(p.requires_grad and not hasattr(p, "grad_sample") for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", [name for name in WAYS if name != PLAIN])
def test_every_private_way_adds_noise(model: Any, rows: TokenRows, name: str) -> None:
    """100 steps over one row: the gradient spreads by sigma C / batch."""
    with ExitStack() as stack:
        way = WAYS[name](copy.deepcopy(model), rows, 2, 3.0, stack)
        steps = []
        for _ in range(100):
            way.step(torch.tensor([1]))
            steps.append(way.gradient())
    spread = float((torch.stack(steps[1:]) - torch.stack(steps[:-1])).std()) / 2**0.5
    assert spread == pytest.approx(3.0 * 0.5 / 2, rel=0.02)


def test_the_document(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("experiments.bench.QUICK_DP", TINY)
    from transformers import AutoTokenizer

    network, _ = load_model("embedded:tiny")
    network.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(network.name_or_path).save_pretrained(tmp_path)
    result = gradtf("bench", "dp", "--quick", "--model", str(tmp_path), "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert {"cpu", "cores", "load", "torch", "opacus", "peft"} <= document["machine"].keys()
    assert len(document["rows"]) == 2 * 2 * (len(WAYS) - 1)
    for row in document["rows"]:
        assert row["ours"] > 0 < row["theirs"]
        assert row["ratio"] == pytest.approx(row["theirs"] / row["ours"])
        assert row["ours_over_plain"] == pytest.approx(row["ours"] / row["limit"])
        assert row["runs"] == 3
        if row["peer"] == PLAIN:
            assert row["theirs"] == row["limit"]
    assert {row["size"]["tokens"] for row in document["rows"]} == {11, 32}
    assert {row["size"]["batch"] for row in document["rows"]} == {4, 8}
    assert str(tmp_path) not in result.stdout


def test_a_model_that_is_not_there_is_said() -> None:
    result = gradtf("bench", "dp", "--quick", "--model", "./nowhere")
    assert result.exit_code == 2
    assert "nowhere" in result.output
