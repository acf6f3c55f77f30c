"""``python -m experiments.bench.large_adapter``: adapters of 100 MB through a whole deployment, their time and memory.

An LLM whose LoRA update has 25.6 million values (rank 544 on every projection of four layers), an untrained
Grad-Transformer that generates it in 1,568 tokens, a server and three organizations on loopback as deployed, two
rounds. Printed: the adapter's size, seconds of each of its stations, and the most memory that each process ever held.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from experiments.bench.federation import OURS, FederationBench, deployment, nodes
from experiments.bench.soak import look, size
from experiments.embedded import build_model, build_tokenizer
from experiments.measuring import machine, revision
from gradtf_fl.adapters import (
    AdaptedModel,
    AdapterSpec,
)
from gradtf_fl.deployment import load_server, read_lines
from gradtf_fl.file_names import EVENTS, LLM_ADAPTER
from gradtf_fl.flower import RoundEvent
from gradtf_fl.transformer import Backbone, GradTransformer, GradTransformerModel, PartitionPlan, Standardisation
from strategies import ServerRun

ROUNDS, RANK, CHUNK = 2, 544, 16_384
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHAPE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8}


def write_pair(folder: Path, rank: int = RANK) -> tuple[tuple[str, str], Path]:
    """An untrained pair, the TinyLM of the embedded shape, and an untrained Grad-Transformer between them."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = build_tokenizer()
    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=len(tokenizer), num_key_value_heads=8, max_position_embeddings=64, pad_token_id=0, **SHAPE
    )
    for name, model in (("tiny", build_model("tiny", 0)), ("llm", Qwen2ForCausalLM(config))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    specs = AdapterSpec(), AdapterSpec(rank=rank, alpha=float(rank), targets=PROJECTIONS)
    sides = [
        AdaptedModel.load(str(folder / name), spec).space for name, spec in zip(("tiny", "llm"), specs, strict=True)
    ]
    standards = []
    for side in sides:
        standards.append(Standardisation(torch.zeros(side.shape), torch.full(side.shape, 0.001)))
    backbone = Backbone(width=32, feed_forward=32, heads=2, head_dim=16, encoder_layers=1, decoder_layers=1)
    partitioning = PartitionPlan(target_chunk=CHUNK).between(sides[0].layout, sides[1].layout)
    GradTransformer(GradTransformerModel(backbone, *standards, partitioning), backbone, *sides).save(folder / "gt")
    return (sides[0].model, sides[1].model), folder / "gt"


def large_adapter(folder: Path, rank: int = RANK) -> dict[str, Any]:
    """Run it and return the document that `main` prints."""
    folder.mkdir(parents=True, exist_ok=True)
    pair, transformer = write_pair(folder, rank)
    server, organizations = deployment(folder, FederationBench(rounds=ROUNDS - 1), pair, transformer, score=True)
    peaks: dict[str, float] = {}
    started = time.monotonic()

    def after_round(event: RoundEvent) -> None:
        if event.record is not None:
            keep_peaks()

    def keep_peaks() -> None:
        for sample in look(0, folder):
            peaks[sample.process] = max(peaks.get(sample.process, 0.0), _peak_mb(sample.pid, sample.resident))

    with nodes(organizations, OURS, server):
        ServerRun(load_server(server), after_round, lambda line: keep_peaks()).run()
        keep_peaks()
    wall = time.monotonic() - started
    adapters = [one / "rounds" / str(ROUNDS) / LLM_ADAPTER / "adapter_model.safetensors" for one in organizations]
    events = read_lines(server / EVENTS)
    return {
        "revision": revision(),
        "machine": machine(("flwr", "torch", "peft")),
        "adapter_bytes": [path.stat().st_size for path in adapters],
        "rounds": ROUNDS,
        "wall_s": round(wall, 1),
        "exchanges": [
            {"round": line["round"], "stage": line["stage"], "seconds": round(float(line["seconds"]), 2)}
            for line in events
            if line["event"] == "exchange"
        ],
        "peak_mb": {name: round(value, 1) for name, value in sorted(peaks.items())},
        "databases": {str(path.relative_to(folder)): size(path) for path in sorted(server.rglob("*.sqlite"))},
        "organizations": [str(one) for one in organizations],
    }


def _peak_mb(pid: int, resident: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return resident / 1e6
    return next((int(line.split()[1]) * 1.024e-3 for line in lines if line.startswith("VmHWM")), resident / 1e6)


def main() -> None:
    """Print the table; ``--json`` the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", dest="as_json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gradtf-large-") as scratch:
        document = large_adapter(Path(scratch))
    del document["organizations"]
    if given.as_json:
        print(json.dumps(document, indent=1))
        return
    print(f"adapter of {document['adapter_bytes'][0] / 1e6:.1f} MB, {ROUNDS} rounds in {document['wall_s']:.0f} s")
    for one in document["exchanges"]:
        print(f"round {one['round']}, {one['stage']:<12} {one['seconds']:>7.2f} s")
    for name, megabytes in document["peak_mb"].items():
        print(f"{name:<22} {megabytes:>8.1f} MB at most")
    for name, found in document["databases"].items():
        print(f"{name:<22} {found / 1e6:>8.1f} MB")


if __name__ == "__main__":
    sys.exit(main())
