"""The head file of a ledger: how long the chain was and how it ended, kept apart from the chain itself.

It is what shows that rows were cut off. It is overwritten in place, in one piece smaller than a disk sector, and
follows every commit without waiting for the disk: after a power cut it may be older than the ledger, which is not a
break, but never newer. While nobody has the ledger open it also holds the SHA-256 of the ledger's file, so that a
changed byte shows even where SQLite keeps none of the rows.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

from gradtf_fl.file_names import LEDGER, LEDGER_HEAD
from gradtf_fl.privacy.ledger.chain import GENESIS_HASH, Problem

SIZE = 256
"""Bytes of the file; the line is padded with spaces."""
WAIT_S = 120.0
"""How long one writer waits for another."""
TRIES = 5
"""A reader may meet a write half done, for microseconds."""


@dataclass(frozen=True)
class Head:
    """Length of the chain, its last hash (32 bytes), and the SHA-256 of the file at rest (32 bytes; None in use)."""

    rows: int
    hash: bytes
    image: bytes | None = None


FoundHead = Head | Problem | None

EMPTY_HEAD = Head(0, GENESIS_HASH)
"""Written before a ledger is created, so that from then on a missing head file is a break."""


@lru_cache(maxsize=1024)
def head_path(ledger: Path) -> Path:
    """Where the head of ``ledger`` is kept."""
    return ledger.with_name(LEDGER_HEAD if ledger.name == LEDGER else ledger.name + ".head")


class HeldHead:
    """The head file, locked against every other writer while a ``with`` block runs.

    Who holds it around a commit renews it in the order of commits. The lock is the kernel's (``flock``): it ends
    with the process.

    Args:
        create: make the file (mode 0600, `EMPTY_HEAD`, on disk) if it is missing.

    Raises:
        TimeoutError: another writer held it for `WAIT_S`.
    """

    def __init__(self, ledger: Path, *, create: bool = False) -> None:
        self._path = head_path(ledger)
        self._create = create
        self._handle = -1

    def __enter__(self) -> Self:
        try:
            self._handle = os.open(self._path, os.O_RDWR | (os.O_CREAT if self._create else 0), 0o600)
        except FileNotFoundError:
            return self
        try:
            _lock(self._handle, self._path)
            if self._create and self.find() is None:
                self.write(EMPTY_HEAD, durable=True)
        except BaseException:
            os.close(self._handle)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def find(self) -> FoundHead:
        """What it says; see `find_head`."""
        return None if self._handle < 0 else _found(os.pread(self._handle, 2 * SIZE, 0))

    def write(self, head: Head, *, durable: bool = False) -> Head:
        """Overwrite the file, which is there, with ``head``, which is returned; ``durable`` waits for the disk."""
        os.pwrite(self._handle, _encode(head), 0)
        if durable:
            os.fsync(self._handle)
        return head


def _lock(handle: int, path: Path) -> None:
    import fcntl  # without it, ledgers can still be read

    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path}: another process did not let go of it for {WAIT_S:g} s") from None
            time.sleep(0.001)


def find_head(ledger: Path) -> FoundHead:
    """The head of ``ledger``, read without its lock; None without a file or with an empty one, which is what a
    crash at its creation leaves; a `Problem` where it is damaged."""
    found: FoundHead = None
    for _ in range(TRIES):
        try:
            found = _found(head_path(ledger).read_bytes())
        except FileNotFoundError:
            return None
        if isinstance(found, Head):
            return found
        time.sleep(0.002)
    return found


def _found(content: bytes) -> FoundHead:
    if not content:
        return None
    try:
        return _decode(content)
    except ValueError:
        return Problem(0, "the head file is damaged", "head")


@lru_cache(maxsize=64)
def _encode(head: Head) -> bytes:
    image = "null" if head.image is None else f'"{head.image.hex()}"'
    line = f'{{"rows": {head.rows}, "hash": "{head.hash.hex()}", "file": {image}}}'
    return line.encode().ljust(SIZE - 1) + b"\n"


_FORM = re.compile(rb'\{"rows": (\d{1,18}), "hash": "([0-9a-f]{64})"(?:, "file": (?:null|"([0-9a-f]{64})"))?\} *\n')


@lru_cache(maxsize=64)  # the same head is looked at again and again
def _decode(content: bytes) -> Head:
    """Only what `_encode` writes, or what was written for ledgers of format 1: without "file" and spaces."""
    found = _FORM.fullmatch(content)
    if found is None:
        raise ValueError("of another form")
    rows, digest, image = found.groups()
    head = Head(int(rows), bytes.fromhex(digest.decode()), bytes.fromhex(image.decode()) if image else None)
    format_1 = b'{"rows": %d, "hash": "%s"}\n' % (head.rows, digest)
    if content not in (_encode(head), format_1):
        raise ValueError("not as it was written")
    return head
