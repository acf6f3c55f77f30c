"""Files and links that appear whole or not at all, with their mode from the first byte on."""

from __future__ import annotations

import glob
import os
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gradtf_fl.errors import ConfigError

PRIVATE, PUBLIC = 0o600, 0o644


def write_synced(path: Path, data: bytes | Iterable[bytes], mode: int) -> None:
    """Write a new file, created with ``mode`` (less the umask) and on the disk when this returns.

    Args:
        data: all of it, or one part after the other.

    Raises:
        FileExistsError: there is one already; OSError: it can't be written.
    """
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.writelines([data] if isinstance(data, bytes) else data)
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


def replace_file(path: Path, data: bytes | Iterable[bytes], mode: int) -> None:
    """Replace ``path``, on the disk when this returns: readers see the old content or the new one, also after a
    power cut. OSError when it can't be written."""
    draft = _draft(path)
    try:
        write_synced(draft, data, mode)
        os.replace(draft, path)
        sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def write_whole(out: Path, text: str, mode: int = 0o666) -> None:
    """Write ``text`` (UTF-8) to a draft next to ``out`` and rename it.

    Args:
        mode: permissions, less the umask; 0o600 for what its owner alone may read.

    Raises:
        ConfigError: it can't be written; ``out`` is then as it was.
    """
    try:
        replace_file(out, text.encode(), mode)
    except OSError as error:
        raise ConfigError(f"--out {out}: can't be written ({error.strerror})") from error


def empty_folder(folder: Path) -> None:
    """Remove everything in ``folder``; what links there lead to stays."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


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


@dataclass(frozen=True)
class Exposure:
    """Why others may use a private file or folder, in words.

    Attributes:
        found: what is wrong with its mode or owner.
        remedy: the command that mends it.
    """

    found: str
    remedy: str


def exposure(path: Path, status: os.stat_result) -> Exposure | None:
    """The one rule for everything private: it belongs to this process's user, and its mode lets nobody else in.

    Args:
        path: named in the remedy.
        status: of the file, the folder or the socket.

    Returns: None when nobody else may use it.
    """
    if os.name != "posix":
        return None
    found, remedies = [], []
    if status.st_uid != os.geteuid():
        found.append(f"owned by user {status.st_uid}, not by user {os.geteuid()}, who runs gradtf")
        remedies.append(f"chown {os.geteuid()} {path}")
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        found.append(f"mode {mode:04o}: others can read it")
        remedies.append(f"chmod {'700' if stat.S_ISDIR(status.st_mode) else '600'} {path}")
    return Exposure("; ".join(found), " && ".join(remedies)) if found else None


def exposed(paths: Iterable[Path]) -> list[str]:
    """What others may do to private files and folders, each with its remedy; what is missing counts as none."""
    problems = []
    for path in paths:
        try:
            found = exposure(path, path.stat())
        except OSError:
            continue
        if found is not None:
            problems.append(f"{path}: {found.found}; {found.remedy}")
    return problems


def refuse_shared(folder: Path) -> None:
    """ConfigError where others may put files into ``folder``, and so replace a key or a certificate in it."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    if os.name == "posix" and mode & 0o022:
        raise ConfigError(f"{folder}: mode {mode:04o}: others can change what is in it; chmod go-w {folder}")


def read_private(path: Path, what: str) -> bytes:
    """The content of a file that this process's user alone may read.

    Raises:
        ConfigError: it is missing or unreadable, or others may read it (`exposure`).
    """
    try:
        with open(path, "rb") as file:
            exposed = exposure(path, os.fstat(file.fileno()))
            data = file.read(1 << 20)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the {what} ({error.strerror})") from error
    if exposed is not None:
        raise ConfigError(f"{path}: the {what}: {exposed.found}; {exposed.remedy}")
    return data
