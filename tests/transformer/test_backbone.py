"""Backbones: weights of a T5 folder from the command line to a checkpoint, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from gradtf_fl.cli.main import cli
from gradtf_fl.errors import ConfigError
from gradtf_fl.transformer import GradTransformer, train_grad_transformer
from gradtf_fl.transformer.backbone import SIZES, Backbone, build_t5
from tests.transformer.random_store import CONFIG


def t5_folder(folder: Path, **changed: Any) -> Path:
    from transformers import T5Config, T5Model

    shape = {"d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 2, "num_heads": 3}
    settings = {"vocab_size": 100, "feed_forward_proj": "gated-gelu", **shape, **changed}
    torch.manual_seed(7)
    T5Model(T5Config(**settings)).half().save_pretrained(folder)
    return folder


def test_a_t5_folder_is_where_training_starts_and_the_checkpoint_needs_it_no_more(
    random_tuples: Path, tmp_path: Path
) -> None:
    folder = t5_folder(tmp_path / "t5")
    t5 = build_t5(Backbone.named(str(folder)))
    assert {p.dtype for p in t5.parameters()} == {torch.float32}
    assert t5.shared.weight.shape == (8, 24)
    weight = t5.encoder.block[0].layer[0].SelfAttention.q.weight
    made = train_grad_transformer(
        replace(CONFIG, steps=1, rate=1e-9, backbone=Backbone.named(str(folder))), random_tuples, tmp_path / "gt"
    )
    shutil.rmtree(folder)
    loaded = GradTransformer.load(tmp_path / "gt")
    torch.testing.assert_close(loaded.model.t5.encoder.block[0].layer[0].SelfAttention.q.weight, weight)
    assert (loaded.backbone.decoder_layers, loaded.backbone.pretrained) == (2, None)
    update = np.full((made.source.layout.blocks, made.source.layout.block_dim), 0.1, np.float32)
    np.testing.assert_array_equal(loaded.generate(update), made.generate(update))


def test_the_command_trains_with_every_option(random_tuples: Path, tmp_path: Path) -> None:
    folder, out = t5_folder(tmp_path / "t5"), tmp_path / "gt"
    options = ("--backbone", folder, "--partition", "reversed", "--validate-every", 1, "--patience", 1)
    place = ("--device", "auto", "--precision", "float32")
    arguments = (
        "train",
        "--tuples",
        random_tuples,
        "--out",
        out,
        "--steps",
        2,
        "--groups",
        2,
        *options,
        *place,
        "--json",
    )
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["sha256"] == GradTransformer.load(out).sha256
    config = json.loads(Path(f"{out}.json").read_text())["config"]
    assert (config["patience"], config["backbone"]["pretrained"]) == (1, str(folder))
    with pytest.raises(ConfigError, match="no such folder"):
        cli.main([str(argument) for argument in (*arguments, "--backbone", tmp_path / "none")], standalone_mode=False)


def test_backbones_that_no_checkpoint_can_hold_are_refused(tmp_path: Path) -> None:
    cases = {
        str(tmp_path / "none"): "there is no such folder",
        "embedded:tiny": "'qwen2' model",
        str(t5_folder(tmp_path / "relu", feed_forward_proj="relu")): "feed_forward_proj is 'relu'",
        str(t5_folder(tmp_path / "buckets", relative_attention_num_buckets=16)): "num_buckets is 16",
    }
    (t5_folder(tmp_path / "bare") / "model.safetensors").unlink()
    cases[str(tmp_path / "bare")] = "can't be loaded"
    for name, problem in cases.items():
        with pytest.raises(ConfigError, match=problem) as refused:
            build_t5(Backbone.named(name))
        assert str(refused.value).startswith(f"backbone {name!r}")
    assert Backbone.named("base") == SIZES["base"]
