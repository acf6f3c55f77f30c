"""Adapter folders: plain PEFT LoRA to PEFT, with the state of other kinds, every value's hash and a card beside it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradtf_fl.adapters.card import UNKNOWN, ModelCard
from gradtf_fl.adapters.kinds import peft_config, split_name, to_plain_lora
from gradtf_fl.adapters.spec import AdapterSpec, State
from gradtf_fl.adapters.state import state_hash
from gradtf_fl.adapters.switches import spec_of
from gradtf_fl.errors import ConfigError, CorruptFile
from gradtf_fl.file_names import MODEL_CARD

if TYPE_CHECKING:
    import torch


_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


_NATIVE = "gradtf.safetensors"  # the state of a kind that plain PEFT does not know


def save_adapter(
    folder: str | Path, state: State, spec: AdapterSpec, base_model: str, card: ModelCard = UNKNOWN
) -> None:
    """Write a PEFT folder that plain ``PeftModel.from_pretrained(base, folder)`` loads; the folder appears whole.

    Kinds that PEFT does not know are written as plain LoRA, with their own state beside it for `load_adapter`.

    Args:
        folder: replaced where it is there.
        state: every parameter by PEFT name.
        spec: which adapter it is.
        base_model: what ``AutoModelForCausalLM.from_pretrained`` is given for the base (folder or hub id).
        card: what README.md says; no hash covers it.

    >>> from tempfile import mkdtemp
    >>> from gradtf_fl import AdapterSpec, initial_state, load_model, save_adapter
    >>> state = initial_state(load_model("embedded:tiny")[0], AdapterSpec())
    >>> save_adapter(f"{mkdtemp()}/adapter", state, AdapterSpec(), "embedded:tiny")
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _fill(staging, state, spec, base_model, card)
        _put_in_place(staging, folder)
    except BaseException:  # a full disk, for one
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _fill(staging: Path, state: State, spec: AdapterSpec, base_model: str, card: ModelCard) -> None:
    from safetensors.torch import save_file

    plain = to_plain_lora(state)
    about: dict[str, Any] = {"spec": spec.to_json(), "sha256": state_hash(state).hex()}
    save_file({n: t.detach().contiguous().float() for n, t in plain.items()}, staging / _WEIGHTS, {"format": "pt"})
    if spec.kind != "lora":
        save_file({n: t.detach().contiguous().float() for n, t in state.items()}, staging / _NATIVE, {"format": "pt"})
        about["plain_sha256"] = state_hash(plain).hex()
    config = peft_config(spec, plain, base_model)
    config.inference_mode = True
    config.save_pretrained(staging)
    about["config_sha256"] = hashlib.sha256((staging / _CONFIG).read_bytes()).hexdigest()
    (staging / "gradtf.json").write_text(json.dumps(about))
    (staging / MODEL_CARD).write_text(card.text(spec, base_model, about["sha256"]), encoding="utf-8")
    os.chmod(staging, 0o755)


def _put_in_place(staging: Path, folder: Path) -> None:
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
        os.replace(folder, old)
        os.replace(staging, folder)
        for path in old.iterdir():
            path.unlink()
        old.rmdir()
    else:
        os.replace(staging, folder)


def load_adapter(folder: str | Path) -> tuple[dict[str, torch.Tensor], AdapterSpec, str]:
    """(state, spec, base model name) of a PEFT LoRA folder, ours or one written by plain PEFT.

    The state is that of the spec's kind.

    Raises:
        ConfigError: it is no LoRA adapter, holds whole weights of the model, or has a switch set with which PEFT
            computes something else than B A times one scale (`switches`).
        CorruptFile: its content does not match its hash.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    if not (folder / _CONFIG).is_file() or not (folder / _WEIGHTS).is_file():
        raise ConfigError(f"adapter {folder}: no PEFT folder ({_CONFIG} and {_WEIGHTS} are wanted)")
    try:
        config = json.loads((folder / _CONFIG).read_text())
        state = load_file(folder / _WEIGHTS)
    except Exception as error:
        raise CorruptFile(f"adapter {folder}: unreadable ({type(error).__name__})") from error
    if not isinstance(config, dict):
        raise CorruptFile(f"adapter {folder}: {_CONFIG} is not a JSON object")
    spec = spec_of(f"adapter {folder}, {_CONFIG}", config, {split_name(name)[0] for name in state})
    _refuse_other_rank(folder, config, state, spec.rank)
    if (folder / "gradtf.json").is_file():
        state, spec = _own_state(folder, state)
    whole = sorted(name for name in state if not (".lora_" in name or name.endswith(".delta.weight")))
    if whole:
        raise ConfigError(
            f"adapter {folder}: it holds whole weights, e.g. {whole[0]}; save it with save_embedding_layers=False"
        )
    return state, spec, str(config.get("base_model_name_or_path") or "")


def _refuse_other_rank(folder: Path, config: Mapping[str, Any], state: State, rank: int) -> None:
    """ConfigError where the matrices have another rank than adapter_config.json says. Those of ``target_parameters`` (a
    mixture's experts) hold one for each expert."""
    stacks = [str(name).rpartition(".")[0] for name in config.get("target_parameters") or []]
    ranks = {
        int(matrix.shape[0])
        for name, matrix in state.items()
        if ".lora_A." in name and not any(f".{stack}." in name for stack in stacks)
    }
    if ranks - {rank}:
        found = ", ".join(map(str, sorted(ranks)))
        raise ConfigError(f"adapter {folder}, {_CONFIG}: r is {rank}, but its matrices have rank {found}")


def _own_state(folder: Path, plain: State) -> tuple[dict[str, torch.Tensor], AdapterSpec]:
    """(state, spec) of a folder that we wrote, every value checked against gradtf.json."""
    from safetensors.torch import load_file

    try:
        own = json.loads((folder / "gradtf.json").read_text())
        spec = AdapterSpec.from_json(own["spec"])
        wanted, wanted_plain = own["sha256"], own["sha256" if spec.kind == "lora" else "plain_sha256"]
        state = dict(plain) if spec.kind == "lora" else load_file(folder / _NATIVE)
    except Exception as error:  # safetensors has errors of its own
        raise CorruptFile(f"adapter {folder}: gradtf.json or {_NATIVE} is damaged") from error
    if state_hash(state).hex() != wanted or state_hash(plain).hex() != wanted_plain:
        raise CorruptFile(f"adapter {folder}: its values do not match the SHA-256 in gradtf.json")
    return state, spec
