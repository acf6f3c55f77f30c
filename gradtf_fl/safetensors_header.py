"""The header of safetensors bytes: 8 bytes of length (little endian), then JSON with names, shapes and metadata.

The safetensors library reads tensors from bytes, but metadata from files only; ours are checked before they are files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from gradtf_fl.errors import CorruptFile

LENGTH_BYTES = 8
LONGEST_HEADER = 100_000_000
"""Bytes; the safetensors library refuses longer ones, too."""


def header_text(data: bytes) -> str:
    """The header of safetensors bytes as JSON text; the values begin right behind it.

    Raises:
        CorruptFile: ``data`` ends inside the header, or the header is longer than `LONGEST_HEADER` or not UTF-8.
    """
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    end = LENGTH_BYTES + length
    if len(data) < max(LENGTH_BYTES, end) or length > LONGEST_HEADER:
        raise CorruptFile(f"no safetensors bytes: a header of {length} bytes in a file of {len(data)}")
    try:
        return data[LENGTH_BYTES:end].decode()
    except UnicodeDecodeError as error:
        raise CorruptFile("no safetensors bytes: the header is not UTF-8 text") from error


def header_of_halves(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> bytes:
    """What stands before float16 tensors that are written one after the other, in this order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": (begin, begin + 2 * math.prod(shape))}
        begin += 2 * math.prod(shape)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def metadata_of(data: bytes, name: str) -> dict[str, Any]:
    """The JSON object that safetensors bytes carry as metadata under ``name``.

    Raises:
        CorruptFile: as `header_text`, or ``name`` holds no JSON object.
    """
    try:
        found = json.loads(json.loads(header_text(data))["__metadata__"][name])
    except (KeyError, TypeError, json.JSONDecodeError, RecursionError) as error:
        raise CorruptFile(f"no metadata {name!r} in the safetensors header ({type(error).__name__})") from error
    if not isinstance(found, dict):
        raise CorruptFile(f"metadata {name!r} in the safetensors header: expected a JSON object")
    return found
