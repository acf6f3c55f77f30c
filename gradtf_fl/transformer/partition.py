"""Partitions: how an update vector U [blocks, block_dim] is cut into the tokens that the Grad-Transformer reads.

A partition is a view inside the Grad-Transformer and exactly invertible, so the vector on the wire stays one and the
same. Strategies of the paper's Table 4:

    block            one token for each block (default)
    per-projection   "Q-V separately": a part, and a transformer of its own, for each projection

Either can reverse the order of the blocks on the source's side, the target's or both (the paper's "reverse block
order"), and cut long blocks [L, n] into chunks [L * ceil(n / c), c], filled up with zeros. Parameters outside the
numbered layers are a part of their own at their true length.

Of a mixture of experts each expert is a token of its own in the block of its layer: with E experts whose adapters have
n values each, a part [L * E, n] follows that of the layers' other matrices, layer after layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gradtf_fl.adapters import BlockLayout, Columns, Slot, split_name
from gradtf_fl.errors import ConfigError

STRATEGIES = ("block", "per-projection")
REVERSALS = ("none", "source", "target", "both")
EXPERTS = "experts"
"""Name of the part that holds the experts of all layers."""
OUTSIDE = "outside"
"""Name of the part that holds parameters outside the numbered layers."""


@dataclass(frozen=True)
class Part:
    """Some columns of the layers' rows, or all that is outside the layers, as tokens [tokens, dim].

    Attributes:
        rows: layers, or 1 outside them.
        columns: places within a layer's row, expert after expert; outside: within the run of trailing values.
        chunk: length of a token.
        reverse: last layer first.
        experts: how many equal pieces of a row are cut apart before it is cut into chunks.
    """

    name: str
    rows: int
    columns: tuple[Columns, ...]
    chunk: int
    reverse: bool = False
    experts: int = 1

    @property
    def width(self) -> int:
        """Parameters in one row, of one expert."""
        return sum(columns.size for columns in self.columns) // self.experts

    @property
    def pieces(self) -> int:
        """Tokens for one expert, or for a row without experts."""
        return -(-self.width // self.chunk)

    @property
    def per_row(self) -> int:
        """Tokens for one row."""
        return self.experts * self.pieces

    @property
    def tokens(self) -> int:
        return self.rows * self.per_row

    @property
    def mask(self) -> Tensor | None:
        """bool [tokens, chunk], false where a token is filled up with zeros; None where none is."""
        if self.width % self.chunk == 0:
            return None
        inside = torch.arange(self.pieces * self.chunk) < self.width
        return inside.reshape(self.pieces, self.chunk).repeat(self.rows * self.experts, 1)

    def cut(self, rows: Tensor) -> Tensor:
        """Tokens [B, tokens, chunk] of rows [B, rows, >= width]."""
        chosen = torch.cat([rows[..., columns.slice] for columns in self.columns], -1)
        if self.reverse:
            chosen = chosen.flip(1)
        apart = chosen.reshape(len(rows), self.rows * self.experts, self.width)
        filled = torch.nn.functional.pad(apart, (0, self.pieces * self.chunk - self.width))
        return filled.reshape(len(rows), self.tokens, self.chunk)

    def uncut(self, tokens: Tensor) -> list[Tensor]:
        """Inverse of `cut`: [B, rows, size] for each of ``columns``."""
        filled = tokens.reshape(len(tokens), self.rows * self.experts, self.pieces * self.chunk)[..., : self.width]
        joined = filled.reshape(len(tokens), self.rows, self.experts * self.width)
        if self.reverse:
            joined = joined.flip(1)
        return list(torch.split(joined, [columns.size for columns in self.columns], -1))


@dataclass(frozen=True)
class Partition:
    """One side's parts. ``split`` and ``join`` are exact inverses on vectors of that side's layout."""

    blocks: int
    block_dim: int
    layers: int
    parts: tuple[Part, ...]

    @classmethod
    def whole(cls, blocks: int, block_dim: int) -> Partition:
        """Every row is one token."""
        return cls(blocks, block_dim, blocks, (Part("layers", blocks, (Columns(0, block_dim),), block_dim),))

    @classmethod
    def of(cls, layout: BlockLayout, strategy: str = "block", reverse: bool = False, chunk: int = 0) -> Partition:
        """The partition of a layout; ``chunk`` 0 keeps rows whole (outside the layers: evenly cut to block size)."""
        groups: dict[str, list[Slot]] = {}
        for slot in layout.slots:
            of_layer = EXPERTS if slot.experts > 1 else "layers"
            module = split_name(slot.suffix)[0].removesuffix(".base_layer")
            groups.setdefault(of_layer if strategy == "block" else module.rpartition(".")[2], []).append(slot)
        parts = []
        for name, slots in sorted(groups.items(), key=lambda group: group[0] == EXPERTS):
            experts = slots[0].experts
            if any(slot.experts != experts for slot in slots):
                raise ConfigError(f"partition: layers have {sorted({slot.experts for slot in slots})} experts")
            columns = tuple(slot.columns(expert) for expert in range(experts) for slot in slots)
            width = sum(slot.size for slot in slots) // experts
            parts.append(Part(name, layout.layers, columns, min(chunk, width) or width, reverse, experts))
        if layout.extra:
            size = layout.extra_size
            even = -(-size // layout.extra_rows)
            parts.append(Part(OUTSIDE, 1, (Columns(0, size),), min(chunk, size) or even))
        return cls(layout.blocks, layout.block_dim, layout.layers, tuple(parts))

    @property
    def is_whole(self) -> bool:
        """Whether the tokens are the rows as they stand."""
        if len(self.parts) > 1:
            return False
        part = self.parts[0]
        return not part.reverse and part.chunk == self.block_dim  # an expert's chunk is shorter than a row

    def split(self, updates: Tensor) -> list[Tensor]:
        """[B, blocks, block_dim] -> [B, tokens, dim] for each part."""
        if self.is_whole:
            return [updates]
        layers, outside = updates[:, : self.layers], updates[:, self.layers :].reshape(len(updates), 1, -1)
        return [part.cut(outside if part.name == OUTSIDE else layers) for part in self.parts]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Inverse of `split`; zeros where trailing rows are only filled up."""
        if self.is_whole:
            return parts[0]
        batch = len(parts[0])
        layers = parts[0].new_zeros(batch, self.layers, self.block_dim)
        outside = parts[0].new_zeros(batch, (self.blocks - self.layers) * self.block_dim)
        for part, tokens in zip(self.parts, parts, strict=True):
            for columns, values in zip(part.columns, part.uncut(tokens), strict=True):
                if part.name == OUTSIDE:
                    outside[:, columns.slice] = values[:, 0]
                else:
                    layers[..., columns.slice] = values
        return torch.cat([layers, outside.reshape(batch, -1, self.block_dim)], 1)


@dataclass(frozen=True)
class Route:
    """One transformer's parts: from those of the source at these places to those of the target."""

    source: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True)
class PartitionPlan:
    """What a checkpoint stores of a partition; ConfigError names every bad value.

    Attributes:
        reverse: on which sides the last block comes first.
        source_chunk, target_chunk: longest token; 0 keeps blocks whole.
    """

    strategy: str = "block"
    reverse: str = "none"
    source_chunk: int = 0
    target_chunk: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.strategy not in STRATEGIES:
            problems.append(f"partition strategy {self.strategy!r} is unknown: there are {', '.join(STRATEGIES)}")
        if self.reverse not in REVERSALS:
            problems.append(f"partition reverse {self.reverse!r} is unknown: there are {', '.join(REVERSALS)}")
        for name, chunk in (("source_chunk", self.source_chunk), ("target_chunk", self.target_chunk)):
            if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 0:
                problems.append(f"partition {name} must be a whole number of at least 0, not {chunk!r}")
        if problems:
            raise ConfigError(problems)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> PartitionPlan:
        """Plan from `to_json`'s form; ConfigError names keys and values that this program does not know."""
        foreign = sorted(set(document) - {"strategy", "reverse", "source_chunk", "target_chunk"})
        if foreign:
            raise ConfigError([f"partition {key!r} is unknown" for key in foreign])
        return cls(**document)

    def between(self, source: BlockLayout, target: BlockLayout) -> Partitioning:
        """This plan on two layouts."""
        return Partitioning(
            self,
            Partition.of(source, self.strategy, self.reverse in ("source", "both"), self.source_chunk),
            Partition.of(target, self.strategy, self.reverse in ("target", "both"), self.target_chunk),
        )


PLANS = {
    "block": PartitionPlan(),
    "per-projection": PartitionPlan("per-projection"),
    "reversed": PartitionPlan(reverse="both"),
    "reversed-source": PartitionPlan(reverse="source"),
    "reversed-target": PartitionPlan(reverse="target"),
}
"""The strategies of Table 4 by name."""


@dataclass(frozen=True)
class Partitioning:
    """Both sides' partitions."""

    plan: PartitionPlan
    source: Partition
    target: Partition

    @property
    def is_whole(self) -> bool:
        """Whether both sides' tokens are their rows as they stand."""
        return self.source.is_whole and self.target.is_whole

    @property
    def routes(self) -> tuple[Route, ...]:
        """By block: one transformer reads all parts and writes all. Per projection: one for each part of the target,
        from the source's part of the same name, or from all parts where the source has none of that name."""
        everything = tuple(range(len(self.source.parts)))
        if self.plan.strategy == "block":
            return (Route(everything, tuple(range(len(self.target.parts)))),)
        names = {part.name: (n,) for n, part in enumerate(self.source.parts)}
        return tuple(Route(names.get(part.name, everything), (n,)) for n, part in enumerate(self.target.parts))
