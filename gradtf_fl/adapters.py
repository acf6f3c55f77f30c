"""Adapters: one shared, seeded initial adapter; PEFT folders and a wire form, in and out.

W x + (alpha / rank) B A x with A [rank, in], B [out, rank] (Hu et al. 2022), or another kind (`adapter_kinds`). The
initial A is drawn by numpy from the spec's seed, so that every organization and the provider start from the same
bytes; B starts at zero. Whatever the kind, a written folder is plain LoRA to PEFT.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradtf_fl.adapter_kinds import KINDS, initial_values, plain_rank, to_plain_lora
from gradtf_fl.errors import ConfigError, CorruptFile

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    State = Mapping[str, torch.Tensor]

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_NATIVE = "gradtf.safetensors"  # the state of a kind that plain PEFT does not know


@dataclass(frozen=True)
class AdapterSpec:
    """Which adapter is trained on which modules.

    Attributes:
        targets: last names of linear layers (q_proj, up_proj, ...) and of the input embedding (embed_tokens).
        train_a: false freezes A (FFA-LoRA: averages of B are then exact); without meaning for other kinds.
        kind: "lora", "lora-xs" or "full"; ``alpha`` and ``rank`` are without meaning for "full".
    """

    rank: int = 2
    alpha: float = 4.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    train_a: bool = True
    seed: int = 0
    kind: str = "lora"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"adapter kind {self.kind!r} is unknown: the kinds are {', '.join(KINDS)}")

    @property
    def scale(self) -> float:
        """alpha / rank; 1 for "full"."""
        return 1.0 if self.kind == "full" else self.alpha / self.rank

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form; without ``kind`` where that is "lora", so that signed rounds keep their bytes."""
        document = {**asdict(self), "targets": list(self.targets)}
        if self.kind == "lora":
            del document["kind"]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> AdapterSpec:
        """Spec from `to_json`'s form; KeyError, TypeError or ValueError on another form."""
        return cls(
            int(document["rank"]),
            float(document["alpha"]),
            tuple(str(t) for t in document["targets"]),
            bool(document["train_a"]),
            int(document["seed"]),
            str(document.get("kind", "lora")),
        )


def attach(model: Any, spec: AdapterSpec) -> PeftModel:
    """``model`` wrapped in PEFT with the shared initial adapter, A frozen unless the spec trains it.

    Kinds that PEFT does not know come as the plain LoRA with the same effect, with nothing to train: they are trained
    by `training.stacked.StackedAdapters`. Where input and output embeddings are tied, LoRA on ``embed_tokens`` acts
    on the input alone.
    """
    from peft import get_peft_model

    plain = to_plain_lora(initial_state(model, spec))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # said above
        peft_model: Any = get_peft_model(model, _peft_config(spec, plain, None))  # PEFT takes the model's own name
    set_adapter_state(peft_model, plain)
    trained = (".lora_B.", ".lora_embedding_B.") + ((".lora_A.", ".lora_embedding_A.") if spec.train_a else ())
    for name, parameter in peft_model.named_parameters():
        parameter.requires_grad_(spec.kind == "lora" and any(role in name for role in trained))
    wrapped: PeftModel = peft_model
    return wrapped


def _peft_config(spec: AdapterSpec, plain: State, base_model: str | None) -> Any:
    from peft import LoraConfig

    rank = plain_rank(plain)
    return LoraConfig(
        r=rank,
        lora_alpha=rank if spec.kind == "full" else spec.alpha,  # type: ignore[arg-type]
        target_modules=list(spec.targets),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model,
    )


def initial_state(model: Any, spec: AdapterSpec) -> dict[str, torch.Tensor]:
    """The shared initial adapter for ``model`` (a plain model; it is left as it was).

    ConfigError when the model lacks a target or the kind does not go on one.
    """
    return initial_values(model, spec)


def adapter_state(peft_model: Any) -> dict[str, torch.Tensor]:
    """The adapter's parameters by their PEFT names (detached CPU float32 copies)."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(peft_model, save_embedding_layers=False)  # base weights are no adapter
    return {name: tensor.detach().to("cpu").float().clone() for name, tensor in state.items()}


def set_adapter_state(peft_model: Any, state: State) -> None:
    """Load ``state``, of any kind, into the attached adapter; ConfigError when names differ."""
    from peft import set_peft_model_state_dict

    state = to_plain_lora(state)
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

    Kinds that PEFT does not know are written as plain LoRA, with their own state beside it for `load_adapter`.
    ``base_model`` is what ``AutoModelForCausalLM.from_pretrained`` is given for the base (folder or hub id).
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    plain = to_plain_lora(state)
    about = {"spec": spec.to_json(), "sha256": state_hash(state).hex()}
    save_file({n: t.detach().contiguous().float() for n, t in plain.items()}, staging / _WEIGHTS, {"format": "pt"})
    if spec.kind != "lora":
        save_file({n: t.detach().contiguous().float() for n, t in state.items()}, staging / _NATIVE, {"format": "pt"})
        about["plain_sha256"] = state_hash(plain).hex()
    config = _peft_config(spec, plain, base_model)
    config.inference_mode = True
    config.save_pretrained(staging)
    about["config_sha256"] = hashlib.sha256((staging / _CONFIG).read_bytes()).hexdigest()
    (staging / "gradtf.json").write_text(json.dumps(about))
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

    The state is that of the spec's kind. Raises ConfigError when the folder is no LoRA adapter or holds whole weights
    of the model, CorruptFile when its content does not match its hash.
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
        state, spec = _own_state(folder, state)
    whole = sorted(name for name in state if not (".lora_" in name or name.endswith(".delta.weight")))
    if whole:
        raise ConfigError(
            f"adapter {folder}: it holds whole weights, e.g. {whole[0]}; save it with save_embedding_layers=False"
        )
    return state, spec, str(config.get("base_model_name_or_path") or "")


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
