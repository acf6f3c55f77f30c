"""Adapters of 100 MB: delivered, verified, used by plain PEFT, and at what cost (printed with ``-s``)."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.bench.large_adapter import ROUNDS, large_adapter

MOST_MB = 2_500.0  # of any process; an adapter is held a few times over on its way through Flower's messages
MOST_S = 120.0  # for the exchange that carries it to three organizations on two cores


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1200)
def test_adapters_of_a_hundred_megabytes_arrive(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from clients.adapters.kept import kept
    from clients.organization import load_organization

    document = large_adapter(tmp_path / "large")
    print(document["peak_mb"], document["exchanges"])
    assert min(document["adapter_bytes"]) > 100e6
    assert max(document["peak_mb"].values()) < MOST_MB, document["peak_mb"]
    carrying = [one["seconds"] for one in document["exchanges"] if one["round"] == ROUNDS]
    assert max(carrying) < MOST_S
    for folder in map(Path, document["organizations"]):
        key = load_organization(folder).config.secagg.provider_key
        assert key is not None
        adapters = kept(folder)
        assert [one.round for one in adapters] == list(range(1, ROUNDS + 1))
        for one in adapters:
            one.verify(key)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "large" / "llm")
    adapter = folder / "rounds" / str(ROUNDS) / "llm_adapter"
    values = sum(v.numel() for n, v in PeftModel.from_pretrained(base, adapter).named_parameters() if "lora_" in n)
    assert values > 25e6
