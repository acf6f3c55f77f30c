"""The one reader of files of rows. What it yields is a row, for every verb, for the check and for the round.

| file | a row is |
|---|---|
| ``.jsonl``, and any ending that is not listed here | a line that is not blank |
| ``.json`` | an element of the array; without an array, a line as above |
| ``.csv`` | a record after the header, which names the fields; blank lines are skipped |
| ``.parquet`` | a row of the table |
| folder that ``datasets`` wrote (``save_to_disk``) | a row of the data set |
| other folder | a row of one of its files of the kinds above, file by file in the order of their names |

Text is UTF-8, with or without byte-order mark, and may be gzipped (``.gz`` after the ending). Only a line feed, with or
without carriage return, ends a line: U+2028, U+2029 and U+0085 may stand inside a text. A line of nothing but white
space is blank, whatever white space that is.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradtf_fl.errors import ConfigError

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")
MOST_NAMED = 10
"""Rows that a message names; of the others it gives the number."""
File = io.BufferedReader | gzip.GzipFile | io.BytesIO
_SPACE = re.compile(r"[ \t\r\n]*")


class MalformedRow(ValueError):
    """A row that can't be used; the message says why."""


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

    def fields(self) -> Mapping[str, Any]:
        """The row's fields by name; MalformedRow where it could not be read or has none."""
        if self.problem:
            raise MalformedRow(self.problem)
        if not isinstance(self.document, Mapping):
            raise MalformedRow("not an object with fields")
        return self.document


def raw_rows(path: Path, what: str = "data") -> Iterator[RawRow]:
    """Every row of a file or a ``datasets`` folder, in order. A row that can't be read carries its problem.

    Args:
        what: the file's role, with which each row's place begins.

    Raises:
        ConfigError: the file is missing or damaged as a whole: a gzip stream or an array that breaks off, a CSV file
            that is not UTF-8 or has no header.
    """
    name = f"{what} {path}"
    if path.is_dir():
        yield from _folder(path, name)
        return
    endings = [ending.lower() for ending in path.suffixes]
    packed = endings[-1:] == [".gz"]
    ending = (endings[:-1] if packed else endings)[-1:]
    if ending == [".parquet"] and not packed:
        if not path.is_file():
            raise ConfigError(f"{name}: can't be read (no such file)")
        yield from _parquet(path, name)
        return
    read = {".csv": _records, ".json": _json}.get("".join(ending), _lines)
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            yield from read(file, name)
    except FileNotFoundError:
        raise ConfigError(f"{name}: can't be read (no such file)") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{name}: can't be read to its end ({error})") from error


def named(problems: Sequence[str]) -> list[str]:
    """The first ten of ``problems``, and how many more there are."""
    more = len(problems) - MOST_NAMED
    return [*problems[:MOST_NAMED], *([f"... and {more} more"] if more > 0 else [])]


def _lines(file: File, name: str) -> Iterator[RawRow]:
    for number, line in enumerate(file, 1):
        place = f"{name}, line {number}"
        try:
            text = line.decode("utf-8-sig").strip()
            if text:
                yield _checked(place, json.loads(text), text)
        except UnicodeDecodeError:
            yield RawRow(place, problem="not UTF-8")
        except (ValueError, RecursionError):
            yield RawRow(place, problem="not JSON")


def _json(file: File, name: str) -> Iterator[RawRow]:
    """The elements of an array, each with the line on which it begins."""
    data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = ""
    at = _SPACE.match(text).end()  # type: ignore[union-attr]
    if not text.startswith("[", at):
        yield from _lines(io.BytesIO(data), name)
        return
    decoder = json.JSONDecoder()
    line, counted = 1, 0

    def after_space(start: int) -> int:
        nonlocal line, counted
        end = _SPACE.match(text, start).end()  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, end), end
        return end

    at = after_space(at + 1)
    closed = text.startswith("]", at)
    while not closed:
        try:
            document, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            raise ConfigError(f"{name}, line {line}: the array's next element is not JSON") from None
        yield _checked(f"{name}, line {line}", document, text[at:end])
        at = after_space(end)
        closed = text.startswith("]", at)
        if not closed:
            if not text.startswith(",", at):
                raise ConfigError(f"{name}, line {line}: the array breaks off")
            at = after_space(at + 1)
    if text[at + 1 :].strip():
        raise ConfigError(f"{name}, line {line}: more after the end of the array")


def _records(file: File, name: str) -> Iterator[RawRow]:
    """Records of CSV as objects of texts. A place is the line on which the record begins."""
    lines = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
    header: list[str] | None = None
    while True:
        place = f"{name}, line {lines.line_num + 1}"
        try:
            record = next(lines, None)
        except UnicodeDecodeError:
            raise ConfigError(f"{place}: not UTF-8 from here on") from None
        except csv.Error as error:
            raise ConfigError(f"{place}: not CSV from here on ({error})") from None
        if record is None:
            return
        if len(record) < 2 and not "".join(record).strip():
            continue
        if header is None:
            header = [field.strip() for field in record]
            if len(set(header)) < len(header):
                raise ConfigError(f"{place}: the header names a field twice")
        elif len(record) != len(header):
            yield RawRow(place, problem=f"{len(record)} fields, the header names {len(header)}")
        else:
            yield RawRow(place, dict(zip(header, record, strict=True)))


def _parquet(path: Path, name: str) -> Iterator[RawRow]:
    import datasets

    try:  # as a stream: nothing of it is copied into a cache outside the organization's folder
        table = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        for number, document in enumerate(table, 1):
            yield _checked(f"{name}, row {number}", document)
    except Exception as error:  # the library raises many kinds: all mean that this file can't be read
        raise ConfigError(f"{name}: can't be read as Parquet ({_cause(error)})") from error


def _folder(path: Path, name: str) -> Iterator[RawRow]:
    if not (path / "state.json").is_file():
        parts = sorted(part.parent.name for part in path.glob("*/state.json"))
        if parts:
            raise ConfigError(f"{name}: holds several data sets; name one of its folders: {', '.join(parts)}")
        files = sorted(file for file in path.iterdir() if file.name.lower().endswith(ENDINGS) and file.is_file())
        if not files:
            raise ConfigError(
                f"{name}: can't be read (a folder without files of rows, and not one that datasets wrote with "
                "save_to_disk)"
            )
        sides = [file.name for file in files if file.name.partition(".")[0] in ("test", "validation")]
        if sides and len(files) > 1:
            raise ConfigError(f"{name}: holds {', '.join(sides)} alongside other files; name one file, or move it away")
        for file in files:
            yield from raw_rows(file, name.removesuffix(f" {path}"))
        return
    import datasets

    try:
        table = datasets.load_from_disk(str(path))
        for number, document in enumerate(table, 1):
            yield _checked(f"{name}, row {number}", document)
    except Exception as error:  # as above
        raise ConfigError(f"{name}: can't be read as a datasets folder ({_cause(error)})") from error


def _checked(place: str, document: Any, text: str | None = None) -> RawRow:
    r"""The row, or its problem if a text in it is malformed: JSON can say half a character (``"\ud83d"``).

    Args:
        text: the JSON that ``document`` came from, where it is known: without an escape of a half, none can be there.
    """
    if text is None or "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(document, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError:
            return RawRow(place, problem="holds half a character (a lone surrogate such as \\ud83d)")
    return RawRow(place, document)


def _cause(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
