"""Kinds of adapters: what is trained on each target module, its initial values, and its export as plain PEFT LoRA.

    lora      W x + s B A x, A [rank, in] and B [out, rank] trained (Hu et al. 2022), on linear and embedding layers
              and on experts, whose matrices stand in A [experts * rank, in] and B [out, rank * experts] as PEFT has it
    lora-xs   W x + s B R A x, only R [rank, rank] trained (Balazy et al. 2024): W is nearly U S V^T, B = U S, A = V^T
    full      W x + D x, all of D [out, in] trained; biases stay as they are

with s = alpha / rank. Parameters are named as PEFT names them: "<module>.lora_A.weight", "<module>.lora_B.weight",
"<module>.lora_embedding_A" and "..._B"; R and D are "<module>.lora_R.weight" and "<module>.delta.weight". Every
adapter starts at zero: the initial adapter changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from gradtf_fl.adapters.spec import AdapterSpec, State
from gradtf_fl.adapters.targets import Target, named_targets, target_names
from gradtf_fl.errors import ConfigError

if TYPE_CHECKING:
    import torch

PREFIX = "base_model.model."
FULL_LIMIT = 2**26
"""Most values of a "full" adapter once it is exported as LoRA of full rank: 64 Mi, 256 MiB in float32."""


def split_name(name: str) -> tuple[str, str]:
    """("base_model.model...q_proj", "lora_A") of "base_model.model...q_proj.lora_A.weight"."""
    module, _, role = name.removesuffix(".weight").rpartition(".")
    return module, role


def find_targets(model: Any, spec: AdapterSpec) -> list[Target]:
    """Every layer that ``spec.targets`` name, in the model's order.

    Raises:
        ConfigError: a target that the model does not have, or that this kind of adapter can't be put on; all named.
    """
    found = named_targets(model, spec.targets)
    absent = [target for target in spec.targets if not named_targets(model, (target,))]
    problems = [f"the model has no linear or embedding layer named {target}" for target in absent]
    if absent:
        problems[-1] += f"; there are {', '.join(target_names(model))}"
    if spec.kind != "lora":
        problems += [
            f"{target.name}: an adapter of kind {spec.kind!r} goes on linear layers only"
            for target in found
            if target.is_embedding or target.parameter
        ]
    if spec.kind != "full":
        problems += [
            f"{target.name}: rank {spec.rank} is more than its weight has ({most})"
            for target in found
            if not target.is_embedding and spec.rank > (most := _largest_rank(target, spec.kind))
        ]
    if not found or problems:
        raise ConfigError(problems or "an adapter needs targets")
    return found


def _largest_rank(target: Target, kind: str) -> int:
    """Singular values of the weight; matrices of LoRA may have more columns than that, but never more than values."""
    smaller, larger = sorted((target.out_features, target.in_features))
    return larger if kind == "lora" else smaller


def initial_values(model: Any, spec: AdapterSpec) -> dict[str, torch.Tensor]:
    """The initial adapter of a plain model (it is left as it was): parameters by PEFT name, frozen ones included."""
    import torch

    targets = find_targets(model, spec)
    if spec.kind == "full":
        shapes = {f"{PREFIX}{t.name}.delta.weight": (t.out_features, t.in_features) for t in targets}
        _check_size(shapes.values())
        return {name: torch.zeros(shape) for name, shape in shapes.items()}
    if spec.kind == "lora-xs":
        return {name: value for target in targets for name, value in _xs_values(target, spec.rank).items()}
    empty: dict[str, torch.Tensor] = {}
    for target in targets:
        a, b = ("lora_embedding_A", "lora_embedding_B") if target.is_embedding else ("lora_A.weight", "lora_B.weight")
        ranks = spec.rank * target.experts
        empty[f"{PREFIX}{target.name}.{a}"] = torch.empty(ranks, target.in_features)
        empty[f"{PREFIX}{target.name}.{b}"] = torch.empty(target.out_features, ranks)
    return _draw(empty, spec.seed)


def _draw(empty: State, seed: int) -> dict[str, torch.Tensor]:
    """A ~ uniform(-1/sqrt(in), 1/sqrt(in)) in name order from numpy's PCG64; B = 0.

    An embedding's input is one-hot, so its A ~ uniform(-1, 1) gives what follows the same size.
    """
    import torch

    rng = np.random.default_rng([seed, 0x4C6F5241])
    state = {}
    for name in sorted(empty):
        rows, columns = empty[name].shape
        role = split_name(name)[1]
        if role in ("lora_A", "lora_embedding_A"):
            values = rng.uniform(-1, 1, (rows, columns)) / (np.sqrt(columns) if role == "lora_A" else 1.0)
            state[name] = torch.from_numpy(values.astype(np.float32))
        else:
            state[name] = torch.zeros(rows, columns)
    return state


def _xs_values(target: Target, rank: int) -> dict[str, torch.Tensor]:
    """A, B of the truncated singular value decomposition of the weight, and R = 0.

    Decomposed in float64, signs fixed, then rounded to half precision: two machines whose linear algebra differs in
    the last bits still get equal A and B, so that the initial adapter's hash is the same.
    """
    import torch

    weight = target.weight.detach().to("cpu").double().numpy()
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    signs = np.sign(vt[np.arange(len(vt)), np.abs(vt).argmax(1)])
    b, a = (u * s * signs)[:, :rank], (vt * signs[:, None])[:rank]
    name = f"{PREFIX}{target.name}"
    return {
        f"{name}.lora_A.weight": torch.from_numpy(a.astype(np.float16).astype(np.float32)),
        f"{name}.lora_B.weight": torch.from_numpy(b.astype(np.float16).astype(np.float32)),
        f"{name}.lora_R.weight": torch.zeros(rank, rank),
    }


def _check_size(shapes: Iterable[tuple[int, int]]) -> None:
    shapes = list(shapes)
    rank = max(min(shape) for shape in shapes)
    exported = sum(rank * (rows + columns) for rows, columns in shapes)
    if exported > FULL_LIMIT:
        raise ConfigError(
            f"adapter kind 'full' is for small models: exported as LoRA of full rank it has {exported:,} values, "
            f"more than {FULL_LIMIT:,}; take kind 'lora' or 'lora-xs'"
        )


def to_plain_lora(state: State) -> dict[str, torch.Tensor]:
    """Any kind's state dict as plain LoRA matrices with the same effect: (B R, A) of LoRA-XS; of a full delta D the
    factors (D, 1) or (1, D), filled up with zeros to the largest rank of all, for scale 1.

    Raises ConfigError when a full adapter is too large (`FULL_LIMIT`).
    """
    import torch

    roles = {split_name(name)[1] for name in state}
    if "lora_R" in roles:
        plain = {name: tensor for name, tensor in state.items() if split_name(name)[1] != "lora_R"}
        for name, tensor in state.items():
            module, role = split_name(name)
            if role == "lora_R":
                b = f"{module}.lora_B.weight"
                plain[b] = (state[b].double() @ tensor.double()).float()
        return plain
    if "delta" not in roles:
        return dict(state)
    shapes = [(tensor.shape[0], tensor.shape[1]) for tensor in state.values()]
    _check_size(shapes)
    rank = max(min(shape) for shape in shapes)
    plain = {}
    for name, delta in state.items():
        module, (rows, columns) = split_name(name)[0], delta.shape
        factor_b, factor_a = (torch.eye(rows), delta) if columns > rows else (delta, torch.eye(columns))
        plain[f"{module}.lora_A.weight"] = torch.nn.functional.pad(factor_a, (0, 0, 0, rank - factor_a.shape[0]))
        plain[f"{module}.lora_B.weight"] = torch.nn.functional.pad(factor_b, (0, rank - factor_b.shape[1]))
    return plain


def peft_config(spec: AdapterSpec, plain: State, base_model: str | None) -> Any:
    """PEFT's configuration of the plain LoRA state ``plain`` of an adapter of ``spec``."""
    from peft import LoraConfig

    rank = spec.rank
    if spec.kind == "full":
        rank = next(tensor.shape[0] for name, tensor in plain.items() if split_name(name)[1] == "lora_A")
    modules = {split_name(name)[0] for name in plain}
    layers = [target for target in spec.targets if any(module.endswith(f".{target}") for module in modules)]
    stacks = [target for target in spec.targets if target not in layers]
    return LoraConfig(
        r=rank,
        lora_alpha=rank if spec.kind == "full" else spec.alpha,  # type: ignore[arg-type]
        target_modules=layers,
        target_parameters=stacks or None,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model,
    )
