"""Files and links that appear whole or not at all, with their mode from the first byte on."""

from __future__ import annotations

import glob
import os
import stat
from pathlib import Path

from gradtf_fl.errors import ConfigError

PRIVATE, PUBLIC = 0o600, 0o644


def write_synced(path: Path, data: bytes, mode: int) -> None:
    """Write a new file, created with ``mode`` (less the umask) and on the disk when this returns.

    Raises:
        FileExistsError: there is one already; OSError: it can't be written.
    """
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def place_new(path: Path, data: bytes, mode: int) -> None:
    """A new file that appears whole; an existing one is never replaced, not even by a race.

    Raises:
        FileExistsError: there is one already; OSError: it can't be written.
    """
    draft = _draft(path)
    try:
        write_synced(draft, data, mode)
        os.link(draft, path)  # unlike a rename, this fails where there is a file
    finally:
        draft.unlink(missing_ok=True)


def replace_file(path: Path, data: bytes, mode: int) -> None:
    """Write ``path`` anew, on the disk when this returns: readers see the old content or the new one, also after a
    power cut. OSError when it can't be written."""
    draft = _draft(path)
    try:
        write_synced(draft, data, mode)
        os.replace(draft, path)
        sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def write_whole(out: Path, text: str, mode: int = 0o666) -> None:
    """Write ``text`` (UTF-8) beside ``out`` and rename it there.

    Args:
        mode: permissions, less the umask; 0o600 for what its owner alone may read.

    Raises:
        ConfigError: it can't be written; ``out`` is then as it was.
    """
    try:
        replace_file(out, text.encode(), mode)
    except OSError as error:
        raise ConfigError(f"--out {out}: can't be written ({error.strerror})") from error


def sync_folder(folder: Path) -> None:
    """Put names made or changed in ``folder`` on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_link(link: Path, target: str | Path) -> None:
    """Point the symbolic link ``link`` to ``target``, made or replaced in one step."""
    draft = _draft(link)
    try:
        os.symlink(target, draft)
        os.replace(draft, link)
    finally:
        draft.unlink(missing_ok=True)


def _draft(path: Path) -> Path:
    """This process's name for the next ``path``; drafts that killed processes left are removed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.new"):
        pid = left.name.split(".")[-2]
        if pid == str(os.getpid()) or (pid.isdecimal() and not alive(int(pid))):
            left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.new")


def alive(pid: int) -> bool:
    """Whether process ``pid`` runs; one that ended and was not waited for yet does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return True


def read_private(path: Path, what: str) -> bytes:
    """The content of a file that its owner alone may read.

    Raises:
        ConfigError: it is missing or unreadable, or others may read it.
    """
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(1 << 20)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the {what} ({error.strerror})") from error
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(f"{path}: mode {mode:04o} lets others read the {what}; chmod 600 it")
    return data
