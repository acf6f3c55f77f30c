"""Processes that live on when they should not, or are silent: found by the fault matrix, each shown here by itself."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import clients.node_run
import clients.supernode
import clients.worker_link
from clients.node_run import NodeRun, boot_id
from clients.worker_link import SOCKET, WorkerLink
from gradtf_fl.deployment.folders import held
from gradtf_fl.deployment.processes import ChildProcess, environment
from strategies.server_run import ServerRun


def test_supernode_ends_with_its_main_loop(tmp_path: Path) -> None:
    """Flower's own would wait for its Runtime API's thread for ever."""
    code = (
        "import clients.supernode, threading, time, os\n"
        "def lost():\n"
        "    threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "clients.supernode.flower_supernode = lost\n"
        "os._exit(clients.supernode.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(tmp_path), timeout=60, check=False)
    assert done.returncode == clients.supernode.LOST


@pytest.mark.parametrize(("code", "status"), [("sys.exit(305 % 256)", 49), ("raise ValueError", 1), ("pass", 1)])
def test_supernode_keeps_its_exit_status(code: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients.supernode, "flower_supernode", lambda: exec(code, {"sys": sys}))
    assert clients.supernode.main() == status


def test_orphaned_serverapp_is_ended(tmp_path: Path) -> None:
    """Whoever holds the run's folder when `server run` starts belongs to one that was killed."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from gradtf_fl.deployment.folders import held\n"
        "with held(Path(sys.argv[1]), 'held'):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    lock = tmp_path / ".lock"
    command = [sys.executable, "-c", code, str(lock)]
    with subprocess.Popen(command, env=environment(tmp_path), stdout=subprocess.PIPE, text=True) as orphan:
        assert orphan.stdout is not None
        assert orphan.stdout.readline() == "held\n"
        run = ServerRun.__new__(ServerRun)
        run.server = _Server(tmp_path)  # type: ignore[assignment]
        run._end_orphan()
        assert orphan.wait(10) != 0
    with held(lock, "free again"):
        pass


def test_worker_that_is_stuck_is_not_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients.worker_link, "PING_SECONDS", 0.2)
    link = WorkerLink(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / SOCKET))
        listener.listen()
        with ChildProcess(["sleep", "60"], environment(tmp_path), tmp_path / "log") as process:
            link._process = process
            started = time.monotonic()
            assert not link.alive()
            assert time.monotonic() - started < 5.0


def online_note(place: Path, **changed: object) -> Path:
    """What a SuperNode that ended left behind."""
    (place / "flower").mkdir(parents=True)
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    status = place.stat()
    note = {"node_id": 7, "pid": dead.pid, "boot": boot_id(), "folder": [status.st_dev, status.st_ino]} | changed
    (place / "flower" / "online.json").write_text(json.dumps(note))
    return place / "flower" / "online.json"


@pytest.mark.skipif(not boot_id(), reason="the system does not tell which boot this is")
@pytest.mark.parametrize("answered", [True, False])
def test_the_server_is_told_until_it_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answered: bool) -> None:
    told: list[int] = []
    monkeypatch.setattr(clients.node_run, "deactivate", lambda *arguments: told.append(arguments[3]) or answered)
    note = online_note(tmp_path / "org")
    node_of(tmp_path / "org")._tell_that_it_died()
    assert told == [7]
    assert note.exists() != answered


@pytest.mark.skipif(not boot_id(), reason="the system does not tell which boot this is")
def test_a_copied_folder_does_not_take_the_live_node_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(clients.node_run, "deactivate", lambda *arguments: told.append(arguments[3]) or True)
    status = tmp_path.stat()
    online_note(tmp_path / "copy", folder=[status.st_dev, status.st_ino])
    node_of(tmp_path / "copy")._tell_that_it_died()
    assert told == []


def node_of(folder: Path) -> NodeRun:
    """Enough of a node to tell the server."""
    node = NodeRun.__new__(NodeRun)
    node.organization, node.home = _Folder(folder), folder / "flower"  # type: ignore[assignment]
    node._server = _Address()  # type: ignore[assignment]
    return node


class _Folder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder


class _Address:
    address, ca = "127.0.0.1:1", "ca.crt"


class _Plan:
    def __init__(self, out: Path) -> None:
        self.out = out


class _Server:
    def __init__(self, out: Path) -> None:
        self.plan = _Plan(out)
