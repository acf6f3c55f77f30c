"""The header of safetensors bytes: what the library wrote comes back, and nothing but `CorruptFile` for other bytes."""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from gradtf_fl.errors import CorruptFile
from gradtf_fl.safetensors_header import LONGEST_HEADER, header_text, metadata_of

documents = st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.booleans()))


def saved(document: object, name: str = "own") -> bytes:
    data: bytes = save({"values": np.arange(5, dtype=np.float32)}, {name: json.dumps(document)})
    return data


@given(documents, st.text(min_size=1))
def test_metadata_come_back_and_the_values_begin_behind_the_header(document: dict[str, object], name: str) -> None:
    data = saved(document, name)
    assert metadata_of(data, name) == document
    values = data[8 + len(header_text(data).encode()) :]
    np.testing.assert_array_equal(np.frombuffer(values, dtype="<f4"), np.arange(5))
    with pytest.raises(CorruptFile, match="KeyError"):
        metadata_of(data, name + "x")


@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda rest: len(rest).to_bytes(8, "little") + rest))
def test_any_bytes_are_a_header_or_a_corrupt_file(data: bytes) -> None:
    with suppress(CorruptFile):
        metadata_of(data, "own")


@given(st.data())
def test_bytes_cut_inside_the_header_are_refused(choose: st.DataObject) -> None:
    data = saved({"a": 1})
    length = 8 + len(header_text(data).encode())
    with pytest.raises(CorruptFile, match="a header of"):
        header_text(data[: choose.draw(st.integers(0, length - 1))])


def test_a_header_that_is_too_long_is_refused_before_it_is_read() -> None:
    length = LONGEST_HEADER + 1
    with pytest.raises(CorruptFile, match="a header of 100000001 bytes"):
        header_text(length.to_bytes(8, "little") + bytes(length))


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b'{"__metadata__": {"own": "[1]"}}', b'{"__metadata__": {"own": 1}}', b"\xff"]
)
def test_metadata_that_are_no_json_object_are_refused(text: bytes) -> None:
    with pytest.raises(CorruptFile):
        metadata_of(len(text).to_bytes(8, "little") + text, "own")
