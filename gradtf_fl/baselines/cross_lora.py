"""Cross-LoRA (Xia et al. 2025, arXiv 2508.05232): carry an adapter across by the base weights' singular vectors.

For each adapted projection, W_s = U_s S_s V_s^T and W_t = U_t S_t V_t^T, cut to r singular triplets. The Frobenius-best
linear map that takes U_s to U_t is U_t U_s^T, and V_t V_s^T for the inputs (it exists for different widths), so

    delta W_t = U_t (U_s^T delta W_s V_s) V_t^T,    delta W_s = scale_s * B A.

No data and no training: the provider needs both base models and the TinyLM update. A singular pair's sign is free, and
coordinates change with it; here the largest entry of each left vector is positive, so the map is at least
deterministic. Target layer j takes the source layer at the same relative depth, floor((j + 1/2) L1 / L2). Adapters
outside the numbered layers (embeddings) are not carried: their update is 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gradtf_fl.adapters import Vector
from gradtf_fl.errors import ConfigError
from gradtf_fl.training import StackedAdapters, StackedLinear

_MODULE = re.compile(r"\.[^.]+\.(\d+)\.(.+)$")
_Place = tuple[int, str]  # layer, projection's name below the layer


@dataclass(frozen=True)
class TruncationError:
    """Shares of a Frobenius norm, in 0..1, pooled over all projections of an update.

    Attributes:
        subspace: of the source's delta W, what lies outside its r singular pairs.
        rank: of the carried delta W, what the target's LoRA can't hold (rank too small, or A frozen).
    """

    subspace: float
    rank: float


@dataclass(frozen=True)
class _Factors:
    left: Tensor  # [out, r]
    right: Tensor  # [in, r]


class CrossLora:
    """Carries updates from ``source`` to ``target``; both need the same projections by name.

    >>> import numpy as np
    >>> from gradtf_fl import AdapterSpec, CrossLora, Pair
    >>> pair = Pair.load("embedded:tiny", "embedded:llm", AdapterSpec())
    >>> update = np.full(pair.tiny.initial.shape, 0.01, np.float32)
    >>> CrossLora(pair.tiny, pair.llm).generate(update).shape == pair.llm.initial.shape
    True
    """

    def __init__(self, source: StackedAdapters, target: StackedAdapters, rank: int | None = None) -> None:
        """Decompose the base weights once.

        Args:
            rank: singular triplets kept, r; as many as both weights have unless given.

        Raises ConfigError when an adapter is not a LoRA, or a target projection has no source projection of its name.
        """
        kinds = [side.spec.kind for side in (source, target)]
        if kinds != ["lora", "lora"]:
            raise ConfigError(f"Cross-LoRA carries LoRA adapters; these are of kind {' and '.join(kinds)}")
        if any(slot.experts > 1 for side in (source, target) for slot in side.layout.slots):
            raise ConfigError("Cross-LoRA carries adapters of single layers, not of experts")
        self.source, self.target = source, target
        source_weights, target_weights = _base_weights(source), _base_weights(target)
        source_layers, target_layers = source.layout.layers, target.layout.layers
        self._depths = [int((j + 0.5) * source_layers / target_layers) for j in range(target_layers)]
        missing = sorted({name for _, name in target_weights} - {name for _, name in source_weights})
        if missing:
            raise ConfigError([f"Cross-LoRA: the source has no adapted projection {name}" for name in missing])
        self._pairs: dict[_Place, tuple[_Factors, _Factors]] = {}
        for (layer, name), weight in target_weights.items():
            other = source_weights[(self._depths[layer], name)]
            kept = min(*weight.shape, *other.shape, rank or min(weight.shape))
            self._pairs[(layer, name)] = (_singular(other, kept), _singular(weight, kept))

    def generate(self, update: Vector) -> Vector:
        """LLM update [L2, n2], relative to the LLM's shared initial adapter, from a TinyLM update [L1, n1]."""
        return self._carry(update)[0]

    def truncation_error(self, update: Vector) -> TruncationError:
        """What is lost on the way; see `TruncationError`."""
        return self._carry(update)[1]

    def _carry(self, update: Vector) -> tuple[Vector, TruncationError]:
        deltas = _weight_deltas(self.source, update)
        state = dict(self.target.adapted.initial)
        lost_subspace = lost_rank = whole = carried_whole = 0.0
        for (layer, name), (source, target) in self._pairs.items():
            delta = deltas[(self._depths[layer], name)]
            core = source.left.T @ delta @ source.right
            carried = target.left @ core @ target.right.T
            key_a, key_b = _keys(self.target, layer, name)
            state[key_a], state[key_b] = self._factor(carried, state[key_a].double())
            held = self.target.spec.scale * state[key_b] @ state[key_a]
            whole += float(delta.square().sum())
            carried_whole += float(carried.square().sum())
            lost_subspace += float((delta - source.left @ core @ source.right.T).square().sum())
            lost_rank += float((carried - held).square().sum())
        layout = self.target.layout
        vector = layout.to_vector({key: tensor.float() for key, tensor in state.items()})
        error = TruncationError(_share(lost_subspace, whole), _share(lost_rank, carried_whole))
        return vector - self.target.initial.numpy(), error

    def _factor(self, delta: Tensor, initial_a: Tensor) -> tuple[Tensor, Tensor]:
        """(A, B) of the target's rank with scale * B A nearest to ``delta``; A stays as it is where it is frozen."""
        spec = self.target.spec
        if not spec.train_a:
            return initial_a, delta @ torch.linalg.pinv(initial_a) / spec.scale
        u, s, vh = torch.linalg.svd(delta / spec.scale, full_matrices=False)
        rank = min(spec.rank, len(s))
        root = s[:rank].sqrt()
        a, b = torch.zeros_like(initial_a), torch.zeros(len(delta), spec.rank, dtype=delta.dtype)
        a[:rank], b[:, :rank] = root[:, None] * vh[:rank], u[:, :rank] * root
        return a, b


def _share(lost: float, whole: float) -> float:
    return (lost / whole) ** 0.5 if whole > 0 else 0.0


def _base_weights(side: StackedAdapters) -> dict[_Place, Tensor]:
    """Base weight [out, in] in float64 of every adapted projection."""
    weights = {}
    for name, module in side.model.named_modules():
        found = _MODULE.search(f".{name}")
        if found is not None and isinstance(module, StackedLinear):
            weights[(int(found.group(1)), found.group(2))] = module.weight.detach().double()
    return weights


def _singular(weight: Tensor, rank: int) -> _Factors:
    """The first ``rank`` singular pairs, signs fixed by the left vector's largest entry."""
    u, _, vh = torch.linalg.svd(weight, full_matrices=False)
    largest = u.abs().argmax(0)
    signs = torch.where(u[largest, torch.arange(u.shape[1])] < 0, -1.0, 1.0).to(u.dtype)
    return _Factors((u * signs)[:, :rank], (vh.T * signs)[:, :rank])


def _keys(side: StackedAdapters, layer: int, name: str) -> tuple[str, str]:
    """State-dict names of A and B of one projection."""
    stem = f"{side.layout.prefix}{layer}.{name}"
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"


def _weight_deltas(side: StackedAdapters, update: Vector) -> dict[_Place, Tensor]:
    """scale * B A [out, in] of every projection, with the adapter at initial + update."""
    moved = side.layout.to_state(side.initial.numpy() + update)
    state: Mapping[str, Tensor] = {**side.adapted.initial, **moved}
    deltas = {}
    for place in _base_weights(side):
        key_a, key_b = _keys(side, *place)
        deltas[place] = side.spec.scale * state[key_b].double() @ state[key_a].double()
    return deltas
