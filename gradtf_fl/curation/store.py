"""The tuple store: a folder of safetensors shards and an index with their checksums. Resumable, atomic, verified.

A store may be larger than memory: shards are mapped, not read. What is taken from a mapped tensor is read then, and the
operating system drops it again when memory is needed. A file is hashed once in a process, unless it changes.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gradtf_fl.errors import ConfigError, CorruptFile
from gradtf_fl.files import PUBLIC, replace_file
from gradtf_fl.tasks import IGNORED

FORMAT = 2
"""2: federations are described by neutral names."""
_INDEX = "index.json"
_REQUIRED = ("tiny", "input_ids", "labels", "group")
MAPPED_SHARDS = 1024
"""Shards mapped at once at most, far below what Linux lets a process map (65,530); opening one takes .2 ms."""

Fingerprint = tuple[int, int, int, int, int]
"""Device, inode, size, and times of the last changes of a file's content and of its inode."""


@dataclass(frozen=True)
class Shard:
    """One shard's tensors (see the module's text; of a store's shard they are mapped) and its description.

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
            told = json.loads(json.dumps(header))
            if store.header != told:
                names = sorted(name for name in told | store.header if told.get(name) != store.header.get(name))
                raise ConfigError(
                    f"tuple store {folder}: made with other settings ({', '.join(names)}); choose another folder"
                )
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
        """Write one shard: the file first, the index after, both by rename.

        Raises:
            ConfigError: it can't be written; shards that are there stay.
        """
        path = self.folder / f"{name}.safetensors"
        staging = path.with_suffix(".new")
        try:
            save_file({key: value.contiguous() for key, value in tensors.items()}, staging)
            checksum = _sha256(staging, _fingerprint(staging))
            os.replace(staging, path)
            self._index["shards"][name] = {"sha256": checksum, "about": dict(about)}
            self._write_index()
        except (OSError, SafetensorError) as error:
            staging.unlink(missing_ok=True)
            cause = " ".join(str(error).split())
            raise ConfigError(
                f"tuple store {self.folder}: shard {name} can't be written ({cause}); the {len(self.names)} finished "
                "ones stay: make room and run again"
            ) from error

    def order(self, names: list[str]) -> None:
        """List the shards in this order (workers finish them in any), so that equal plans give equal stores."""
        self._index["shards"] = {name: self._index["shards"][name] for name in names}
        self._write_index()

    def shard(self, name: str) -> Shard:
        """One shard, its checksum verified; CorruptFile when it is damaged or gone."""
        path = self.folder / f"{name}.safetensors"
        entry = self._index["shards"][name]
        try:
            fingerprint = _fingerprint(path)
            checksum = _sha256(path, fingerprint)
        except OSError as error:
            raise CorruptFile(f"tuple store {self.folder}: shard {path.name} is missing") from error
        if checksum != entry["sha256"]:
            raise CorruptFile(f"tuple store {self.folder}: shard {path.name} does not match its SHA-256")
        tensors = _MappedTensors(path, fingerprint)
        missing = [key for key in _REQUIRED if key not in tensors]
        if missing:
            raise CorruptFile(f"tuple store {self.folder}: shard {path.name} lacks {', '.join(missing)}")
        return Shard(name, tensors, entry["about"])

    def shards(self) -> list[Shard]:
        """Every shard, verified; ConfigError when the store is empty."""
        if not self.names:
            raise ConfigError(f"tuple store {self.folder}: empty; run `gradtf curate` first")
        return [self.shard(name) for name in self.names]

    def _write_index(self) -> None:
        replace_file(self.folder / _INDEX, json.dumps(self._index, indent=1).encode(), PUBLIC)


class _MappedTensors(Mapping[str, Tensor]):
    """Tensors of a shard's file by name. The mapping is made when one is needed, and `MAPPED_SHARDS` are kept."""

    def __init__(self, path: Path, fingerprint: Fingerprint) -> None:
        self._path, self._fingerprint = path, fingerprint

    def __getitem__(self, key: str) -> Tensor:
        return _mapped(self._path, self._fingerprint)[key]

    def __iter__(self) -> Iterator[str]:
        return iter(_mapped(self._path, self._fingerprint))

    def __len__(self) -> int:
        return len(_mapped(self._path, self._fingerprint))


@lru_cache(maxsize=MAPPED_SHARDS)
def _mapped(path: Path, fingerprint: Fingerprint) -> dict[str, Tensor]:
    """Tensors whose values are the file's own pages: safetensors maps the file and gives views of it."""
    try:
        unchanged = _fingerprint(path) == fingerprint
    except OSError:
        unchanged = False
    if not unchanged:
        raise CorruptFile(f"tuple store {path.parent}: shard {path.name} changed while it was in use")
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)


@lru_cache(maxsize=1 << 17)
def _sha256(path: Path, fingerprint: Fingerprint) -> str:
    """Hex, of the file that has this fingerprint; read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fingerprint(path: Path) -> Fingerprint:
    """What tells that a file was changed or replaced."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


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
