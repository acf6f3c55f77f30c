"""What a step is said to cost, against what training costs in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMON = """
import json, sys, time
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from gradtf_fl.adapters import AdapterSpec, attach
from gradtf_fl.config import ComputeSection
from gradtf_fl.tasks import TokenRows
from gradtf_fl.training import measure_step, train_dp
from gradtf_fl.training.memory import held_bytes

torch.set_num_threads(1)
torch.manual_seed(0)
shape = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
config = LlamaConfig(**shape, intermediate_size=512, vocab_size=2000, max_position_embeddings=128)
model = attach(LlamaForCausalLM(config).to(torch.PRECISION), AdapterSpec())
ids = torch.randint(1, 2000, (256, 64), generator=torch.Generator().manual_seed(1))
rows = TokenRows(ids, torch.ones_like(ids), ids.clone())
compute = ComputeSection(gradient_checkpointing=CHECKPOINTING)
before = held_bytes(torch.device("cpu"))
"""
SAID = """
cost = measure_step(model, rows, 64, compute)
print(json.dumps([cost.seconds, cost.peak_bytes, before]))
"""
FOUND = """
times = []
plan = {"sigma": 1.0, "clip": 0.5, "batch": 64, "rate": 1e-2, "seed": 1}
plan["gradient_checkpointing"] = compute.gradient_checkpointing
train_dp(model, rows, **plan, steps=4, progress=lambda *_: times.append(time.perf_counter()))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([(times[-1] - times[0]) / 3, 1024 * int(peak.split()[1]), before]))
"""


def measured(program: str, precision: str, checkpointing: bool) -> tuple[float, float, float]:
    """(seconds a step, bytes at most, bytes before) as a process of its own prints them."""
    text = (COMMON + program).replace("PRECISION", precision).replace("CHECKPOINTING", str(checkpointing))
    found = subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True)
    seconds, peak, before = json.loads(found.stdout.splitlines()[-1])
    return seconds, peak, before


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell a process's peak memory")
@pytest.mark.parametrize(
    ("precision", "checkpointing"), [("float32", False), ("float32", True), ("bfloat16", False)], ids=str
)
def test_a_step_costs_what_is_said(precision: str, checkpointing: bool) -> None:
    said, found = (measured(program, precision, checkpointing) for program in (SAID, FOUND))
    print({"seconds": (said[0], found[0]), "MB": (said[1] / 1e6, found[1] / 1e6), "MB before": found[2] / 1e6})
    assert 1 / 2 < said[0] / found[0] < 2  # another process may have the cores
    assert 1 / 1.5 < said[1] / found[1] < 1.5
    assert 1 / 1.6 < (said[1] - said[2]) / (found[1] - found[2]) < 1.6  # what the step itself adds
