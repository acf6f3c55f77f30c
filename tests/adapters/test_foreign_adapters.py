"""Adapters that plain PEFT wrote: the same logits here, or one message that names the switch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from gradtf_fl import adapters
from gradtf_fl.errors import ConfigError, CorruptFile
from tests.cli.conftest import gradtf

from .architectures import EXPERTS, VOCABULARY, small_model

IDS = torch.randint(1, VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(1))
pytestmark = pytest.mark.filterwarnings(
    "ignore:fan_in_fan_out is set to", "ignore:Model has `tie_word_embeddings=True`"
)


def write(folder: Path, architecture: str = "llama", **options: Any) -> Path:
    """A folder as PEFT saves it after some training: every matrix is off zero."""
    settings: dict[str, Any] = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"], **options}
    model = get_peft_model(small_model(architecture), LoraConfig(**settings))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS, use_cache=False).logits
    return found


SAME: dict[str, dict[str, Any]] = {
    "plain": {"task_type": "CAUSAL_LM"},
    "without a task": {},
    "dropout": {"lora_dropout": 0.1},
    "rslora": {"use_rslora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"r": 4, "init_lora_weights": "orthogonal"},
    "b at random": {"init_lora_weights": False},
    "all-linear": {"target_modules": "all-linear"},
    "pattern": {"target_modules": r".*\.self_attn\.(q|o)_proj"},
    "by default": {"target_modules": None},
    "full names": {"target_modules": [f"model.layers.{n}.self_attn.k_proj" for n in (0, 1)]},
    "gpt2": {"architecture": "gpt2", "target_modules": ["c_attn"], "fan_in_fan_out": True},
    "neox": {"architecture": "gpt_neox", "target_modules": None},
    "experts": {"architecture": "mixtral", "target_modules": ["v_proj"], "target_parameters": list(EXPERTS)},
    "experts alone": {"architecture": "olmoe", "target_modules": [], "target_parameters": list(EXPERTS)},
}


@pytest.mark.parametrize("name", SAME)
def test_it_has_plain_pefts_logits(name: str, tmp_path: Path) -> None:
    options = dict(SAME[name])
    architecture = options.pop("architecture", "llama")
    folder = write(tmp_path / "a", architecture, **options)
    wanted = logits(PeftModel.from_pretrained(small_model(architecture), folder))
    state, spec, _ = adapters.load_adapter(folder)
    model = adapters.attach(small_model(architecture), spec)
    adapters.set_adapter_state(model, state)
    assert (wanted - logits(small_model(architecture))).abs().max() > 0.02 * wanted.abs().max()
    torch.testing.assert_close(logits(model), wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0)


@pytest.mark.parametrize("targets", ["all-linear", r".*\.self_attn\.(q|o)_proj", None])
def test_targets_that_are_no_list_are_read_from_the_matrices(targets: str | None, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", target_modules=["o_proj", "q_proj"])
    edit(folder, target_modules=targets)
    assert adapters.load_adapter(folder)[1].targets == ("o_proj", "q_proj")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "alpha_pattern": ({"alpha_pattern": {"v_proj": 50}}, "alpha_pattern = "),
    "rank_pattern": ({"rank_pattern": {"v_proj": 4}}, "rank_pattern = "),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
    "pissa by iteration": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4'"),
    "olora": ({"init_lora_weights": "olora"}, "init_lora_weights = 'olora'"),
    "dora": ({"use_dora": True}, "use_dora = True"),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, "modules_to_save = "),
    "bias": ({"bias": "lora_only"}, "bias = 'lora_only'"),
    "some layers": ({"layers_to_transform": [0]}, "layers_to_transform = "),
    "tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices = "),
    "two at once": (
        {"use_dora": True, "use_rslora": True, "rank_pattern": {"v_proj": 4}},
        "rank_pattern = .*use_dora = ",
    ),
}
EDITED: dict[str, tuple[dict[str, Any], str]] = {
    "no rank": ({"r": ...}, "r is missing"),
    "an odd rank": ({"r": "three"}, "r is 'three'"),
    "rank 0": ({"r": 0}, "r is 0"),
    "no alpha": ({"lora_alpha": ...}, "lora_alpha is missing"),
    "another method": ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "another task": ({"task_type": "SEQ_CLS"}, "task_type = 'SEQ_CLS'"),
    "another rank than its matrices": ({"r": 99}, "r is 99, but its matrices have rank "),
    "a later switch": ({"use_something_new": True}, "use_something_new = True"),
}


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


@pytest.mark.parametrize("name", [*REFUSED, *EDITED])
def test_what_would_change_its_logits_is_named_in_one_message(name: str, tmp_path: Path) -> None:
    options, words = REFUSED.get(name) or ({}, EDITED[name][1])
    folder = write(tmp_path / "a", **options)
    edit(folder, **(EDITED[name][0] if name in EDITED else {}))
    with pytest.raises(ConfigError, match=words) as error:
        adapters.load_adapter(folder)
    assert len(error.value.problems) == 1


def test_a_part_of_the_layers_does_not_pass_for_all_of_them(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", target_modules=r".*\.0\.self_attn\.q_proj")
    state, spec, _ = adapters.load_adapter(folder)
    with pytest.raises(ConfigError, match="does not fit this model"):
        adapters.set_adapter_state(adapters.attach(small_model("llama"), spec), state)


def test_a_config_that_is_no_object_is_damaged(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(CorruptFile, match="not a JSON object"):
        adapters.load_adapter(folder)


def test_on_the_command_line_it_is_exit_2(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", rank_pattern={"v_proj": 4})
    result = gradtf("evaluate", "--model", "embedded:tiny", "--task", "house-rules", "--adapter", folder)
    assert result.exit_code == 2
    assert "rank_pattern" in result.stderr
