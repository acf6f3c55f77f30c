"""Update vectors of many shadow sets in parts, such as a store's mapped shards: what controls compute, in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.adapters import Vector

Matrix = NDArray[np.float64]
GRAM_BYTES = 1 << 27
"""Of values that a Gram matrix is computed from at once."""


@dataclass(frozen=True)
class UpdateParts:
    """Updates [N, blocks, block_dim] as ``parts`` [n_i, blocks, block_dim], which are read and never copied whole.

    Parts are float32, or float16 that is read as float32, one update at a time.
    """

    parts: Sequence[Vector]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[Vector]:
        return (one.astype(np.float32, copy=False) for part in self.parts for one in part)

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, blocks, block_dim]."""
        return (len(self), *self.parts[0].shape[1:])

    def halves(self) -> Iterator[bytes]:
        """Each update's bytes as float16."""
        return (one.astype(np.float16).tobytes() for part in self.parts for one in part)

    def __getitem__(self, number: int) -> Vector:
        for part in self.parts:
            if number < len(part):
                update: Vector = part[number].astype(np.float32, copy=False)
                return update
            number -= len(part)
        raise IndexError(number)

    @property
    def whole(self) -> Vector:
        """All of them in memory [N, blocks, block_dim]."""
        together: Vector = self.parts[0] if len(self.parts) == 1 else np.concatenate(self.parts)
        return together.astype(np.float32, copy=False)

    def products(self, update: Vector) -> Matrix:
        """Inner product [N] of each with ``update``."""
        flat = update.reshape(-1).astype(np.float64)
        return np.array([float(one.reshape(-1).astype(np.float64) @ flat) for one in self])

    def norms(self) -> Vector:
        """Length [N] of each."""
        return np.concatenate([np.linalg.norm(one.reshape(1, -1), axis=1) for one in self])

    def mean(self) -> Vector:
        """Their mean [blocks, block_dim], added up one after the other as NumPy does."""
        total = np.zeros(self.shape[1:], dtype=np.float32)
        for one in self:
            total += one
        mean: Vector = total / np.float32(len(self))
        return mean

    def weighted(self, weights: Matrix) -> Matrix:
        """Their sum [blocks, block_dim], each times its weight."""
        total = np.zeros(self.shape[1:])
        for weight, one in zip(weights, self, strict=True):
            total += weight * one
        return total

    def gram(self) -> Matrix:
        """Inner products [N, N] of each with each."""
        flat = [part.reshape(len(part), -1) for part in self.parts]
        columns = max(1, GRAM_BYTES // (8 * len(self)))
        total = np.zeros((len(self), len(self)))
        for first in range(0, flat[0].shape[1], columns):
            some = np.concatenate([part[:, first : first + columns] for part in flat]).astype(np.float64)
            total += some @ some.T
        return total
