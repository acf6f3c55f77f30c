"""An untrained pair with an untrained Grad-Transformer and controls: real files of the final shape, no skill."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from experiments.embedded.pretrain_pair import build_model, build_tokenizer
from gradtf_fl.adapters import AdapterSpec, UpdateSpace, initial_state
from gradtf_fl.adapters.models import load_model, model_hash
from gradtf_fl.adapters.update_vectors import BlockLayout
from gradtf_fl.baselines import Controls
from gradtf_fl.cli.main import cli
from gradtf_fl.transformer import GradTransformer
from gradtf_fl.transformer.model import Backbone, GradTransformerModel, Standardisation


@dataclass(frozen=True)
class Files:
    """A provider's files, and a TOML that makes the smallest simulation with them."""

    tiny: str
    llm: str
    transformer: Path
    controls: Path
    config: Path


def side(name: str) -> UpdateSpace:
    spec = AdapterSpec()
    layout = BlockLayout.from_state(initial_state(load_model(name)[0], spec))
    return UpdateSpace(name, model_hash(name), spec, layout)


def standardisation(layout: BlockLayout, scale: float) -> Standardisation:
    torch.manual_seed(0)
    updates = scale * torch.randn(8, layout.blocks, layout.block_dim)
    return Standardisation.fit(updates, [(slot.start, slot.start + slot.size) for slot in layout.slots])


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("provider")
    for name in ("tiny", "llm"):
        build_model(name, 0).save_pretrained(folder / name)  # type: ignore[operator]
        build_tokenizer().save_pretrained(folder / name)  # type: ignore[attr-defined]
    source, target = side(str(folder / "tiny")), side(str(folder / "llm"))
    backbone = Backbone(width=16, feed_forward=32, heads=2, encoder_layers=1, decoder_layers=1)
    model = GradTransformerModel(backbone, standardisation(source.layout, 0.1), standardisation(target.layout, 0.1))
    made = Files(
        source.model,
        target.model,
        folder / "gt.safetensors",
        folder / "controls.safetensors",
        folder / "smallest.toml",
    )
    GradTransformer(model.eval(), backbone, source, target).save(made.transformer)
    rng = np.random.default_rng(0)
    shapes = [(6, s.layout.blocks, s.layout.block_dim) for s in (source, target)]
    Controls.fit(*(rng.normal(0, 0.1, shape).astype(np.float32) for shape in shapes), folds=2).save(made.controls)
    settings = {
        "tiny": made.tiny,
        "llm": made.llm,
        "transformer": str(made.transformer),
        "controls": str(made.controls),
        "organizations": 3,
        "rounds": 1,
        "rows": 128,
        "test_rows": 8,
        "steps": 10,
        "batch": 8,
        "epsilon": 2.0,
    }
    made.config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    return made


def gradtf(*arguments: object) -> Result:
    """One invocation; stdout and stderr apart."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])
