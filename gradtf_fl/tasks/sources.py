"""Where a text task's raw rows come from: files that `reading` reads, and the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks.reading import ENDINGS, RawRow, raw_rows

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class HubSource:
    """A data set on the hub.

    Attributes:
        path: repository, e.g. ``openai/gsm8k``.
        config: its configuration, None for the only one.
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
    """One file for each split."""

    files: tuple[tuple[Split, Path], ...]

    def rows(self, split: Split) -> Iterator[RawRow]:
        """Rows of ``split``; ConfigError when its file is not named, missing, or not readable to its end."""
        path = dict(self.files).get(split)
        if path is None:
            raise ConfigError(f"no file is named for the {split} split, only for {_names(dict(self.files))}")
        return raw_rows(path)


@dataclass(frozen=True)
class FolderSource:
    """A folder with train, validation and test files, each with one of `ENDINGS`."""

    folder: Path

    def rows(self, split: Split) -> Iterator[RawRow]:
        """Rows of ``split``; a folder without test file gives its validation rows as ``test``."""
        return raw_rows(self.file(split))

    def file(self, split: Split) -> Path:
        """The file of ``split``; ConfigError when the folder has none, or has it twice."""
        if not self.folder.is_dir():
            raise ConfigError(f"data {self.folder}: no such folder")
        for name in (split, "validation") if split == "test" else (split,):
            found = [
                self.folder / f"{name}{ending}" for ending in ENDINGS if (self.folder / f"{name}{ending}").is_file()
            ]
            if len(found) > 1:
                raise ConfigError(f"data {self.folder}: both {found[0].name} and {found[1].name} are there; keep one")
            if found:
                return found[0]
        wanted = f"{split}.jsonl nor {split}.jsonl.gz, .json, .csv or .parquet"
        raise ConfigError(f"data {self.folder}: holds neither {wanted}")


def _names(values: dict[Split, Any]) -> str:
    return ", ".join(values) or "none"
