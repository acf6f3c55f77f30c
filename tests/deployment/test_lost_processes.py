"""Processes that live on when they should not, or are silent: found by the fault matrix, each shown here by itself."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import clients.node.run
import clients.node.supernode
import clients.node.worker_link
import gradtf_fl.flower.refusals
import strategies.server.run
from clients.node.run import NodeRun, boot_id
from clients.node.worker_link import WorkerLink
from gradtf_fl.config import FederationPlan
from gradtf_fl.deployment.folders import held
from gradtf_fl.deployment.processes import ChildProcess, FlowerFailed, environment
from gradtf_fl.file_names import WORKER_SOCKET
from strategies.server.run import ServerRun


def test_supernode_ends_with_its_main_loop(tmp_path: Path) -> None:
    """Flower's own would wait for its Runtime API's thread for ever."""
    code = (
        "import clients.node.supernode, threading, time, os\n"
        "def lost():\n"
        "    threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "clients.node.supernode.flower_supernode = lost\n"
        "os._exit(clients.node.supernode.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(tmp_path), timeout=60, check=False)
    assert done.returncode == clients.node.supernode.LOST


def test_supernode_ends_with_its_heartbeat(tmp_path: Path) -> None:
    """Flower's heartbeat ends at an odd answer (500, as from a server whose disk is full); its SuperNode does not."""
    code = (
        "import clients.node.supernode, threading, time, os\n"
        "def beat():\n"
        "    raise RuntimeError('500 Internal Server Error')\n"
        "def lively():\n"
        "    threading.Thread(target=beat).start()\n"
        "    time.sleep(600)\n"
        "clients.node.supernode.flower_supernode = lively\n"
        "os._exit(clients.node.supernode.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(tmp_path), timeout=60, check=False)
    assert done.returncode == clients.node.supernode.LOST


@pytest.mark.parametrize(("code", "status"), [("sys.exit(305 % 256)", 49), ("raise ValueError", 1), ("pass", 1)])
def test_supernode_keeps_its_exit_status(code: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients.node.supernode, "flower_supernode", lambda: exec(code, {"sys": sys}))
    assert clients.node.supernode.main() == status


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


def test_runs_of_an_earlier_server_run_are_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nodes wait for the rest of their messages until Flower misses the run's ServerApp, a minute later."""
    asked: list[list[str]] = []

    def flwr(arguments: list[str], *_: object) -> dict[str, object]:
        asked.append(list(arguments))
        states = {"1": "finished:completed", "2": "running", "3": "pending"}
        return {"runs": [{"run-id": number, "status": state} for number, state in states.items()]}

    monkeypatch.setattr(strategies.server.run, "flwr", flwr)
    run = ServerRun.__new__(ServerRun)
    run._env = {}
    run._end_old_runs()
    assert asked[1:] == [["stop", "2", "gradtf"], ["stop", "3", "gradtf"]]


def test_a_full_disk_at_the_server_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device", "federation.json.new")

    run = ServerRun.__new__(ServerRun)
    run.server, run.home = _Server(tmp_path), tmp_path / "flower"  # type: ignore[assignment]
    run._superlink = run._superexec = None
    monkeypatch.setattr(run, "_prepare", full)
    with pytest.raises(FlowerFailed, match=r"No space left on device \(federation.json.new\): .* --resume"):
        run.run()


def test_worker_that_is_stuck_is_not_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients.node.worker_link, "PING_SECONDS", 0.2)
    link = WorkerLink(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / WORKER_SOCKET))
        listener.listen()
        with ChildProcess(["sleep", "60"], environment(tmp_path), tmp_path / "log") as process:
            link._process = process
            started = time.monotonic()
            assert not link.alive()
            assert time.monotonic() - started < 5.0


def test_a_full_disk_does_not_change_the_answer(tmp_path: Path) -> None:
    """Neither client.log nor the log that stderr goes to can grow; the server gets the code all the same."""
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from gradtf_fl.flower import Refused, answered\n"
        "from gradtf_fl.round_messages import Refusal\n"
        "def work():\n"
        "    raise Refused(Refusal.POLICY, 'x')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "assert answered(work, 'train.begin', lambda: Path(sys.argv[1])) == {'refusal': 'policy'}\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with (tmp_path / "stderr").open("wb") as log:
        done = subprocess.run(command, env=environment(tmp_path), stderr=log, timeout=60, check=False)
    assert done.returncode == 0


def test_refusals_do_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends rubbish all day makes two generations of the log at most."""
    monkeypatch.setattr(gradtf_fl.flower.refusals, "MAX_LOG_BYTES", 1000)

    def work() -> dict[str, object]:
        raise ValueError("x" * 100)

    for _ in range(50):
        gradtf_fl.flower.refusals.answered(work, "train.begin", lambda: tmp_path)  # type: ignore[arg-type]
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["client.log", "client.log.1"]
    assert all((tmp_path / name).stat().st_size < 2500 for name in files)


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("SuperNode ID: 7\nSuperNode terminated gracefully.", "clock"),
        ("ConnectError\nSuperNode terminated gracefully.", "not reachable"),
        ("File heartbeat.py, in send_node_heartbeat\nConnectError", "heartbeat"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED]\nGiving up reconnection after 0.1 seconds", "TLS"),
        ("[SSL: UNEXPECTED_EOF_WHILE_READING]\nGiving up reconnection after 0.1 seconds", "broke"),
    ],
)
def test_causes_are_named(tmp_path: Path, log: str, cause: str) -> None:
    (tmp_path / "supernode.log").write_text(log)
    assert cause in clients.node.run.cause_of(tmp_path / "supernode.log")


def told_to(monkeypatch: pytest.MonkeyPatch, answered: bool) -> list[int]:
    """Node ids that a server which does or does not answer will be told of."""
    told: list[int] = []

    def deactivate(address: str, ca: Path, key: Path, node_id: int, proxy: bool) -> bool:
        told.append(node_id)
        return answered

    monkeypatch.setattr(clients.node.run, "deactivate", deactivate)
    return told


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
    told = told_to(monkeypatch, answered)
    note = online_note(tmp_path / "org")
    node_of(tmp_path / "org")._tell_that_it_died()
    assert told == [7]
    assert note.exists() != answered


@pytest.mark.skipif(not boot_id(), reason="the system does not tell which boot this is")
def test_a_copied_folder_does_not_take_the_live_node_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = told_to(monkeypatch, True)
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
    address, ca, proxy = "127.0.0.1:1", "ca.crt", False


class _Server:
    def __init__(self, out: Path) -> None:
        self.folder, self.plan = out, FederationPlan(out=out)
