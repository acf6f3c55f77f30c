"""Canonical bytes: fixed-width big-endian fields, length-prefixed blobs, strictly increasing index sets.

There is one encoding of every value, so a hash or signature over bytes is one over the value.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from itertools import pairwise

from gradtf_fl.secagg.violations import MalformedMessage

MAX_INDEX = 2**32 - 1
MAX_U64 = 2**64 - 1


class Writer:
    """Collects fields; `done` joins them."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def u8(self, value: int) -> Writer:
        self._parts.append(value.to_bytes(1, "big"))
        return self

    def u32(self, value: int) -> Writer:
        self._parts.append(value.to_bytes(4, "big"))
        return self

    def u64(self, value: int) -> Writer:
        self._parts.append(value.to_bytes(8, "big"))
        return self

    def f64(self, value: float) -> Writer:
        """IEEE 754 binary64."""
        self._parts.append(struct.pack(">d", value))
        return self

    def fixed(self, value: bytes) -> Writer:
        """Bytes whose length the reader knows."""
        self._parts.append(value)
        return self

    def blob(self, value: bytes) -> Writer:
        """u32 length, then the bytes."""
        return self.u32(len(value)).fixed(value)

    def text(self, value: str) -> Writer:
        """UTF-8 as a blob."""
        return self.blob(value.encode())

    def indices(self, values: Sequence[int]) -> Writer:
        """A set of roster indices: u32 count, then each as u32, strictly increasing."""
        self._parts.append(struct.pack(f">{len(values) + 1}I", len(values), *values))
        return self

    def by_member(self, values: Mapping[int, bytes]) -> Writer:
        """A map from roster index to bytes of one length: u32 count, then (u32, bytes) by increasing index."""
        self.u32(len(values))
        for member in sorted(values):
            self.u32(member).fixed(values[member])
        return self

    def done(self) -> bytes:
        return b"".join(self._parts)


class Reader:
    """Reads what `Writer` wrote; deviations raise `MalformedMessage`. Never allocates beyond its input."""

    def __init__(self, data: bytes | memoryview) -> None:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise MalformedMessage(f"expected bytes, got {type(data).__name__}")
        try:
            self._data = memoryview(data).cast("B")
        except (TypeError, ValueError) as error:
            raise MalformedMessage("expected contiguous bytes") from error
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._at

    def view(self, size: int) -> memoryview:
        """The next ``size`` bytes without a copy."""
        if size > self.left:
            raise MalformedMessage(f"expected {size} bytes, {self.left} left")
        self._at += size
        return self._data[self._at - size : self._at]

    def fixed(self, size: int) -> bytes:
        return bytes(self.view(size))

    def u8(self) -> int:
        return self.view(1)[0]

    def u32(self) -> int:
        return int.from_bytes(self.view(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self.view(8), "big")

    def f64(self) -> float:
        return float(struct.unpack(">d", self.view(8))[0])

    def blob(self) -> bytes:
        return self.fixed(self.u32())

    def text(self) -> str:
        try:
            return self.blob().decode()
        except UnicodeDecodeError as error:
            raise MalformedMessage("text that is not UTF-8") from error

    def count(self, item_size: int) -> int:
        """A u32 count of items of at least ``item_size`` bytes each that are still to come."""
        count = self.u32()
        if count * item_size > self.left:
            raise MalformedMessage(f"{count} items announced, {self.left} bytes left")
        return count

    def indices(self) -> tuple[int, ...]:
        count = self.count(4)
        values = struct.unpack(f">{count}I", self.view(4 * count))
        strictly_increasing(values)
        return values

    def by_member(self, size: int) -> dict[int, bytes]:
        """A map from roster index, strictly increasing, to ``size`` bytes each."""
        step = 4 + size
        data = self.fixed(self.count(step) * step)
        starts = range(0, len(data), step)
        values = {int.from_bytes(data[at : at + 4], "big"): data[at + 4 : at + step] for at in starts}
        strictly_increasing([int.from_bytes(data[at : at + 4], "big") for at in starts])
        return values

    def done(self) -> None:
        """Raises unless everything was read."""
        if self.left:
            raise MalformedMessage(f"{self.left} bytes too many")


def strictly_increasing(values: Sequence[int]) -> None:
    """`MalformedMessage` unless ``values`` is sorted without duplicates."""
    if any(a >= b for a, b in pairwise(values)):
        raise MalformedMessage("members are not strictly increasing")
