"""Adapters as bytes on the wire: safetensors whose metadata hold the spec, the base model's name and its hash."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradtf_fl.adapters.spec import AdapterSpec, State
from gradtf_fl.errors import CorruptFile
from gradtf_fl.safetensors_header import metadata_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PackedAdapter:
    """What packed bytes hold.

    Attributes:
        state: every parameter by PEFT name.
        spec: which adapter it is.
        base_model: what its maker calls the base model.
        base_sha256: `model_hash` of that base model (hex); "" in bytes that version 0.1 packed.
    """

    state: dict[str, torch.Tensor]
    spec: AdapterSpec
    base_model: str
    base_sha256: str


def pack_adapter(state: State, spec: AdapterSpec, base_model: str, base_sha256: str) -> bytes:
    """Wire form: safetensors bytes whose metadata hold the rest of `PackedAdapter`. A signature over them covers it."""
    from safetensors.torch import save

    about = {"spec": spec.to_json(), "base_model": base_model, "base_sha256": base_sha256}
    metadata = {"gradtf": json.dumps(about, sort_keys=True)}
    packed: bytes = save({n: state[n].detach().contiguous().float() for n in sorted(state)}, metadata)
    return packed


def unpack_adapter(data: bytes) -> PackedAdapter:
    """What `pack_adapter`'s bytes hold; CorruptFile on anything else."""
    from safetensors.torch import load

    try:
        state = load(data)
        own = metadata_of(data, "gradtf")
        spec = AdapterSpec.from_json(own["spec"])
        return PackedAdapter(state, spec, str(own["base_model"]), str(own.get("base_sha256", "")))
    except Exception as error:
        raise CorruptFile(f"packed adapter is damaged ({type(error).__name__})") from error
