"""LoRA adapters: one shared, seeded initial adapter; PEFT folders and a wire form, in and out.

W x + (alpha / rank) B A x with A [rank, in], B [out, rank] (Hu et al. 2022). The initial A is drawn by numpy from
the spec's seed, so that every organization and the provider start from the same bytes; B starts at zero.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradtf_fl.errors import ConfigError, CorruptFile

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    State = Mapping[str, torch.Tensor]

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class AdapterSpec:
    """Which LoRA adapter is trained. ``train_a`` false freezes A (FFA-LoRA: averages of B are then exact)."""

    rank: int = 2
    alpha: float = 4.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    train_a: bool = True
    seed: int = 0

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {**asdict(self), "targets": list(self.targets)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> AdapterSpec:
        """Spec from `to_json`'s form; KeyError, TypeError or ValueError on another form."""
        return cls(
            int(document["rank"]),
            float(document["alpha"]),
            tuple(str(t) for t in document["targets"]),
            bool(document["train_a"]),
            int(document["seed"]),
        )


def attach(model: Any, spec: AdapterSpec) -> PeftModel:
    """``model`` wrapped in PEFT with the shared initial adapter, A frozen unless the spec trains it."""
    from peft import get_peft_model

    peft_model: Any = get_peft_model(model, _peft_config(spec, None))  # PEFT takes the model's own name
    set_adapter_state(peft_model, _draw_initial(adapter_state(peft_model), spec))
    for name, parameter in peft_model.named_parameters():
        parameter.requires_grad_(".lora_B." in name or (spec.train_a and ".lora_A." in name))
    wrapped: PeftModel = peft_model
    return wrapped


def _peft_config(spec: AdapterSpec, base_model: str | None) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]
        target_modules=list(spec.targets),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model,
    )


def _draw_initial(shapes: State, spec: AdapterSpec) -> dict[str, torch.Tensor]:
    """A ~ uniform(-1/sqrt(in), 1/sqrt(in)) in name order from numpy's PCG64; B = 0."""
    import torch

    rng = np.random.default_rng([spec.seed, 0x4C6F5241])
    state = {}
    for name in sorted(shapes):
        rows, columns = shapes[name].shape
        if ".lora_A." in name:
            values = rng.uniform(-1, 1, (rows, columns)) / np.sqrt(columns)
            state[name] = torch.from_numpy(values.astype(np.float32))
        else:
            state[name] = torch.zeros(rows, columns)
    return state


def initial_state(model: Any, spec: AdapterSpec) -> dict[str, torch.Tensor]:
    """The shared initial adapter for ``model`` (a plain model; it is left as it was)."""
    import torch

    shapes = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.rsplit(".", 1)[-1] in spec.targets:
            shapes[f"base_model.model.{name}.lora_A.weight"] = torch.empty(spec.rank, module.in_features)
            shapes[f"base_model.model.{name}.lora_B.weight"] = torch.empty(module.out_features, spec.rank)
    if not shapes:
        raise ConfigError(f"the model has no linear layer named {' or '.join(spec.targets)}")
    return _draw_initial(shapes, spec)


def adapter_state(peft_model: Any) -> dict[str, torch.Tensor]:
    """The adapter's parameters by their PEFT names (detached CPU float32 copies)."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(peft_model)
    return {name: tensor.detach().to("cpu").float().clone() for name, tensor in state.items()}


def set_adapter_state(peft_model: Any, state: State) -> None:
    """Load ``state`` into the attached adapter; ConfigError when names differ."""
    from peft import set_peft_model_state_dict

    expected = set(adapter_state(peft_model))
    if expected != set(state):
        stray = sorted(expected ^ set(state))[:3]
        raise ConfigError(
            f"the adapter does not fit this model: {len(expected ^ set(state))} names differ, e.g. {stray}"
        )
    set_peft_model_state_dict(peft_model, dict(state))


def state_hash(state: State) -> bytes:
    """SHA-256 over names, shapes and little-endian float32 values, in name order (32 bytes)."""
    digest = hashlib.sha256(b"gradtf/adapter/v1")
    for name in sorted(state):
        values = np.ascontiguousarray(state[name].detach().to("cpu").float().numpy(), dtype="<f4")
        digest.update(f"{name}\0{values.shape}\0".encode() + values.tobytes())
    return digest.digest()


def save_adapter(folder: str | Path, state: State, spec: AdapterSpec, base_model: str) -> None:
    """Write a PEFT folder that plain ``PeftModel.from_pretrained(base, folder)`` loads; the folder appears whole.

    ``base_model`` is what ``AutoModelForCausalLM.from_pretrained`` is given for the base (folder or hub id).
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    save_file({n: t.detach().contiguous().float() for n, t in state.items()}, staging / _WEIGHTS, {"format": "pt"})
    config = _peft_config(spec, base_model)
    config.inference_mode = True
    config.save_pretrained(staging)
    (staging / "gradtf.json").write_text(json.dumps({"spec": spec.to_json(), "sha256": state_hash(state).hex()}))
    os.chmod(staging, 0o755)
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

    Raises ConfigError when the folder is no LoRA adapter, CorruptFile when its content does not match its hash.
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
    if config.get("peft_type") != "LORA":
        raise ConfigError(f"adapter {folder}: peft_type is {config.get('peft_type')!r}, LORA is wanted")
    spec = AdapterSpec(int(config["r"]), float(config["lora_alpha"]), tuple(sorted(config["target_modules"])))
    if (folder / "gradtf.json").is_file():
        try:
            own = json.loads((folder / "gradtf.json").read_text())
            spec = AdapterSpec.from_json(own["spec"])
            wanted = own["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFile(f"adapter {folder}: gradtf.json is damaged") from error
        if state_hash(state).hex() != wanted:
            raise CorruptFile(f"adapter {folder}: its values do not match the SHA-256 in gradtf.json")
    return state, spec, str(config.get("base_model_name_or_path") or "")


def pack_adapter(state: State, spec: AdapterSpec, base_model: str) -> bytes:
    """Wire form: safetensors bytes whose metadata hold the spec and the base model's name."""
    from safetensors.torch import save

    metadata = {"gradtf": json.dumps({"spec": spec.to_json(), "base_model": base_model}, sort_keys=True)}
    packed: bytes = save({n: state[n].detach().contiguous().float() for n in sorted(state)}, metadata)
    return packed


def unpack_adapter(data: bytes) -> tuple[dict[str, torch.Tensor], AdapterSpec, str]:
    """(state, spec, base model name) of `pack_adapter`'s bytes; CorruptFile on anything else."""
    from safetensors.torch import load

    try:
        state = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        own = json.loads(header["__metadata__"]["gradtf"])
        return state, AdapterSpec.from_json(own["spec"]), str(own["base_model"])
    except Exception as error:
        raise CorruptFile(f"packed adapter is damaged ({type(error).__name__})") from error
