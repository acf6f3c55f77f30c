"""The tuple store: a folder of safetensors shards and an index with their checksums. Resumable, atomic, verified.

A shard holds shadow sets fine-tuned together:

- ``tiny`` float32 [snapshots, sets, L1, n1]: TinyLM updates along the course of fine-tuning;
- ``llm`` float32 [sets, L2, n2] (or absent): the LLM update of the same sets, at the end;
- ``llm_last`` float16 [k, sets, L2, n2] (or absent): LLM updates of the last k steps (paper, section 6);
- ``input_ids``, ``labels`` int32 [sets, rows, T]: the public rows themselves, for the functional objective;
- ``group`` int32 [sets]: sets with one number belong to one shadow federation and may be averaged.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gradtf_fl.errors import ConfigError, CorruptFile
from gradtf_fl.files import PUBLIC, replace_file
from gradtf_fl.tasks import IGNORED

FORMAT = 2
"""2: federations are described by neutral names."""
_INDEX = "index.json"
_REQUIRED = ("tiny", "input_ids", "labels", "group")


@dataclass(frozen=True)
class Shard:
    """One shard's tensors (see the module's text) and its description.

    ``about["groups"]`` describes each federation: ``task``, equal where updates may be averaged; ``parts``, the rules
    or tasks that it mixes (one, or a mixture); ``weights`` [members][parts]; ``epsilon``, None without DP.
    """

    name: str
    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any]


class TupleStore:
    """A folder of shards; ``header`` (curation settings, layouts) is fixed when the store is created."""

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        self.folder = folder
        self._index = index

    @property
    def header(self) -> dict[str, Any]:
        """What the store was curated with: seed, models, adapter spec, layouts."""
        header: dict[str, Any] = self._index["header"]
        return header

    @property
    def names(self) -> list[str]:
        """Finished shards, in order."""
        return list(self._index["shards"])

    @classmethod
    def create(cls, folder: str | Path, header: Mapping[str, Any]) -> TupleStore:
        """A new store, or the one that is there when its header is equal (to resume); ConfigError otherwise."""
        folder = Path(folder)
        if (folder / _INDEX).exists():
            store = cls.open(folder)
            if store.header != json.loads(json.dumps(header)):
                raise ConfigError(f"tuple store {folder}: made with other settings; choose another folder")
            return store
        folder.mkdir(parents=True, exist_ok=True)
        store = cls(folder, {"format": FORMAT, "header": json.loads(json.dumps(header)), "shards": {}})
        store._write_index()
        return store

    @classmethod
    def open(cls, folder: str | Path) -> TupleStore:
        """An existing store; ConfigError when there is none, CorruptFile when its index is damaged."""
        folder = Path(folder)
        try:
            index = json.loads((folder / _INDEX).read_text())
        except OSError as error:
            raise ConfigError(f"tuple store {folder}: no {_INDEX} there") from error
        except ValueError as error:
            raise CorruptFile(f"tuple store {folder}: {_INDEX} is damaged") from error
        if not isinstance(index, dict) or index.get("format") != FORMAT or {"header", "shards"} - set(index):
            raise CorruptFile(f"tuple store {folder}: {_INDEX} is not one of this version")
        return cls(folder, index)

    def add(self, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Write one shard: the file first, the index after, both by rename."""
        path = self.folder / f"{name}.safetensors"
        staging = path.with_suffix(".new")
        save_file({key: value.contiguous() for key, value in tensors.items()}, staging)
        checksum = hashlib.sha256(staging.read_bytes()).hexdigest()
        os.replace(staging, path)
        self._index["shards"][name] = {"sha256": checksum, "about": dict(about)}
        self._write_index()

    def order(self, names: list[str]) -> None:
        """List the shards in this order (workers finish them in any), so that equal plans give equal stores."""
        self._index["shards"] = {name: self._index["shards"][name] for name in names}
        self._write_index()

    def read(self, name: str) -> Shard:
        """One shard, its checksum verified; CorruptFile when it is damaged or gone."""
        path = self.folder / f"{name}.safetensors"
        entry = self._index["shards"][name]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CorruptFile(f"tuple store {self.folder}: shard {path.name} is missing") from error
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise CorruptFile(f"tuple store {self.folder}: shard {path.name} does not match its SHA-256")
        tensors: dict[str, Tensor] = load_file(path)
        missing = [key for key in _REQUIRED if key not in tensors]
        if missing:
            raise CorruptFile(f"tuple store {self.folder}: shard {path.name} lacks {', '.join(missing)}")
        return Shard(name, tensors, entry["about"])

    def read_all(self) -> list[Shard]:
        """Every shard, verified; ConfigError when the store is empty."""
        if not self.names:
            raise ConfigError(f"tuple store {self.folder}: empty; run `gradtf curate` first")
        return [self.read(name) for name in self.names]

    def _write_index(self) -> None:
        replace_file(self.folder / _INDEX, json.dumps(self._index, indent=1).encode(), PUBLIC)


def token_rows(shard: Shard, sets: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(input_ids, labels) int64 [N, T] of row ``rows[n]`` of set ``sets[n]``."""
    return shard.tensors["input_ids"][sets, rows].long(), shard.tensors["labels"][sets, rows].long()


def as_int32(tensor: Tensor) -> Tensor:
    """Token tensors as they are stored."""
    return tensor.to(torch.int32)


def token_tensors(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(input_ids, labels) of several shards as one [N, T]: filled up on the right, and cut behind the last label."""
    width = max(int((labels != IGNORED).any(0).nonzero()[-1]) + 1 for _, labels in parts)
    return (
        torch.cat([_to_width(ids, width, 0) for ids, _ in parts]),
        torch.cat([_to_width(labels, width, IGNORED) for _, labels in parts]),
    )


def _to_width(tokens: Tensor, width: int, fill: int) -> Tensor:
    """[N, width]: right-padded or cut."""
    padded: Tensor = torch.nn.functional.pad(tokens[:, :width], (0, max(0, width - tokens.shape[1])), value=fill)
    return padded
