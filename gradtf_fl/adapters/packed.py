"""Adapters as bytes on the wire: safetensors whose metadata hold the spec and the base model's name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from gradtf_fl.adapters.spec import AdapterSpec, State
from gradtf_fl.errors import CorruptFile
from gradtf_fl.safetensors_header import metadata_of

if TYPE_CHECKING:
    import torch


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
        own = metadata_of(data, "gradtf")
        return state, AdapterSpec.from_json(own["spec"]), str(own["base_model"])
    except Exception as error:
        raise CorruptFile(f"packed adapter is damaged ({type(error).__name__})") from error
