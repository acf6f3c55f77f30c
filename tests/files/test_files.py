"""Files that appear whole: contents, modes, and what a killed writer leaves."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gradtf_fl.errors import ConfigError
from gradtf_fl.files import PRIVATE, PUBLIC, Exposure, exposure, place_new, read_private, replace_file, replace_link

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


def test_private_is_one_users_alone(tmp_path: Path) -> None:
    path = tmp_path / "key"
    place_new(path, b"secret", PRIVATE)
    assert exposure(path, path.stat()) is None
    assert read_private(path, "key") == b"secret"
    for mode_, shown in ((0o640, "0640"), (0o604, "0604"), (0o620, "0620"), (0o601, "0601")):
        path.chmod(mode_)
        found = exposure(path, path.stat())
        assert found == Exposure(f"mode {shown}: others can read it", f"chmod 600 {path}")
        with pytest.raises(ConfigError, match=f"key: the key: mode {shown}: others can read it; chmod 600 "):
            read_private(path, "key")
    tmp_path.chmod(0o750)
    found = exposure(tmp_path, tmp_path.stat())
    assert found == Exposure("mode 0750: others can read it", f"chmod 700 {tmp_path}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to another user")
def test_another_users_file_is_not_private(tmp_path: Path) -> None:
    path = tmp_path / "key"
    place_new(path, b"secret", PRIVATE)
    os.chown(path, 54321, -1)
    with pytest.raises(ConfigError, match="owned by user 54321, not by user 0, who runs gradtf; chown 0 "):
        read_private(path, "key")
    path.chmod(0o640)
    found = exposure(path, path.stat())
    assert found is not None
    assert found.remedy == f"chown 0 {path} && chmod 600 {path}"
