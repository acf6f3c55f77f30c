"""Locks: whose they are, and how long one that outlives its process is waited for."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradtf_fl.deployment import folders
from gradtf_fl.deployment.folders import held, new_folder
from gradtf_fl.deployment.processes import environment
from gradtf_fl.errors import ConfigError

HOLD = """
import os, signal, sys, time
from pathlib import Path
from gradtf_fl.deployment.folders import held

with held(Path(sys.argv[1]), "held"):
    if os.fork() == 0:  # as a child does between fork and exec
        time.sleep(float(sys.argv[2]))
        os._exit(0)
    print("held", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def left_behind(lock: Path, seconds: float) -> None:
    """A lock whose holder was killed, and that its child holds for so long."""
    command = [sys.executable, "-c", HOLD, str(lock), str(seconds)]
    with subprocess.Popen(command, env=environment(lock.parent), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert process.wait(10) == -9


def test_a_lock_that_outlives_its_process_is_waited_for(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    began = time.monotonic()
    left_behind(lock, 2.0)
    with held(lock, "another"):
        assert lock.read_text() == str(os.getpid())
    assert time.monotonic() - began > 1.0


def test_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "LEAVING_SECONDS", 0.5)
    left_behind(tmp_path / ".lock", 4.0)
    with pytest.raises(ConfigError, match="another"), held(tmp_path / ".lock", "another"):
        pass


def test_a_lock_of_a_running_process_is_refused_at_once(tmp_path: Path) -> None:
    with held(tmp_path / ".lock", "another"):
        began = time.monotonic()
        with pytest.raises(ConfigError, match="another"), held(tmp_path / ".lock", "another"):
            pass
        assert time.monotonic() - began < 2.0


def test_a_new_folder_is_closed_to_others_even_if_it_was_there(tmp_path: Path) -> None:
    for folder in (tmp_path / "made", tmp_path / "there"):
        if folder.name == "there":
            folder.mkdir(mode=0o755)
            folder.chmod(0o755)
        new_folder(folder, "a thing")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
