"""Plain text: documents of a file, and windows of them. The provider's reader and an organization's use the same."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

from gradtf_fl.errors import ConfigError

STORY_END = "<|endoftext|>"
"""Between the documents of a text file; a file without it is cut at blank lines."""
PART_CHARACTERS = 2000
"""Such a part is at least this long, so that neighbouring windows mostly stay on one side of a split."""
TEXT_ENDINGS = (".txt", ".txt.gz")


def read_text(path: Path) -> str:
    """The text of a file, perhaps gzipped. ConfigError when it can't be read as UTF-8."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ConfigError(f"data {path}: can't be read as UTF-8 text ({error})") from error


def split_documents(text: str) -> list[str]:
    """A text file's documents: between `STORY_END` marks, or parts of `PART_CHARACTERS` that end at a blank line."""
    if STORY_END in text:
        return [part.strip() for part in text.split(STORY_END) if part.strip()]
    documents, part = [], ""
    for paragraph in text.split("\n\n"):
        part += paragraph + "\n\n"
        if len(part) >= PART_CHARACTERS:
            documents.append(part.strip())
            part = ""
    return documents + ([part.strip()] if part.strip() else [])


def joined_documents(documents: Sequence[str]) -> str:
    """The documents as one text, a blank line between them."""
    return "\n\n".join(documents)


def cut_windows(text: str, window: int) -> list[str]:
    """``text`` in consecutive pieces of exactly ``window`` characters; what is left at its end is dropped."""
    return [text[start : start + window] for start in range(0, len(text) - window + 1, window)]
