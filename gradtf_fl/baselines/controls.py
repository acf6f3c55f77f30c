"""Controls: what a reader would try first. Mean and nearest shadow update, and ridge regression.

All three see the same plain shadow tuples as the Grad-Transformer and the same input. They answer the question
whether the generated update uses the organization's update at all.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from gradtf_fl.adapters import ASSETS, Vector
from gradtf_fl.baselines.update_parts import Matrix, UpdateParts
from gradtf_fl.errors import ConfigError, CorruptFile
from gradtf_fl.files import PUBLIC, replace_file
from gradtf_fl.safetensors_header import header_of_halves


class Controls:
    """Fitted on tuples: TinyLM updates [N, L1, n1] and LLM updates [N, L2, n2].

    >>> import numpy as np
    >>> from gradtf_fl import Controls
    >>> draw = np.random.default_rng(0)
    >>> tiny = draw.normal(size=(8, 2, 3)).astype(np.float32)  # TinyLM updates of 8 shadow sets: 2 blocks of 3
    >>> llm = draw.normal(size=(8, 4, 5)).astype(np.float32)
    >>> controls = Controls.fit(tiny, llm)
    >>> controls.nearest_set(0.5 * tiny[3]), controls.ridge(tiny[3]).shape
    (3, (4, 5))
    """

    def __init__(self, tiny: Vector | UpdateParts, llm: Vector | UpdateParts, penalty: float) -> None:
        self._tiny, self._llm = _in_parts(tiny), _in_parts(llm)
        self.penalty = penalty

    @property
    def tiny(self) -> Vector:
        """TinyLM updates [N, L1, n1], in memory."""
        return self._tiny.whole

    @property
    def llm(self) -> Vector:
        """LLM updates [N, L2, n2], in memory."""
        return self._llm.whole

    @classmethod
    def fit(cls, tiny: Vector | UpdateParts, llm: Vector | UpdateParts, folds: int = 5) -> Controls:
        """Choose ridge's penalty by cross-validation on the tuples (relative to the kernel's mean eigenvalue).

        Memory: two matrices [N, N]; of the updates a little at a time.

        Raises ConfigError when there are fewer than three tuples: too few to hold one out.
        """
        if len(tiny) < 3:
            raise ConfigError(f"controls: {len(tiny)} shadow sets have an LLM update, at least 3 are required")
        tiny, llm = _in_parts(tiny), _in_parts(llm)
        grid = (1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)
        order = np.random.default_rng(0).permutation(len(tiny))
        inputs, outputs = tiny.gram(), llm.gram()
        errors = []
        for penalty in grid:
            error = 0.0
            for fold in range(folds):
                held = order[fold::folds]
                rest = np.setdiff1d(order, held)
                weights = _Ridge(inputs[np.ix_(rest, rest)], penalty).weights(inputs[np.ix_(rest, held)])
                along = np.einsum("jh,jk,kh->", weights, outputs[np.ix_(rest, rest)], weights, optimize=True)
                across = (weights * outputs[np.ix_(rest, held)]).sum()
                error += float(along - 2 * across + outputs[held, held].sum())
            errors.append(error)
        return cls(tiny, llm, grid[int(np.argmin(errors))])

    @classmethod
    def fit_on_store(cls, folder: str | Path) -> Controls:
        """Fit on the pairs of a tuple store (see `gradtf_fl.curation`): every set that has an LLM update.

        Its shards stay mapped.
        """
        from gradtf_fl.curation import TupleStore

        shards = [shard for shard in TupleStore.open(folder).shards() if "llm" in shard.tensors]
        if not shards:
            raise ConfigError(f"tuple store {folder}: no LLM updates to fit controls on")
        tiny = UpdateParts([shard.tensors["tiny"][-1].numpy() for shard in shards])
        return cls.fit(tiny, UpdateParts([shard.tensors["llm"].numpy() for shard in shards]))

    def mean_update(self) -> Vector:
        """The average LLM update over shadow sets, the same for every input."""
        return self._mean

    @cached_property
    def _mean(self) -> Vector:
        return self._llm.mean()

    def nearest(self, update: Vector) -> Vector:
        """The LLM update of the shadow set whose TinyLM update has the largest cosine with ``update``.

        Cosine, not distance: an average over organizations, or an early round, is shorter than a shadow update.
        """
        return self._llm[self.nearest_set(update)]

    def nearest_set(self, update: Vector) -> int:
        """The number of that shadow set."""
        return int(np.argmax(self._tiny.products(update) / (self._norms * np.linalg.norm(update) + 1e-12)))

    @cached_property
    def _norms(self) -> Vector:
        return self._tiny.norms()

    def ridge(self, update: Vector) -> Vector:
        """Ridge regression between flattened, centred updates in its dual form."""
        weights = self._ridge.weights(self._tiny.products(update)[:, None])[:, 0]
        predicted: Vector = self._llm.weighted(weights).astype(np.float32)
        return predicted

    @cached_property
    def _ridge(self) -> _Ridge:
        return _Ridge(self._tiny.gram(), self.penalty)

    def save(self, path: str | Path) -> None:
        """Write tuples and penalty (values as float16) atomically, one update at a time."""
        digest = hashlib.sha256()
        for half in chain(self._tiny.halves(), self._llm.halves()):
            digest.update(half)
        about = json.dumps({"penalty": self.penalty, "sha256": digest.hexdigest()})
        shapes = {"llm": self._llm.shape, "tiny": self._tiny.shape}
        header = header_of_halves(shapes, {"controls": about})
        replace_file(Path(path), chain([header], self._llm.halves(), self._tiny.halves()), PUBLIC)

    @classmethod
    def load(cls, path: str | Path) -> Controls:
        """Verify the file and map it; ConfigError when it is missing, CorruptFile when it is damaged."""
        from safetensors import safe_open

        path = Path(path)
        if not path.is_file():
            raise ConfigError(f"controls {path}: no such file")
        try:
            with safe_open(path, "pt") as file:
                tiny, llm = (UpdateParts([file.get_tensor(name).numpy()]) for name in ("tiny", "llm"))
                about = json.loads(file.metadata()["controls"])
            digest = hashlib.sha256()
            for half in chain(tiny.halves(), llm.halves()):
                digest.update(half)
            if digest.hexdigest() != about["sha256"]:
                raise ValueError("content does not match its SHA-256")
            return cls(tiny, llm, float(about["penalty"]))
        except Exception as error:
            raise CorruptFile(f"controls {path}: damaged ({error})") from error


class _Ridge:
    """Ridge regression by inner products alone: what it predicts is a weighted sum of the tuples' outputs.

    Args:
        gram: inner products [N, N] of the inputs, not centred.
        penalty: relative to the mean eigenvalue of the centred kernel.
    """

    def __init__(self, gram: Matrix, penalty: float) -> None:
        self._means = gram.mean(0)
        kernel = gram - self._means - self._means[:, None] + gram.mean()
        self._inverse = np.linalg.inv(kernel + penalty * float(np.trace(kernel)) / len(gram) * np.eye(len(gram)))

    def weights(self, products: Matrix) -> Matrix:
        """Weights [N, Q], which sum to 1, for Q new inputs with these inner products [N, Q] with the tuples' inputs."""
        centred = products - products.mean(0) - (self._means - self._means.mean())[:, None]
        weights = self._inverse @ centred
        with_mean: Matrix = weights + (1 - weights.sum(0)) / len(weights)
        return with_mean


def _in_parts(updates: Vector | UpdateParts) -> UpdateParts:
    return updates if isinstance(updates, UpdateParts) else UpdateParts([updates])


def embedded_controls() -> Path:
    """The controls that ship with the package, fitted on the shipped Grad-Transformer's plain shadow sets."""
    return ASSETS / "controls.safetensors"
