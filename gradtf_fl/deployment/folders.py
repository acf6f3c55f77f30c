"""Folders that belong to one owner, and locks that one process holds."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gradtf_fl.errors import ConfigError
from gradtf_fl.files import alive, empty_folder

GLANCE_SECONDS = 0.3  # `server status` holds a lock for a moment, to see whether it is free
LEAVING_SECONDS = 10.0  # until what a killed process leaves behind is gone, on a busy machine
LOOK_SECONDS = 0.05


class Occupied(ConfigError):
    """Another process holds a lock; it may let go."""


def new_folder(folder: Path, what: str) -> None:
    """Make ``folder``, or take an empty one: 0700 either way.

    Raises:
        ConfigError: something is in it already, or it belongs to another user.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists and is not empty; {what} is never written over another")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        folder.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be closed to others ({error.strerror})") from error


@contextmanager
def filled(folder: Path, what: str) -> Iterator[None]:
    """`new_folder`, filled while the block runs; restored if the block ends by an error."""
    there = folder.exists()
    new_folder(folder, what)
    try:
        yield
    except BaseException:
        empty_folder(folder)
        if not there:
            folder.rmdir()
        raise


@contextmanager
def held(path: Path, problem: str) -> Iterator[None]:
    """Hold the lock file ``path``, which then names this process; `Occupied` with ``problem`` when another has it.

    A lock outlives a killed process for a moment: while the kernel takes it down, or in a child that it has forked and
    that has not yet become another program.
    """
    with open(path, "a+", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        began = time.monotonic()
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                patience = GLANCE_SECONDS if _holder_runs(file) else LEAVING_SECONDS
                if time.monotonic() - began > patience:
                    raise Occupied(problem) from None
                time.sleep(LOOK_SECONDS)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _holder_runs(file: IO[str]) -> bool:
    file.seek(0)
    named = file.read(20).strip()
    return not named.isdecimal() or alive(int(named))
