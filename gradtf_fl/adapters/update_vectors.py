"""Update vectors: an adapter's parameters as a float32 matrix [blocks, block_dim], exact both ways.

U = theta_after - theta_initial (paper, section 4.1). A block is one attention block's adapter parameters,
concatenated in a fixed order: projections by name, A before B, each row-major. Parameters outside the numbered
layers (embeddings, the output head) follow in trailing rows, filled up with zeros.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.adapters.kinds import split_name
from gradtf_fl.adapters.spec import State
from gradtf_fl.errors import ConfigError

if TYPE_CHECKING:
    import torch

Vector = NDArray[np.float32]
Shape = tuple[int, int]
_LAYER = re.compile(r"\.[^.]+\.(\d+)\.")
"""The first numbered part of a name is its layer: ".layers.0.", ".h.0.", ".blocks.0."; later ones are an expert's."""


class Columns(NamedTuple):
    """Every ``step``-th value of a block from ``start`` on, before ``stop``."""

    start: int
    stop: int
    step: int = 1

    @property
    def size(self) -> int:
        return len(range(*self))

    @property
    def slice(self) -> slice:
        return slice(*self)


@dataclass(frozen=True)
class Slot:
    """One parameter's place inside a block: ``block[start : start + prod(shape)]``.

    Attributes:
        suffix: name after the layer's number, e.g. "self_attn.q_proj.lora_A.weight"; outside the layers the whole name.
        start: first value.
        shape: of the matrix.
        experts: how many experts' matrices stand in it: one below the other in A [experts * rank, in], column by column
            in B [out, rank * experts]; 1 for a layer that is none of a mixture.
    """

    suffix: str
    start: int
    shape: Shape
    experts: int = 1

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def stop(self) -> int:
        return self.start + self.size

    def columns(self, expert: int) -> Columns:
        """The values of one expert's matrix, row-major."""
        if self.experts == 1:
            return Columns(self.start, self.stop)
        if split_name(self.suffix)[1] == "lora_A":
            share = self.size // self.experts
            return Columns(self.start + expert * share, self.start + (expert + 1) * share)
        return Columns(self.start + expert, self.stop, self.experts)


@dataclass(frozen=True)
class BlockLayout:
    """Where each adapter parameter lies in an update vector [blocks, block_dim].

    ``extra`` are parameters outside the numbered layers: one run of values over the last ``extra_rows`` rows.

    >>> from gradtf_fl import AdapterSpec, BlockLayout, initial_state, load_model
    >>> state = initial_state(load_model("embedded:tiny")[0], AdapterSpec())
    >>> layout = BlockLayout.from_state(state)
    >>> layout.to_vector(state).shape == (layout.blocks, layout.block_dim)
    True
    """

    prefix: str  # name before the layer's number, e.g. "base_model.model.model.layers."
    blocks: int  # rows of the vector: the layers, then ``extra_rows``
    slots: tuple[Slot, ...]
    extra: tuple[Slot, ...] = ()

    @property
    def block_dim(self) -> int:
        """Adapter parameters in one block."""
        return sum(slot.size for slot in self.slots)

    @property
    def size(self) -> int:
        """Values in the whole vector, blocks * block_dim (trailing zeros of ``extra`` included)."""
        return self.blocks * self.block_dim

    @property
    def extra_size(self) -> int:
        """Parameters outside the numbered layers."""
        return sum(slot.size for slot in self.extra)

    @property
    def extra_rows(self) -> int:
        """Trailing rows that hold ``extra``."""
        return -(-self.extra_size // self.block_dim) if self.extra else 0

    @property
    def layers(self) -> int:
        """Numbered layers, which are the first rows."""
        return self.blocks - self.extra_rows

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the layout; two sides with equal digests mean the same coordinates."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_state(cls, state: State, train_a: bool = True, rank: int = 0) -> BlockLayout:
        """Layout of an adapter's state dict.

        With ``train_a`` false only the B matrices are in it (FFA-LoRA). Of LoRA-XS, whose A and B are frozen, only
        R is.

        Args:
            state: the adapter.
            train_a: whether A is in it.
            rank: of one matrix, which says how many experts' matrices stand in one; 0 for an adapter on no experts.

        Raises:
            ConfigError: no parameter lies in a numbered layer, or layers differ in shape.
        """
        prefixes: set[str] = set()
        layers: dict[int, dict[str, Shape]] = {}
        outside: dict[str, Shape] = {}
        for name in _trained(state, train_a):
            if state[name].dim() != 2:
                raise ConfigError(f"adapter parameter {name!r} is no matrix")
            shape = (state[name].shape[0], state[name].shape[1])
            found = _LAYER.search(name)
            if found is None:
                outside[name] = shape
                continue
            prefixes.add(name[: found.start(1)])
            layers.setdefault(int(found.group(1)), {})[name[found.end() :]] = shape
        if not layers:
            raise ConfigError("no adapter parameter lies in a numbered layer: target a projection of the layers too")
        if len(prefixes) != 1 or sorted(layers) != list(range(len(layers))):
            raise ConfigError(
                f"adapter layers are not one run 0..L-1: {sorted(layers)} under {sorted(prefixes)}; choose targets "
                "that every layer has, such as the attention projections"
            )
        for number, shapes in layers.items():
            if shapes != layers[0]:
                odd = sorted(dict(shapes.items() ^ layers[0].items()))[0]
                raise ConfigError(
                    f"adapter layer {number} differs in shape from layer 0, e.g. at {odd}: a block must have one size; "
                    "choose targets that are alike in every layer, such as the attention projections"
                )
        return cls._of(prefixes.pop(), len(layers), _in_a_row(layers[0], rank), _in_a_row(outside))

    @classmethod
    def _of(cls, prefix: str, layers: int, slots: tuple[Slot, ...], extra: tuple[Slot, ...]) -> BlockLayout:
        inner = cls(prefix, layers, slots, extra)
        return cls(prefix, layers + inner.extra_rows, inner.slots, inner.extra)

    def name(self, block: int, slot: Slot) -> str:
        """Full state-dict name of ``slot`` in block ``block``."""
        return f"{self.prefix}{block}.{slot.suffix}"

    def pieces(self, vector: Any) -> Iterator[tuple[str, Shape, Any]]:
        """(name, shape, values [..., size]) of every parameter in an array or tensor [..., blocks, block_dim].

        The values are views where the array is contiguous.
        """
        for block in range(self.layers):
            for slot in self.slots:
                yield self.name(block, slot), slot.shape, vector[..., block, slot.start : slot.stop]
        if self.extra:
            outside = vector[..., self.layers :, :].reshape(*vector.shape[:-2], -1)
            for slot in self.extra:
                yield slot.suffix, slot.shape, outside[..., slot.start : slot.stop]

    def parameter_mask(self) -> NDArray[np.bool_]:
        """bool [blocks, block_dim]: false where a trailing row is only filled up."""
        mask = np.ones((self.blocks, self.block_dim), dtype=np.bool_)
        if self.extra:
            mask[self.layers :].reshape(-1)[self.extra_size :] = False
        return mask

    def to_vector(self, state: State) -> Vector:
        """float32 [blocks, block_dim] of a state dict; ConfigError names what is missing or misshapen."""
        vector = np.zeros((self.blocks, self.block_dim), dtype=np.float32)
        for name, shape, values in self.pieces(vector):
            tensor = state.get(name)
            if tensor is None or tuple(tensor.shape) != shape:
                found = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
                raise ConfigError(f"adapter parameter {name} is {found}, wanted {shape}")
            values[...] = tensor.detach().to("cpu").float().numpy().reshape(-1)
        return vector

    def to_state(self, vector: Vector) -> dict[str, torch.Tensor]:
        """State dict (float32 tensors, copies) of a vector [blocks, block_dim]."""
        import torch

        if vector.shape != (self.blocks, self.block_dim):
            raise ConfigError(f"update vector is {vector.shape}, wanted {(self.blocks, self.block_dim)}")
        return {
            name: torch.from_numpy(np.array(values.reshape(shape), dtype=np.float32))
            for name, shape, values in self.pieces(vector)
        }

    def to_json(self) -> dict[str, object]:
        """Plain JSON form, read back by `from_json`. ``extra`` is in it only where there is any, so that digests of
        layouts without it are what they always were."""
        document: dict[str, object] = {
            "prefix": self.prefix,
            "blocks": self.blocks,
            "slots": [_slot_json(slot) for slot in self.slots],
        }
        if self.extra:
            document["extra"] = [_slot_json(slot) for slot in self.extra]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, object]) -> BlockLayout:
        """Layout from `to_json`'s form; KeyError, TypeError or ValueError on another form."""
        slots, extra = _slots(document["slots"]), _slots(document.get("extra", ()))
        layout = cls(str(document["prefix"]), int(str(document["blocks"])), slots, extra)
        if extra and (not slots or layout.layers < 1):
            raise ValueError("a layout's extra rows leave no layer")
        return layout


def _in_a_row(shapes: Mapping[str, Shape], rank: int = 0) -> tuple[Slot, ...]:
    """Slots by name, one after the other; ``rank`` as in `BlockLayout.from_state`."""
    slots: list[Slot] = []
    for suffix, shape in sorted(shapes.items()):
        ranks = {"lora_A": shape[0], "lora_B": shape[1]}.get(split_name(suffix)[1], rank)
        slots.append(Slot(suffix, slots[-1].stop if slots else 0, shape, ranks // rank if rank else 1))
    return tuple(slots)


def _slot_json(slot: Slot) -> list[object]:
    """The number of experts is in it only where there are several, so that other digests are what they always were."""
    return [slot.suffix, list(slot.shape), *([slot.experts] if slot.experts > 1 else [])]


def _slots(listed: Any) -> tuple[Slot, ...]:
    slots: list[Slot] = []
    for suffix, shape, *more in listed:
        experts = int(*more) if more else 1
        slot = Slot(str(suffix), slots[-1].stop if slots else 0, (int(shape[0]), int(shape[1])), experts)
        if experts < 1 or slot.size % experts:
            raise ValueError("a slot's experts do not divide it")
        slots.append(slot)
    return tuple(slots)


def _trained(state: State, train_a: bool) -> list[str]:
    if any(".lora_R." in name for name in state):
        return [name for name in state if ".lora_R." in name]
    return [name for name in state if train_a or not (".lora_A." in name or name.endswith(".lora_embedding_A"))]


def update_vector(layout: BlockLayout, after: State, initial: State) -> Vector:
    """U = after - initial, float32 [blocks, block_dim].

    >>> from gradtf_fl import AdapterSpec, BlockLayout, initial_state, load_model, update_vector
    >>> initial = initial_state(load_model("embedded:tiny")[0], AdapterSpec())
    >>> after = {name: tensor + 0.5 for name, tensor in initial.items()}
    >>> float(update_vector(BlockLayout.from_state(initial), after, initial).mean())
    0.5
    """
    return layout.to_vector(after) - layout.to_vector(initial)


def apply_update(layout: BlockLayout, initial: State, vector: Vector) -> dict[str, torch.Tensor]:
    """initial + U as a full state dict; parameters outside the layout keep their initial values."""
    moved = layout.to_state(layout.to_vector(initial) + np.asarray(vector, dtype=np.float32))
    return {name: moved.get(name, tensor) for name, tensor in initial.items()}
