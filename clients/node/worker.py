"""``python -m clients.node.worker FOLDER``: an organization's resident worker, which holds the models in memory.

It answers one request at a time over the folder's socket (`clients.node.worker_link`), with the same handlers and the
same refusals as a simulation. The organization's files are read again for every request, so that a changed policy
counts at once; the TinyLM is kept. The LLM is read once a round, to check and score its new adapter, and let go
again. When its memory has passed the limit of ``[worker] memory_mb`` it ends after the answer and is started afresh
with the next request: that bounds what leaks anywhere below could take.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from clients.handlers import handle
from clients.node.worker_link import PING, read_frame, socket_address, write_frame
from clients.organization import load_organization
from gradtf_fl.errors import ConfigError, GradtfError
from gradtf_fl.flower import Vanished, answered, keep_cause
from gradtf_fl.shown import shown

PAGE = resource.getpagesize()
SHARE_OF_MACHINE = 0.75


def serve(folder: Path) -> None:
    """Listen until SIGTERM, or until the memory limit is passed."""
    signal.signal(signal.SIGTERM, _leave)
    bound_memory(folder)
    warm(folder)
    threading.Thread(target=tell_unusable_rows, args=(folder,), daemon=True).start()  # a large file takes minutes
    with socket.socket(socket.AF_UNIX) as listener, socket_address(folder) as address:
        Path(address).unlink(missing_ok=True)
        old = os.umask(0o177)
        try:
            listener.bind(address)
        finally:
            os.umask(old)
        listener.listen()
        worked = False
        while not (worked and resident_mb() > memory_limit_mb(folder)):
            connection, _ = listener.accept()
            with connection:
                worked = _serve_one(folder, connection)


def _serve_one(folder: Path, connection: socket.socket) -> bool:
    """Whether it was work (a ping is not): one piece of it gets done, however little memory is allowed."""
    try:
        request = read_frame(connection)
        write_frame(connection, answer(folder, str(request.get("type")), request.get("fields", {})))
    except OSError:  # whoever asked went away: what was done stays done
        return True
    return request.get("type") != PING


def answer(folder: Path, message_type: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The frame that answers one request."""
    if message_type == PING:
        return {"pong": os.getpid()}
    try:
        work = lambda: handle(load_organization(folder), message_type, fields)  # noqa: E731
        return {"fields": answered(work, message_type, lambda: folder)}
    except Vanished:
        return {"vanished": True}


def warm(folder: Path) -> None:
    """Import what training needs and read the TinyLM, so that the first round does not wait for it.

    Nothing is wrong with a folder that cannot be read yet: the first request will say so.
    """
    try:
        config = load_organization(folder).config
        import clients.delivery
        import clients.local_training  # noqa: F401
        from gradtf_fl.adapters import Place, kept_model, model_hash

        kept_model(config.models.tiny, Place.of(config.compute))
        model_hash(config.models.tiny)
    except (GradtfError, OSError) as error:
        print(f"worker: not warmed up: {shown(error)}", file=sys.stderr, flush=True)


def bound_memory(folder: Path) -> None:
    """Never take more than ``[worker] most_mb``: what a message asks for beyond it is a refusal, not a full machine.

    Only on the CPU: on other devices the driver maps memory of its own, and their memory is bounded anyway.
    """
    try:
        config = load_organization(folder).config
    except (GradtfError, OSError):
        most, device = None, "cpu"  # nothing is served until it can be read
    else:
        most, device = config.worker.most_mb, config.compute.device
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = int(total * SHARE_OF_MACHINE) if most is None else most * 1_000_000
    if device == "cpu":
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def tell_unusable_rows(folder: Path) -> None:
    """Into ``client.log`` when the training rows can't be used: their owner should know before a server asks."""
    from clients.node.checks import row_findings

    try:
        found = [each for each in row_findings(load_organization(folder)) if each.level == "fail"]
    except (GradtfError, OSError):  # the first request will say so
        return
    if found:
        problems = ConfigError([f"{each.what}: {each.found}" for each in found])
        keep_cause(problems, "these rows can't be used, every round will be refused", folder)


def resident_mb() -> float:
    """Resident memory of this process now, in MB (0 where the system does not say)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1e6
    except (OSError, IndexError, ValueError):
        return 0.0


def memory_limit_mb(folder: Path) -> float:
    """``[worker] memory_mb`` of the folder; no limit while it cannot be read."""
    try:
        return float(load_organization(folder).config.worker.memory_mb)
    except (GradtfError, OSError):
        return float("inf")


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(0)  # at once, as a power cut would: a stage in hand is either on disk or was never done


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
    os._exit(0)  # not through the seconds that torch takes to say goodbye
