"""Controls: what a reader would try first. Mean and nearest shadow update, and ridge regression.

All three see the same plain shadow tuples as the Grad-Transformer and the same input. They answer the question
whether the generated update uses the organization's update at all.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradtf_fl.adapters import ASSETS, Vector
from gradtf_fl.errors import ConfigError, CorruptFile
from gradtf_fl.files import PUBLIC, replace_file
from gradtf_fl.safetensors_header import metadata_of

Matrix = NDArray[np.float64]


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

    def __init__(self, tiny: Vector, llm: Vector, penalty: float) -> None:
        self.tiny = tiny
        self.llm = llm
        self.penalty = penalty
        flat = tiny.reshape(len(tiny), -1).astype(np.float64)
        self._center = flat.mean(0)
        self._centered = flat - self._center
        kernel = self._centered @ self._centered.T
        self._mean = llm.mean(0)
        regular = kernel + penalty * float(np.trace(kernel)) / len(tiny) * np.eye(len(tiny))
        self._coefficients = np.linalg.solve(regular, (llm - self._mean).reshape(len(llm), -1).astype(np.float64))

    @classmethod
    def fit(cls, tiny: Vector, llm: Vector, folds: int = 5) -> Controls:
        """Choose ridge's penalty by cross-validation on the tuples (relative to the kernel's mean eigenvalue).

        Raises ConfigError when there are fewer than three tuples: too few to hold one out.
        """
        if len(tiny) < 3:
            raise ConfigError(f"controls: {len(tiny)} shadow sets have an LLM update, at least 3 are wanted")
        grid = (1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)
        order = np.random.default_rng(0).permutation(len(tiny))
        errors = []
        for penalty in grid:
            error = 0.0
            for fold in range(folds):
                held = order[fold::folds]
                rest = np.setdiff1d(order, held)
                part = cls(tiny[rest], llm[rest], penalty)
                error += sum(float(np.square(part.ridge(tiny[i]) - llm[i]).sum()) for i in held)
            errors.append(error)
        return cls(tiny, llm, grid[int(np.argmin(errors))])

    @classmethod
    def fit_on_store(cls, folder: str | Path) -> Controls:
        """Fit on the pairs of a tuple store (see `gradtf_fl.curation`): every set that has an LLM update."""
        from gradtf_fl.curation import TupleStore

        shards = [shard for shard in TupleStore.open(folder).shards() if "llm" in shard.tensors]
        if not shards:
            raise ConfigError(f"tuple store {folder}: no LLM updates to fit controls on")
        tiny = np.concatenate([shard.tensors["tiny"][-1].numpy() for shard in shards])
        return cls.fit(tiny, np.concatenate([shard.tensors["llm"].numpy() for shard in shards]))

    def mean_update(self) -> Vector:
        """The average LLM update over shadow sets, the same for every input."""
        mean: Vector = self._mean
        return mean

    def nearest(self, update: Vector) -> Vector:
        """The LLM update of the shadow set whose TinyLM update has the largest cosine with ``update``.

        Cosine, not distance: an average over organizations, or an early round, is shorter than a shadow update.
        """
        chosen: Vector = self.llm[self.nearest_set(update)]
        return chosen

    def nearest_set(self, update: Vector) -> int:
        """The number of that shadow set."""
        flat = self.tiny.reshape(len(self.tiny), -1)
        query = update.reshape(-1)
        scores = flat @ query / (np.linalg.norm(flat, axis=1) * np.linalg.norm(query) + 1e-12)
        return int(np.argmax(scores))

    def ridge(self, update: Vector) -> Vector:
        """Ridge regression between flattened, centred updates in its dual form."""
        similarities = self._centered @ (update.reshape(-1).astype(np.float64) - self._center)
        predicted: Vector = (self._mean + (similarities @ self._coefficients).reshape(self._mean.shape)).astype(
            np.float32
        )
        return predicted

    def save(self, path: str | Path) -> None:
        """Write tuples and penalty (values as float16) atomically."""
        from safetensors.numpy import save

        tensors = {"tiny": self.tiny.astype(np.float16), "llm": self.llm.astype(np.float16)}
        digest = hashlib.sha256(tensors["tiny"].tobytes() + tensors["llm"].tobytes()).hexdigest()
        about = json.dumps({"penalty": self.penalty, "sha256": digest})
        replace_file(Path(path), save(tensors, {"controls": about}), PUBLIC)

    @classmethod
    def load(cls, path: str | Path) -> Controls:
        """Read and verify; ConfigError when there is no file, CorruptFile when it is damaged."""
        from safetensors.numpy import load

        path = Path(path)
        if not path.is_file():
            raise ConfigError(f"controls {path}: there is no such file")
        data = path.read_bytes()
        try:
            tensors = load(data)
            about = metadata_of(data, "controls")
            if hashlib.sha256(tensors["tiny"].tobytes() + tensors["llm"].tobytes()).hexdigest() != about["sha256"]:
                raise ValueError("content does not match its SHA-256")
            return cls(tensors["tiny"].astype(np.float32), tensors["llm"].astype(np.float32), float(about["penalty"]))
        except Exception as error:
            raise CorruptFile(f"controls {path}: damaged ({error})") from error


def embedded_controls() -> Path:
    """The controls that ship with the package, fitted on the shipped Grad-Transformer's plain shadow sets."""
    return ASSETS / "controls.safetensors"
