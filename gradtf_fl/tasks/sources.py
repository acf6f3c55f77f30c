"""Where a text task's raw rows come from: JSONL files, plain or gzipped, and the Hugging Face hub."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gradtf_fl.errors import ConfigError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
ENDINGS = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class RawRow:
    """One row as it was found.

    Attributes:
        place: where, for messages: ``data FILE, line 3`` or ``data openai/gsm8k test, row 3`` (both from 1).
        document: what was read, not yet looked at.
        problem: why nothing could be read; empty where ``document`` is good.
    """

    place: str
    document: Any = None
    problem: str = ""


@dataclass(frozen=True)
class HubSource:
    """A data set on the hub.

    Attributes:
        path: repository, e.g. ``openai/gsm8k``. config: its configuration, None for the only one.
        splits: the hub's split for each of ours. Where the hub's test split has no answers, ``test`` is another.
    """

    path: str
    config: str | None
    splits: tuple[tuple[Split, str], ...]

    def rows(self, split: Split) -> Iterator[RawRow]:
        """Rows of ``split``; ConfigError when the hub cannot be reached or has no such split."""
        wanted = dict(self.splits).get(split)
        if wanted is None:
            raise ConfigError(f"data {self.path}: no {split} split is known, only {_names(dict(self.splits))}")
        import datasets

        try:
            table = datasets.load_dataset(self.path, self.config, split=wanted)
        except Exception as error:  # the library raises many kinds: all mean that these rows can't be had
            cause = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(
                f"data {self.path}: can't be had from the hub ({cause}); give a local folder that holds "
                f"{split}.jsonl or {split}.jsonl.gz with the same fields instead (--data DIR)"
            ) from error
        for number, document in enumerate(table, 1):
            yield RawRow(f"data {self.path} {wanted}, row {number}", document)


@dataclass(frozen=True)
class FileSource:
    """One JSONL file for each split, plain or gzipped."""

    files: tuple[tuple[Split, Path], ...]

    def rows(self, split: Split) -> Iterator[RawRow]:
        """Rows of ``split``; ConfigError when its file is not named, missing, or not readable to its end."""
        path = dict(self.files).get(split)
        if path is None:
            raise ConfigError(f"no file is named for the {split} split, only for {_names(dict(self.files))}")
        return read_jsonl(path)


@dataclass(frozen=True)
class FolderSource:
    """A folder with train, validation and test files, each .jsonl or .jsonl.gz."""

    folder: Path

    def rows(self, split: Split) -> Iterator[RawRow]:
        """Rows of ``split``; a folder without test file gives its validation rows as ``test``."""
        return read_jsonl(self.file(split))

    def file(self, split: Split) -> Path:
        """The file of ``split``; ConfigError when the folder has none, or has it twice."""
        if not self.folder.is_dir():
            raise ConfigError(f"data {self.folder}: there is no such folder")
        for name in (split, "validation") if split == "test" else (split,):
            found = [
                self.folder / f"{name}{ending}" for ending in ENDINGS if (self.folder / f"{name}{ending}").is_file()
            ]
            if len(found) > 1:
                raise ConfigError(f"data {self.folder}: both {found[0].name} and {found[1].name} are there; keep one")
            if found:
                return found[0]
        raise ConfigError(f"data {self.folder}: holds neither {split}.jsonl nor {split}.jsonl.gz")


def read_jsonl(path: Path) -> Iterator[RawRow]:
    """Every line that is not blank, as a `RawRow`; a line that is not UTF-8 or not JSON carries its problem.

    Raises:
        ConfigError: the file is missing, or damaged as a whole (a gzip stream that breaks off).
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _parsed(f"data {path}, line {number}", line)
    except FileNotFoundError:
        raise ConfigError(f"data {path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"data {path}: can't be read to its end ({error})") from error


def _parsed(place: str, line: bytes) -> RawRow:
    try:
        return RawRow(place, json.loads(line.decode("utf-8-sig")))
    except UnicodeDecodeError:
        return RawRow(place, problem="not UTF-8")
    except (ValueError, RecursionError):
        return RawRow(place, problem="not JSON")


def _names(values: dict[Split, Any]) -> str:
    return ", ".join(values) or "none"
