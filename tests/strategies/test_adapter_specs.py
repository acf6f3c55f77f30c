"""Whole federations whose TinyLM has another adapter or architecture: their sums, ledgers and delivered adapters."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments.embedded.pretrain_pair import build_tokenizer
from gradtf_fl.adapters import AdapterSpec
from gradtf_fl.errors import ConfigError, RoundAborted
from gradtf_fl.privacy import read_ledger
from strategies import run_server
from tests.adapters.architectures import EXPERTS, small_model
from tests.strategies.federation_kit import Kit, build, write_transformer

EMBEDDED = {
    "b-only": AdapterSpec(train_a=False),
    "lora-xs": AdapterSpec(rank=4, alpha=8.0, targets=("q_proj", "down_proj"), kind="lora-xs"),
    "rank 3 on all projections": AdapterSpec(rank=3, alpha=1.5, targets=("k_proj", "o_proj", "up_proj")),
}
OTHERS = {
    "gpt2": AdapterSpec(targets=("c_attn",)),
    "opt": AdapterSpec(targets=("fc1", "v_proj"), train_a=False),
    "mixtral": AdapterSpec(targets=("q_proj", *EXPERTS)),
}
POSITIONS = 64


def federation(folder: Path, pair: tuple[str, str], spec: AdapterSpec, **settings: object) -> Kit:
    generator = write_transformer(folder / "transformer.safetensors", pair, spec)
    kit = build(folder / "out", pair, generator, transformer=str(folder / "transformer.safetensors"), **settings)  # type: ignore[arg-type]
    return replace(kit, generator=generator)


def other_pair(folder: Path, architecture: str, llm: str) -> tuple[str, str]:
    """An untrained TinyLM of ``architecture`` with the embedded tokenizer."""
    tokenizer = build_tokenizer()
    small_model(architecture, vocab_size=len(tokenizer)).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    return str(folder / "tiny"), llm


def assert_summed(kit: Kit) -> None:
    run_server(kit.grid(), kit.plan, None, kit.generator)
    updates = [load_file(folder / "rounds" / "1" / "own_update.safetensors")["update"] for folder in kit.folders]
    mean = load_file(kit.plan.out / "rounds" / "1" / "global_update.safetensors")["mean"].reshape(-1)
    assert mean.shape == (kit.generator.source.layout.size,)
    np.testing.assert_allclose(mean, np.mean(updates, axis=0), atol=2**-18 * kit.plan.update_clip)
    assert (np.abs(mean) > 1e-4).mean() > 0.9  # whatever is in the layout was trained
    for folder in kit.folders:
        assert len(read_ledger(folder / "ledger.sqlite").content.events) == 2
        assert (folder / "rounds" / "2" / "llm_adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_federation_trains_the_adapter_of_its_spec(name: str, pair: tuple[str, str], tmp_path: Path) -> None:
    assert_summed(federation(tmp_path, pair, EMBEDDED[name]))


@pytest.mark.parametrize("architecture", OTHERS)
def test_a_federation_trains_another_architecture(architecture: str, pair: tuple[str, str], tmp_path: Path) -> None:
    kit = federation(tmp_path, other_pair(tmp_path, architecture, pair[1]), OTHERS[architecture])
    for number in range(len(kit.folders)):
        data = kit.config(number).data
        kit.change(number, data=data.model_copy(update={"max_tokens": POSITIONS}))
    assert_summed(kit)


def test_rows_longer_than_the_models_positions_are_cut_or_refused_and_cost_nothing(
    pair: tuple[str, str], tmp_path: Path
) -> None:
    kit = federation(tmp_path, other_pair(tmp_path, "gpt2", pair[1]), OTHERS["gpt2"], rounds=1)
    for folder in kit.folders:
        with (folder / "train.jsonl").open("a") as file:
            file.write(100 * (json.dumps({"prompt": "1" * 2 * POSITIONS, "answer": "1"}) + "\n"))
    with pytest.raises((RoundAborted, ConfigError)):
        run_server(kit.grid(), kit.plan, None, kit.generator)
    for folder in kit.folders:
        assert f"are longer than the model's {POSITIONS} positions" in (folder / "client.log").read_text()
        assert not read_ledger(folder / "ledger.sqlite").content.events
