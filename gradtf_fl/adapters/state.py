"""One shared, seeded initial adapter, and its state in a model.

W x + (alpha / rank) B A x with A [rank, in], B [out, rank] (Hu et al. 2022), or another kind (`kinds`). The
initial A is drawn by numpy from the spec's seed, so that every organization and the provider start from the same
bytes; B starts at zero. Whatever the kind, a written folder is plain LoRA to PEFT.
"""

from __future__ import annotations

import hashlib
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from gradtf_fl.adapters.device import offloaded
from gradtf_fl.adapters.kinds import initial_values, peft_config, to_plain_lora
from gradtf_fl.adapters.spec import AdapterSpec, State
from gradtf_fl.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


def attach(model: Any, spec: AdapterSpec, initial: State | None = None) -> PeftModel:
    """``model`` wrapped in PEFT with the shared initial adapter; trainable is what the spec says is trained.

    LoRA-XS is PEFT's LoRA with R in front of B. A full adapter, which PEFT does not know, comes as the plain LoRA with
    the same effect, with nothing to train: it is trained by `training.stacked.StackedAdapters`. Where input and output
    embeddings are tied, LoRA on ``embed_tokens`` acts on the input alone. ``initial`` is `initial_state`, where that is
    at hand. ConfigError where weights are `offloaded`: PEFT would put the adapter there too.

    >>> from gradtf_fl import AdapterSpec, attach, load_model
    >>> model = attach(load_model("embedded:tiny")[0], AdapterSpec())
    >>> all("lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad)
    True
    """
    from peft import get_peft_model

    if problems := offloaded(model):
        raise ConfigError(problems)
    state = initial_state(model, spec) if initial is None else initial
    plain = to_plain_lora(state)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # said above
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")  # PEFT looks at each layer itself
        peft_model: Any = get_peft_model(model, peft_config(spec, plain, None))  # PEFT takes the model's own name
    if spec.kind == "lora-xs":
        _put_r(peft_model)
    set_adapter_state(peft_model, state)
    for name, parameter in peft_model.named_parameters():
        parameter.requires_grad_(_is_trained(name, spec))
    wrapped: PeftModel = peft_model
    return wrapped


def _is_trained(name: str, spec: AdapterSpec) -> bool:
    if spec.kind == "lora-xs":
        return name.endswith(_R)
    trained = (".lora_B.", ".lora_embedding_B.") + ((".lora_A.", ".lora_embedding_A.") if spec.train_a else ())
    return spec.kind == "lora" and any(role in name for role in trained)


_R, _B = ".lora_B.default.lora_R.weight", ".lora_B.default.outer.weight"


def _put_r(peft_model: Any) -> None:
    """In place of every B a module that computes B R: R [rank, rank] is trained, B is frozen."""
    from peft.tuners.lora import LoraLayer
    from torch import nn

    for layer in [module for module in peft_model.modules() if isinstance(module, LoraLayer)]:
        outer: Any = layer.lora_B["default"]
        inner = nn.Linear(outer.in_features, outer.in_features, bias=False)
        inner.to(device=outer.weight.device, dtype=outer.weight.dtype)
        both = nn.Sequential()
        both.add_module("lora_R", inner)
        both.add_module("outer", outer)
        layer.lora_B["default"] = both


def _xs_parameters(peft_model: Any) -> dict[str, Any]:
    """Parameters of an attached LoRA-XS by the names in its state; none for another adapter."""
    named = {name: p for name, p in peft_model.named_parameters() if ".lora_" in name}
    if not any(name.endswith(_R) for name in named):
        return {}
    shorter = {_R: ".lora_R.weight", _B: ".lora_B.weight", ".lora_A.default.weight": ".lora_A.weight"}
    return {
        name.removesuffix(long) + short: p
        for name, p in named.items()
        for long, short in shorter.items()
        if name.endswith(long)
    }


def _lora_parameters(peft_model: Any) -> dict[str, Any]:
    """Parameters of an attached plain LoRA by the names that PEFT saves them under."""
    return {name.replace(".default", ""): p for name, p in peft_model.named_parameters() if ".lora_" in name}


def initial_state(model: Any, spec: AdapterSpec) -> dict[str, torch.Tensor]:
    """The shared initial adapter for ``model`` (a plain model; it is left as it was).

    ConfigError when the model lacks a target or the kind does not go on one.

    >>> from gradtf_fl import AdapterSpec, initial_state, load_model
    >>> state = initial_state(load_model("embedded:tiny")[0], AdapterSpec())
    >>> {bool(tensor.any()) for name, tensor in state.items() if "lora_B" in name}  # B starts at zero
    {False}
    """
    return initial_values(model, spec)


def adapter_state(peft_model: Any) -> dict[str, torch.Tensor]:
    """The adapter's parameters by their PEFT names (detached CPU float32 copies).

    >>> from gradtf_fl import AdapterSpec, adapter_state, attach, initial_state, load_model
    >>> model, spec = load_model("embedded:tiny")[0], AdapterSpec()
    >>> initial = initial_state(model, spec)
    >>> adapter_state(attach(model, spec)).keys() == initial.keys()
    True
    """
    state = _xs_parameters(peft_model) or _lora_parameters(peft_model)
    return {name: tensor.detach().to("cpu").float().clone() for name, tensor in state.items()}


def set_adapter_state(peft_model: Any, state: State) -> None:
    """Load ``state``, of any kind, into the attached adapter; ConfigError when names differ."""
    import torch

    xs = _xs_parameters(peft_model)
    state = state if xs else to_plain_lora(state)
    own = xs or _lora_parameters(peft_model)
    expected = set(own)
    if expected != set(state):
        stray = sorted(expected ^ set(state))[:3]
        raise ConfigError(
            f"the adapter does not fit this model: {len(expected ^ set(state))} names differ, e.g. {stray}"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            if parameter.shape != state[name].shape:
                raise ConfigError(
                    f"the adapter does not fit this model: {name} is {tuple(state[name].shape)} there and "
                    f"{tuple(parameter.shape)} here"
                )
            parameter.copy_(state[name])


def state_hash(state: State) -> bytes:
    """SHA-256 over names, shapes and little-endian float32 values, in name order (32 bytes)."""
    digest = hashlib.sha256(b"gradtf/adapter/v1")
    for name in sorted(state):
        values = np.ascontiguousarray(state[name].detach().to("cpu").float().numpy(), dtype="<f4")
        digest.update(f"{name}\0{values.shape}\0".encode() + values.tobytes())
    return digest.digest()
