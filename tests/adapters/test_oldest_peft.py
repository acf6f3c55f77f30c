"""Our folders in the oldest PEFT that we claim: its own code loads them, and it knows every key that we write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from transformers import AutoModelForCausalLM

from gradtf_fl.adapters import AdapterSpec, initial_state, load_model, save_adapter

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "vectors" / "peft-oldest.json"
LOADING = """
import json, sys, torch, peft
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

base, folder = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
with torch.inference_mode():
    logits = model(input_ids=torch.arange(24).reshape(2, 12)).logits.float()
print(json.dumps({"version": peft.__version__, "fields": sorted(LoraConfig().to_dict()), "logits": logits.tolist()}))
"""


def oldest() -> str:
    """The version that pyproject.toml begins with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (line,) = [one for one in map(Requirement, project["dependencies"]) if one.name == "peft"]
    (bound,) = [one.version for one in line.specifier if one.operator == ">="]
    return f"{bound}.0" if bound.count(".") == 1 else bound


def moved(folder: Path, spec: AdapterSpec) -> None:
    """An adapter that changes every target's output."""
    state = initial_state(load_model("embedded:llm")[0], spec)
    save_adapter(folder, {name: tensor + 0.05 for name, tensor in state.items()}, spec, "embedded:llm")


def test_the_recorded_version_is_the_oldest_that_we_claim() -> None:
    assert json.loads(RECORDED.read_text())["version"] == oldest()


@pytest.mark.parametrize("kind", ["lora", "lora-xs", "full"])
def test_every_key_that_we_write_is_known_to_it(kind: str, tmp_path: Path) -> None:
    moved(tmp_path / "adapter", AdapterSpec(kind=kind))
    written = set(json.loads((tmp_path / "adapter" / "adapter_config.json").read_text()))
    assert written <= set(json.loads(RECORDED.read_text())["fields"]), (
        "newer keys: say peft>= the version that has them"
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "lora-xs"])
def test_its_own_code_loads_our_folder(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    from gradtf_fl.adapters import model_folder

    place = ROOT / "build" / f"peft-{oldest()}"
    if not place.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place)]
        got = subprocess.run([*pip, f"peft=={oldest()}"], capture_output=True, text=True, check=False, timeout=300)
        if got.returncode:
            pytest.skip(f"peft {oldest()} can't be had here: {got.stderr.strip().splitlines()[-1]}")
    moved(tmp_path / "adapter", AdapterSpec(kind=kind))
    base = model_folder("embedded:llm")
    environment = {**os.environ, "PYTHONPATH": str(place)}
    program = [sys.executable, "-c", LOADING, base, str(tmp_path / "adapter")]
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    recorded = json.loads(RECORDED.read_text())
    assert (found["version"], found["fields"]) == (oldest(), recorded["fields"])
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    with torch.inference_mode():
        wanted = model(input_ids=torch.arange(24).reshape(2, 12)).logits.float()
    torch.testing.assert_close(torch.tensor(found["logits"]), wanted, atol=1e-5, rtol=0)
