"""Which layers of a model an adapter goes on: names of targets, and what they name in a model.

A target is the end of a layer's name, whole words between dots: "q_proj", "self_attn.q_proj", "shared_expert.up_proj".
A mixture of experts keeps the matrices of all routed experts of a layer in one parameter [experts, out, in];
"experts.gate_up_proj" and "experts.down_proj" name those. Such names have a dot, so that "down_proj" never means them.

``auto`` stands for the attention projections that PEFT adapts by default for the model's architecture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gradtf_fl.errors import ConfigError

AUTO = "auto"
_ATTENTION = (
    ("q_proj", "v_proj"),
    ("qkv_proj",),
    ("query_key_value",),
    ("c_attn",),
    ("Wqkv",),
    ("qkv",),
    ("in_proj_qkv",),
    ("att_proj",),
    ("query", "value"),
    ("q_lin", "v_lin"),
    ("wq", "wv"),
)
"""Names of attention projections by the habit of different authors, where PEFT's table has none."""


@dataclass(frozen=True)
class Target:
    """One matrix, or one stack of the experts' matrices, that an adapter goes on.

    Attributes:
        name: of the module that PEFT puts the adapter on; several parameters of one module are nested, the first one
            innermost: "mlp.experts.base_layer", "mlp.experts".
        module: what holds the weight.
        parameter: the weight's name in a mixture of experts; "" for a layer that is a module of its own.
        out_features: width of what comes out.
        in_features: width of what goes in; the vocabulary of an embedding.
        experts: how many matrices [out_features, in_features] it has; 1 for a layer that is a module of its own.
    """

    name: str
    module: Any
    parameter: str
    out_features: int
    in_features: int
    experts: int = 1

    @property
    def is_embedding(self) -> bool:
        """Whether it takes token ids."""
        from torch import nn

        return not self.parameter and isinstance(self.module, nn.Embedding)

    @property
    def weight(self) -> Any:
        """Its weight [out_features, in_features], with the experts in front; a view where the layer keeps it turned."""
        if self.parameter:
            return getattr(self.module, self.parameter)
        turned = self.is_embedding or _is_conv1d(self.module)
        return self.module.weight.mT if turned else self.module.weight


def named_targets(model: Any, names: Iterable[str]) -> list[Target]:
    """Everything in ``model`` that one of ``names`` names, in the model's order."""
    from torch import nn

    wanted, found = tuple(names), []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if _ends(name, wanted):
                found.append(Target(name, module, "", module.out_features, module.in_features))
        elif _is_conv1d(module):
            if _ends(name, wanted):
                found.append(Target(name, module, "", module.weight.shape[1], module.weight.shape[0]))
        elif type(module) is nn.Embedding:  # scaled embeddings are another layer
            if _ends(name, wanted):
                found.append(Target(name, module, "", module.embedding_dim, module.num_embeddings))
        else:
            found += _expert_targets(name, module, wanted)
    return found


def _expert_targets(name: str, module: Any, wanted: Sequence[str]) -> list[Target]:
    """The stacks of experts' matrices in ``module`` that are named, by PEFT's names for them."""
    dotted = tuple(target for target in wanted if "." in target)
    stacks = [
        (own, parameter)
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3 and _ends(f"{name}.{own}", dotted)
    ]
    turned = bool(getattr(module, "is_transposed", False))
    found = []
    for place, (own, parameter) in enumerate(stacks):
        experts, rows, columns = parameter.shape
        out, inner = (columns, rows) if turned else (rows, columns)
        nested = name + ".base_layer" * (len(stacks) - 1 - place)
        found.append(Target(nested, module, own, out, inner, experts))
    return found


def _ends(name: str, endings: Sequence[str]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


def _is_conv1d(module: Any) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def target_names(model: Any) -> list[str]:
    """Names that may stand among an adapter's targets: of every linear layer and stack of experts, sorted."""
    from torch import nn

    names = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or _is_conv1d(module):
            names.add(name.rpartition(".")[2])
        elif not isinstance(module, nn.Embedding):
            stacks = [own for own, p in module.named_parameters(recurse=False) if p.dim() == 3]
            names |= {f"{name.rpartition('.')[2]}.{own}" for own in stacks}
    return sorted(names)


def resolve_targets(model_or_config: Any, targets: str | Iterable[str] = AUTO) -> tuple[str, ...]:
    """The names that stand in a spec for ``targets``; "auto" becomes the attention projections of the architecture.

    The names are PEFT's own defaults, sorted. Where PEFT has none, or none that the model has, they are looked for
    under the usual names. All parties with the same model find the same names.

    >>> from gradtf_fl import load_model, resolve_targets
    >>> resolve_targets(load_model("embedded:tiny")[0], "auto")
    ('q_proj', 'v_proj')

    Args:
        model_or_config: a plain transformers model, or its config: then a model without weights is built.
        targets: "auto", or names, which are returned as they are.

    Raises:
        ConfigError: the model has no attention projections under a known name; the message names its linear layers.
    """
    names = (targets,) if isinstance(targets, str) else tuple(targets)
    if names != (AUTO,):
        return names
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    model = without_weights(model_or_config) if not hasattr(model_or_config, "named_modules") else model_or_config
    listed = DEFAULTS.get(_model_type(model.config))
    choices = [] if listed is None or isinstance(listed, str) else [tuple(sorted(listed))]
    here = set(target_names(model))
    for names in (*choices, *_ATTENTION):
        if here.issuperset(names):
            return names
    raise ConfigError(
        f"targets: 'auto' finds no attention projections in a {model.config.model_type} model; name them: its linear "
        f"layers are {', '.join(sorted(here)) or 'none'}"
    )


def _model_type(config: Any) -> str:
    return str(config.get_text_config().model_type)


def without_weights(config: Any) -> Any:
    """A model of this config whose parameters have shapes and no values."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
