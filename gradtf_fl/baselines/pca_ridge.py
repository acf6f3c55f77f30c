"""Per-block PCA and ridge: a linear map between few coefficients of updates, in the spirit of anchor-space ridge
regression (OpenReview HF8qoeEo1u), with the tuples as anchors.

Each source block and each target block has a PCA over the tuples. For each target block, ridge regression maps the
coefficients of ALL source blocks to that block's coefficients: what a target block needs may lie in another depth.
Rank and penalty are chosen for each target block by cross-validation, on the error of the whole block, not only of the
directions kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.adapters import Vector
from gradtf_fl.errors import ConfigError

Matrix = NDArray[np.float64]

PENALTIES = (1e-6, 1e-4, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Relative to the mean squared singular value of the source coefficients."""


@dataclass(frozen=True)
class Choice:
    """What cross-validation chose for one target block: directions kept on both sides, and the penalty."""

    rank: int
    penalty: float


@dataclass(frozen=True)
class _Pca:
    mean: Matrix  # [n]
    directions: Matrix  # [r, n], orthonormal rows, largest variance first

    @classmethod
    def fit(cls, values: Matrix) -> _Pca:
        """Of ``values`` [N, n]; directions without variance are left out."""
        mean = values.mean(0)
        _, sizes, directions = np.linalg.svd(values - mean, full_matrices=False)
        return cls(mean, directions[sizes > 1e-9 * max(float(sizes[0]), 1e-30)])

    def coefficients(self, values: Matrix, rank: int) -> Matrix:
        """[..., n] -> [..., min(rank, directions)]."""
        scores: Matrix = (values - self.mean) @ self.directions[:rank].T
        return scores


class PcaRidge:
    """Fitted on tuples: TinyLM updates [N, L1, n1] and LLM updates [N, L2, n2].

    >>> import numpy as np
    >>> from gradtf_fl import PcaRidge
    >>> draw = np.random.default_rng(0)
    >>> tiny = draw.normal(size=(8, 2, 3)).astype(np.float32)  # TinyLM updates of 8 shadow sets: 2 blocks of 3
    >>> llm = draw.normal(size=(8, 4, 5)).astype(np.float32)
    >>> PcaRidge.fit(tiny, llm, folds=4).generate(tiny[0]).shape
    (4, 5)
    """

    def __init__(self, tiny: Vector, llm: Vector, choices: Sequence[Choice]) -> None:
        """Fit with given choices, one for each target block."""
        self.choices = tuple(choices)
        fitted = _Fold(tiny, llm)
        self._sources, self._targets = fitted.sources, fitted.targets
        self._maps = [
            fitted.maps(block, choice.rank, (choice.penalty,))[0] for block, choice in enumerate(self.choices)
        ]

    @classmethod
    def fit(cls, tiny: Vector, llm: Vector, folds: int = 5, ranks: Sequence[int] | None = None) -> PcaRidge:
        """Choose rank and penalty for each target block by ``folds``-fold cross-validation on the tuples.

        Args:
            ranks: tried ranks; powers of two and all directions unless given.

        Raises ConfigError with fewer than two tuples a fold.
        """
        if len(tiny) != len(llm) or len(tiny) < 2 * folds:
            raise ConfigError(f"PCA ridge: {len(tiny)} TinyLM and {len(llm)} LLM updates, wanted {2 * folds} tuples")
        largest = len(tiny) - -(-len(tiny) // folds) - 1
        tried = tuple(ranks or sorted({min(2**power, largest) for power in range(12)}))
        order = np.random.default_rng(0).permutation(len(tiny))
        errors = np.zeros((llm.shape[1], len(tried), len(PENALTIES)))
        for fold in range(folds):
            held = order[fold::folds]
            rest = np.setdiff1d(order, held)
            errors += _Fold(tiny[rest], llm[rest]).errors(tiny[held], llm[held], tried)
        choices = []
        for table in errors:
            rank, penalty = np.unravel_index(int(np.argmin(table)), table.shape)
            choices.append(Choice(tried[int(rank)], PENALTIES[int(penalty)]))
        return cls(tiny, llm, choices)

    def generate(self, update: Vector) -> Vector:
        """LLM update [L2, n2] from a TinyLM update [L1, n1]."""
        blocks = []
        for choice, target, weights in zip(self.choices, self._targets, self._maps, strict=True):
            source = _source_coefficients(self._sources, update[None].astype(np.float64), choice.rank)
            blocks.append(target.mean + (source @ weights)[0] @ target.directions[: choice.rank])
        return np.stack(blocks).astype(np.float32)


def _source_coefficients(sources: Sequence[_Pca], tiny: Matrix, rank: int) -> Matrix:
    """Coefficients of all source blocks side by side: [N, L1, n1] -> [N, at most L1 * rank]."""
    return np.concatenate([pca.coefficients(tiny[:, i], rank) for i, pca in enumerate(sources)], axis=1)


class _Fold:
    """PCAs of one set of tuples, and ridge between their coefficients."""

    def __init__(self, tiny: Vector, llm: Vector) -> None:
        self.tiny, self.llm = tiny.astype(np.float64), llm.astype(np.float64)
        self.sources = [_Pca.fit(self.tiny[:, i]) for i in range(tiny.shape[1])]
        self.targets = [_Pca.fit(self.llm[:, j]) for j in range(llm.shape[1])]

    def maps(self, block: int, rank: int, penalties: Sequence[float]) -> list[Matrix]:
        """Ridge weights [source coefficients, target coefficients] of one target block for each penalty."""
        return self._solve(self._decompose(rank), self.targets[block].coefficients(self.llm[:, block], rank), penalties)

    def _decompose(self, rank: int) -> tuple[Matrix, Matrix, Matrix]:
        return np.linalg.svd(_source_coefficients(self.sources, self.tiny, rank), full_matrices=False)

    @staticmethod
    def _solve(parts: tuple[Matrix, Matrix, Matrix], wanted: Matrix, penalties: Sequence[float]) -> list[Matrix]:
        u, s, vt = parts
        projected = u.T @ wanted
        scale = float(np.mean(np.square(s)))
        return [vt.T @ ((s / (np.square(s) + penalty * scale))[:, None] * projected) for penalty in penalties]

    def errors(self, tiny: Vector, llm: Vector, ranks: Sequence[int]) -> NDArray[np.float64]:
        """Squared error on held-out tuples, [target blocks, ranks, penalties]."""
        table = np.zeros((len(self.targets), len(ranks), len(PENALTIES)))
        for number, rank in enumerate(ranks):
            parts = self._decompose(rank)
            source = _source_coefficients(self.sources, tiny.astype(np.float64), rank)
            for block, target in enumerate(self.targets):
                wanted = target.coefficients(self.llm[:, block], rank)
                for p, weights in enumerate(self._solve(parts, wanted, PENALTIES)):
                    made = target.mean + (source @ weights) @ target.directions[:rank]
                    table[block, number, p] = np.square(made - llm[:, block]).sum()
        return table
