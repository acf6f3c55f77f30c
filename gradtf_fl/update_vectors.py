"""Update vectors: an adapter's parameters as a float32 matrix [blocks, block_dim], exact both ways.

U = theta_after - theta_initial (paper, section 4.1). A block is one attention block's adapter parameters,
concatenated in a fixed order: projections by name, A before B, each row-major.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.errors import ConfigError

if TYPE_CHECKING:
    import torch

    State = Mapping[str, torch.Tensor]

Vector = NDArray[np.float32]
_LAYER = re.compile(r"\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Slot:
    """One parameter's place inside a block: ``block[start : start + prod(shape)]``."""

    suffix: str  # name after "layers.N.", e.g. "self_attn.q_proj.lora_A.weight"
    start: int
    shape: tuple[int, int]

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class BlockLayout:
    """Where each adapter parameter lies in an update vector [blocks, block_dim]."""

    prefix: str  # name before the layer's number, e.g. "base_model.model.model.layers."
    blocks: int
    slots: tuple[Slot, ...]

    @property
    def block_dim(self) -> int:
        """Adapter parameters in one block."""
        return sum(slot.size for slot in self.slots)

    @property
    def size(self) -> int:
        """Parameters in the whole vector, blocks * block_dim."""
        return self.blocks * self.block_dim

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the layout; two sides with equal digests mean the same coordinates."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_state(cls, state: State, train_a: bool = True) -> BlockLayout:
        """Layout of a PEFT LoRA state dict; with ``train_a`` false only the B matrices are in it (FFA-LoRA).

        Raises ConfigError where parameters lie outside numbered layers or layers differ in shape.
        """
        prefixes: set[str] = set()
        layers: dict[int, dict[str, tuple[int, int]]] = {}
        for name, tensor in state.items():
            if not train_a and ".lora_A." in name:
                continue
            found = _LAYER.search(name)
            if found is None or tensor.dim() != 2:
                raise ConfigError(f"adapter parameter {name!r} is no matrix inside a numbered layer")
            prefixes.add(name[: found.start(1)])
            layers.setdefault(int(found.group(1)), {})[name[found.end() :]] = (tensor.shape[0], tensor.shape[1])
        if len(prefixes) != 1 or sorted(layers) != list(range(len(layers))):
            raise ConfigError(f"adapter layers are not one run 0..L-1: {sorted(layers)} under {sorted(prefixes)}")
        first = layers[0]
        for number, shapes in layers.items():
            if shapes != first:
                raise ConfigError(f"adapter layer {number} differs in shape from layer 0: a block must have one size")
        slots, start = [], 0
        for suffix in sorted(first):
            slots.append(Slot(suffix, start, first[suffix]))
            start += slots[-1].size
        return cls(prefixes.pop(), len(layers), tuple(slots))

    def name(self, block: int, slot: Slot) -> str:
        """Full state-dict name of ``slot`` in block ``block``."""
        return f"{self.prefix}{block}.{slot.suffix}"

    def to_vector(self, state: State) -> Vector:
        """float32 [blocks, block_dim] of a state dict; ConfigError names what is missing or misshapen."""
        vector = np.empty((self.blocks, self.block_dim), dtype=np.float32)
        for block in range(self.blocks):
            for slot in self.slots:
                tensor = state.get(self.name(block, slot))
                if tensor is None or tuple(tensor.shape) != slot.shape:
                    found = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
                    raise ConfigError(f"adapter parameter {self.name(block, slot)} is {found}, wanted {slot.shape}")
                values = tensor.detach().to("cpu").float().numpy()
                vector[block, slot.start : slot.start + slot.size] = values.reshape(-1)
        return vector

    def to_state(self, vector: Vector) -> dict[str, torch.Tensor]:
        """State dict (float32 tensors, copies) of a vector [blocks, block_dim]."""
        import torch

        if vector.shape != (self.blocks, self.block_dim):
            raise ConfigError(f"update vector is {vector.shape}, wanted {(self.blocks, self.block_dim)}")
        state = {}
        for block in range(self.blocks):
            for slot in self.slots:
                values = vector[block, slot.start : slot.start + slot.size].reshape(slot.shape)
                state[self.name(block, slot)] = torch.from_numpy(np.array(values, dtype=np.float32))
        return state

    def to_json(self) -> dict[str, object]:
        """Plain JSON form, read back by `from_json`."""
        return {
            "prefix": self.prefix,
            "blocks": self.blocks,
            "slots": [[slot.suffix, list(slot.shape)] for slot in self.slots],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, object]) -> BlockLayout:
        """Layout from `to_json`'s form; KeyError, TypeError or ValueError on another form."""
        slots, start = [], 0
        for suffix, shape in document["slots"]:  # type: ignore[attr-defined]
            slots.append(Slot(str(suffix), start, (int(shape[0]), int(shape[1]))))
            start += slots[-1].size
        return cls(str(document["prefix"]), int(str(document["blocks"])), tuple(slots))


def update_vector(layout: BlockLayout, after: State, initial: State) -> Vector:
    """U = after - initial, float32 [blocks, block_dim]."""
    return layout.to_vector(after) - layout.to_vector(initial)


def apply_update(layout: BlockLayout, initial: State, vector: Vector) -> dict[str, torch.Tensor]:
    """initial + U as a full state dict; parameters outside the layout keep their initial values."""
    moved = layout.to_state(layout.to_vector(initial) + np.asarray(vector, dtype=np.float32))
    return {name: moved.get(name, tensor) for name, tensor in initial.items()}
