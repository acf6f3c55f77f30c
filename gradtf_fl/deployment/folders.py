"""Folders that belong to one owner, and locks that one process holds."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradtf_fl.errors import ConfigError

GLANCE_SECONDS = 0.3  # `server status` holds a lock for a moment, to see whether it is free


def new_folder(folder: Path, what: str) -> None:
    """Make ``folder`` (0700); ConfigError when something is in it already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists and is not empty; {what} is never written over another")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


@contextmanager
def held(path: Path, problem: str) -> Iterator[None]:
    """Hold the lock file ``path``, which then names this process; ConfigError with ``problem`` when another has it."""
    with open(path, "a", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        for patience in (True, False):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if not patience:
                    raise ConfigError(problem) from None
                time.sleep(GLANCE_SECONDS)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
