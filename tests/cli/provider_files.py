"""A provider's files: an untrained pair, an untrained Grad-Transformer and controls, and a smallest simulation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from experiments.embedded.pretrain_pair import build_model, build_tokenizer
from gradtf_fl.adapters import AdaptedModel, AdapterSpec
from gradtf_fl.adapters.update_vectors import BlockLayout
from gradtf_fl.baselines import Controls
from gradtf_fl.transformer import GradTransformer
from gradtf_fl.transformer.model import Backbone, GradTransformerModel, Standardisation
from tests.cli.conftest import Files


def standardisation(layout: BlockLayout, scale: float) -> Standardisation:
    torch.manual_seed(0)
    updates = scale * torch.randn(8, layout.blocks, layout.block_dim)
    return Standardisation.fit(updates, [(slot.start, slot.start + slot.size) for slot in layout.slots])


def write_files(folder: Path) -> Files:
    """All of them, in ``folder``."""
    for name in ("tiny", "llm"):
        build_model(name, 0).save_pretrained(folder / name)  # type: ignore[operator]
        build_tokenizer().save_pretrained(folder / name)  # type: ignore[attr-defined]
    source, target = (AdaptedModel.load(str(folder / name), AdapterSpec()).space for name in ("tiny", "llm"))
    backbone = Backbone(width=16, feed_forward=32, heads=2, encoder_layers=1, decoder_layers=1)
    model = GradTransformerModel(backbone, standardisation(source.layout, 0.1), standardisation(target.layout, 0.1))
    made = Files(
        source.model,
        target.model,
        folder / "gt.safetensors",
        folder / "controls.safetensors",
        folder / "federation.toml",
    )
    GradTransformer(model.eval(), backbone, source, target).save(made.transformer)
    rng = np.random.default_rng(0)
    shapes = [(6, s.layout.blocks, s.layout.block_dim) for s in (source, target)]
    Controls.fit(*(rng.normal(0, 0.1, shape).astype(np.float32) for shape in shapes), folds=2).save(made.controls)
    tables: dict[str, dict[str, object]] = {
        "pair": {"tiny": made.tiny, "llm": made.llm},
        "federation": {"organizations": 3, "rows": 128, "test_rows": 8},
        "privacy": {"epsilon": 2.0},
        "rounds": {"rounds": 1, "steps": 10, "batch": 8},
        "provider": {"transformer": str(made.transformer), "controls": str(made.controls), "refine": True},
    }
    text = ""
    for name, table in tables.items():
        text += f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
    made.config.write_text(text)
    return made
