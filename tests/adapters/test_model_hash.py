"""One hash over everything that makes a model what it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gradtf_fl.adapters import AdaptedModel, AdapterSpec, check_base, kept_model, load_model, model_hash
from gradtf_fl.adapters.models import EMBEDDED, weights_hash
from gradtf_fl.errors import ConfigError
from gradtf_fl.transformer import GradTransformer, embedded_checkpoint

TINY = EMBEDDED["embedded:tiny"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def swap_digits(model: Path) -> None:
    """A tokenizer that reads 3 for 7 and 7 for 3."""
    path = model / "tokenizer.json"
    document = json.loads(path.read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["3"], vocabulary["7"] = vocabulary["7"], vocabulary["3"]
    path.write_text(json.dumps(document))


def other_bin(model: Path) -> None:
    """The same values in the older format, one changed."""
    loaded, _ = load_model(str(model))
    state = loaded.state_dict()
    next(iter(state.values()))[0, 0] += 1
    (model / "model.safetensors").unlink()
    torch.save(state, model / "pytorch_model.bin")


def value(model: Path, name: str, key: str, change: object) -> None:
    document = json.loads((model / name).read_text())
    (model / name).write_text(json.dumps(document | {key: change}))


CHANGES: dict[str, Callable[[Path], object]] = {
    "tokenizer": swap_digits,
    "bin": other_bin,
    "config": lambda model: value(model, "config.json", "rms_norm_eps", 1e-3),
    "generation": lambda model: value(model, "generation_config.json", "eos_token_id", 5),
    "tokenizer-config": lambda model: value(model, "tokenizer_config.json", "padding_side", "left"),
    "template": lambda model: (model / "chat_template.jinja").write_text("{{ messages }}"),
    "special-tokens": lambda model: (model / "special_tokens_map.json").write_text("{}"),
    "gguf": lambda model: (model / "weights.gguf").write_bytes(b"GGUF"),
    "sentencepiece": lambda model: (model / "tokenizer.model").write_bytes(b"0"),
    "renamed": lambda model: (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors"),
}


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_whatever_changes_a_model_changes_its_hash(name: str, model: Path) -> None:
    before = model_hash(str(model))
    assert before == model_hash("embedded:tiny")
    CHANGES[name](model)
    assert model_hash(str(model)) != before


def test_what_changes_nothing_does_not(model: Path) -> None:
    before = model_hash(str(model))
    (model / "README.md").write_text("read me")
    (model / "notes.txt").write_text("1")
    assert model_hash(str(model)) == before


def test_a_hub_id_is_its_cached_files_or_an_error(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConfigError, match=r"model 'some/model': is not in this machine's cache .*hf download some/model"
    ):
        model_hash("some/model")
    with pytest.raises(ConfigError, match="model 'some/model' can't be loaded"):
        kept_model("some/model")
    revision = "a" * 40
    place = cache / "models--some--model"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(revision)
    shutil.copytree(model, place / "snapshots" / revision)
    assert model_hash("some/model") == model_hash("embedded:tiny")
    check_base("adapter", "some/model", str(model))
    swap_digits(place / "snapshots" / revision)
    assert model_hash("some/model") != model_hash("embedded:tiny")
    with pytest.raises(ConfigError, match="made for another base model"):
        check_base("adapter", "some/model", str(model))


def test_a_folder_without_weights_has_no_hash(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="holds no weights"):
        model_hash(str(model))


def test_files_of_before_are_known_by_their_weights(model: Path) -> None:
    source = GradTransformer.load(embedded_checkpoint()).source
    now = AdaptedModel.load("embedded:tiny", AdapterSpec()).space
    assert source.model_sha256 == weights_hash("embedded:tiny") != now.model_sha256
    assert now.same_coordinates(source)
    assert source.same_coordinates(now)
    assert source.model_is_at_hand()
    assert now.model_is_at_hand()
    value(model, "config.json", "rms_norm_eps", 1e-3)
    other = replace(now, model=str(model), model_sha256=model_hash(str(model)))
    assert not other.same_coordinates(source)
    assert not replace(source, model=str(model)).model_is_at_hand()
