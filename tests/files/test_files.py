"""Files that appear whole: contents, modes, and what a killed writer leaves."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gradtf_fl.files import PRIVATE, PUBLIC, place_new, replace_file, replace_link

KILLED = """
import os, signal, sys
from pathlib import Path
from gradtf_fl import files

def die(source, target):
    os.kill(os.getpid(), signal.SIGKILL)

files.os.replace = die
files.replace_file(Path(sys.argv[1]), b"never", 0o600)
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_is_replaced_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "a[1]"
    path.write_bytes(b"old")
    path.chmod(0o666)
    replace_file(path, b"new", PRIVATE)
    assert (path.read_bytes(), mode(path)) == (b"new", 0o600)
    replace_file(path, b"newer", PUBLIC)
    assert (path.read_bytes(), mode(path)) == (b"newer", 0o644)
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_never_replaces_one(tmp_path: Path) -> None:
    path = tmp_path / "key"
    place_new(path, b"first", PRIVATE)
    with pytest.raises(FileExistsError):
        place_new(path, b"second", PRIVATE)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "a[1]"
    replace_file(path, b"kept", PRIVATE)
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert ended.returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    assert path.read_bytes() == b"kept"
    another = tmp_path / f".{path.name}.{os.getppid()}.new"  # of a process that runs: not ours to remove
    another.write_bytes(b"being written")
    replace_file(path, b"next", PRIVATE)
    assert path.read_bytes() == b"next"
    assert set(tmp_path.iterdir()) == {path, another}


def test_a_link_is_replaced_in_one_step(tmp_path: Path) -> None:
    link = tmp_path / "current"
    replace_link(link, "one")
    replace_link(link, "two")
    assert os.readlink(link) == "two"
    assert list(tmp_path.iterdir()) == [link]
