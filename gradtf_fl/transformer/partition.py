"""Partitions: how an update vector U [blocks, block_dim] is cut into the tokens that the Grad-Transformer reads.

A partition is a view inside the Grad-Transformer and exactly invertible, so the vector on the wire stays one and the
same. Strategies of the paper's Table 4:

    block            one token for each block (default)
    per-projection   "Q-V separately": a part, and a transformer of its own, for each projection

Either can reverse the order of the blocks on the source's side, the target's or both (the paper's "reverse block
order"), and cut long blocks [L, n] into chunks [L * ceil(n / c), c], filled up with zeros. Parameters outside the
numbered layers are a part of their own at their true length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gradtf_fl.adapters import BlockLayout, split_name
from gradtf_fl.errors import ConfigError

STRATEGIES = ("block", "per-projection")
REVERSALS = ("none", "source", "target", "both")
OUTSIDE = "outside"
"""Name of the part that holds parameters outside the numbered layers."""


@dataclass(frozen=True)
class Part:
    """Some columns of the layers' rows, or all that is outside the layers, as tokens [tokens, dim].

    Attributes:
        rows: layers, or 1 outside them.
        columns: (start, stop) within a layer's row; outside: within the run of trailing values.
        chunk: length of a token.
        reverse: last layer first.
    """

    name: str
    rows: int
    columns: tuple[tuple[int, int], ...]
    chunk: int
    reverse: bool = False

    @property
    def width(self) -> int:
        """Parameters in one row."""
        return sum(stop - start for start, stop in self.columns)

    @property
    def per_row(self) -> int:
        """Tokens for one row."""
        return -(-self.width // self.chunk)

    @property
    def tokens(self) -> int:
        return self.rows * self.per_row

    @property
    def mask(self) -> Tensor | None:
        """bool [tokens, chunk], false where a token is filled up with zeros; None where none is."""
        if self.width % self.chunk == 0:
            return None
        inside = torch.arange(self.per_row * self.chunk) < self.width
        return inside.reshape(self.per_row, self.chunk).repeat(self.rows, 1)

    def cut(self, rows: Tensor) -> Tensor:
        """Tokens [B, tokens, chunk] of rows [B, rows, >= width]."""
        chosen = torch.cat([rows[..., start:stop] for start, stop in self.columns], -1)
        if self.reverse:
            chosen = chosen.flip(1)
        filled = torch.nn.functional.pad(chosen, (0, self.per_row * self.chunk - self.width))
        return filled.reshape(len(rows), self.tokens, self.chunk)

    def uncut(self, tokens: Tensor) -> list[Tensor]:
        """Inverse of `cut`: [B, rows, stop - start] for each of ``columns``."""
        filled = tokens.reshape(len(tokens), self.rows, self.per_row * self.chunk)[..., : self.width]
        if self.reverse:
            filled = filled.flip(1)
        return list(torch.split(filled, [stop - start for start, stop in self.columns], -1))


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
        return cls(blocks, block_dim, blocks, (Part("layers", blocks, ((0, block_dim),), block_dim),))

    @classmethod
    def of(cls, layout: BlockLayout, strategy: str = "block", reverse: bool = False, chunk: int = 0) -> Partition:
        """The partition of a layout; ``chunk`` 0 keeps rows whole (outside the layers: evenly cut to block size)."""
        groups: dict[str, list[tuple[int, int]]] = {}
        for slot in layout.slots:
            name = "layers" if strategy == "block" else split_name(slot.suffix)[0].rsplit(".", 1)[-1]
            groups.setdefault(name, []).append((slot.start, slot.stop))
        parts = []
        for name, columns in groups.items():
            width = sum(stop - start for start, stop in columns)
            parts.append(Part(name, layout.layers, tuple(columns), min(chunk, width) or width, reverse))
        if layout.extra:
            size = layout.extra_size
            even = -(-size // layout.extra_rows)
            parts.append(Part(OUTSIDE, 1, ((0, size),), min(chunk, size) or even))
        return cls(layout.blocks, layout.block_dim, layout.layers, tuple(parts))

    @property
    def is_whole(self) -> bool:
        """Whether the tokens are the rows as they stand."""
        if len(self.parts) > 1:
            return False
        part = self.parts[0]
        return not part.reverse and part.chunk == self.block_dim

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
            for (start, stop), values in zip(part.columns, part.uncut(tokens), strict=True):
                if part.name == OUTSIDE:
                    outside[:, start:stop] = values[:, 0]
                else:
                    layers[..., start:stop] = values
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
