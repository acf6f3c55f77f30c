"""A small tuple store of random updates: training on it is quick, what is learned is nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from gradtf_fl.adapters import AdapterSpec, Place
from gradtf_fl.adapters.models import model_hash
from gradtf_fl.curation import TupleStore
from gradtf_fl.training.stacked import StackedAdapters
from gradtf_fl.transformer import TrainConfig
from gradtf_fl.transformer.backbone import Backbone

SMALL = Backbone(width=16, feed_forward=24, heads=2, head_dim=8, encoder_layers=1, decoder_layers=1)
CONFIG = TrainConfig(steps=8, groups=4, rows=2, warm_up=1, backbone=SMALL)
CPU = Place.find("cpu", "float32")


def federation(task: str, mixture: bool = False, epsilon: float | None = None) -> dict[str, Any]:
    parts = [task, f"{task}'"] if mixture else [task]
    return {"task": json.dumps(parts), "parts": parts, "weights": [[1 / len(parts)] * len(parts)], "epsilon": epsilon}


def write_store(folder: Path, stacks: dict[str, StackedAdapters]) -> None:
    """A store of random updates and rows: four tasks, each in three pairs, three plain sets and three DP sets, and
    four mixtures of each kind."""
    sides = {
        role: {"name": f"embedded:{role}", "sha256": model_hash(f"embedded:{role}"), "layout": s.layout.to_json()}
        for role, s in stacks.items()
    }
    store = TupleStore.create(folder, {"spec": AdapterSpec().to_json(), **sides})
    generator = torch.Generator().manual_seed(0)
    for kind, epsilon in (("pairs", None), ("plain", None), ("dp", 1.0)):
        groups = [federation(task, epsilon=epsilon) for _ in range(3) for task in "abcd"]
        groups += [federation(f"{kind}{number}", True, epsilon) for number in range(4)]
        shapes = {role: (len(groups), s.layout.blocks, s.layout.block_dim) for role, s in stacks.items()}
        ids = torch.randint(2, 12, (len(groups), 8, 11), generator=generator, dtype=torch.int32)
        tensors = {
            "tiny": 0.1 * torch.randn(1, *shapes["tiny"], generator=generator),
            "input_ids": ids,
            "labels": ids.clone(),
            "group": torch.arange(len(groups), dtype=torch.int32),
        }
        if kind == "pairs":
            tensors["llm"] = 0.1 * torch.randn(shapes["llm"], generator=generator)
        store.add(kind, tensors, {"groups": groups})
