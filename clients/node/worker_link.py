"""The socket between a SuperNode's executor and the organization's resident worker: requests, and starting the worker.

One request and one answer a connection, each a frame: 8 bytes of length (big endian), then msgpack. The socket lies in
the organization's folder with mode 0600, so nobody but its owner can connect. A worker that is gone is started again; a
request that died with it is sent once more, which is safe because every stage of a round is used up on disk before its
answer leaves (`clients.node_store`): what was not answered either runs again or is refused as stale.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgpack

from gradtf_fl.deployment import ChildProcess, environment
from gradtf_fl.errors import GradtfError
from gradtf_fl.file_names import FLOWER_HOME, WORKER_LOG, WORKER_SOCKET
from gradtf_fl.flower import MOST_TYPE, Vanished
from gradtf_fl.round_messages import Fields
from gradtf_fl.shown import shown

PING = "ping"
PING_SECONDS = 60.0  # a worker between two requests that is silent for so long is stuck, and started again
START_SECONDS = 180.0  # importing torch and reading the models on a busy machine
MAX_FRAME = 2**31 - 1  # Flower's own limit for a message
HEADER = struct.Struct(">Q")


class WorkerGone(GradtfError):
    """The worker does not start, or died twice with the same request. Names its log file."""


def write_frame(connection: socket.socket, value: Mapping[str, Any]) -> None:
    """Send one frame."""
    data: bytes = msgpack.packb(value, use_bin_type=True)
    connection.sendall(HEADER.pack(len(data)))
    connection.sendall(data)


def read_frame(connection: socket.socket) -> dict[str, Any]:
    """Receive one frame.

    Raises:
        ConnectionError: the other side went away, or sent something else.
    """
    (length,) = HEADER.unpack(_exactly(connection, HEADER.size))
    if length > MAX_FRAME:
        raise ConnectionError("frame too long")
    value = msgpack.unpackb(_exactly(connection, length), raw=False)
    if not isinstance(value, dict):
        raise ConnectionError("not a frame")
    return value


def _exactly(connection: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    view, have = memoryview(data), 0
    while have < length:
        count = connection.recv_into(view[have:])
        if count == 0:
            raise ConnectionError("the other side went away")
        have += count
    return data


@contextlib.contextmanager
def socket_address(folder: Path) -> Iterator[str]:
    """A name for the socket that fits its 108 bytes however deep the folder lies (through /proc, on Linux)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        through = Path(f"/proc/self/fd/{descriptor}")
        yield str((through if through.exists() else folder) / WORKER_SOCKET)
    finally:
        os.close(descriptor)


class WorkerLink:
    """The one way to an organization's worker. Used by one thread.

    Args:
        folder: the organization's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: ChildProcess | None = None

    def ask(self, message_type: str, fields: Mapping[str, Any]) -> Fields:
        """The worker's answer to one message.

        Raises:
            Vanished: a simulated dropout. WorkerGone.
        """
        request = {"type": message_type, "fields": dict(fields)}
        for attempt in range(2):
            self.start()
            try:
                answer = self._exchange(request)
            except (ConnectionError, FileNotFoundError) as error:
                if attempt:
                    raise WorkerGone(
                        f"the worker died twice with {shown(message_type, MOST_TYPE)}; see {self.folder / WORKER_LOG}"
                    ) from error
                continue
            if "vanished" in answer:
                raise Vanished
            return dict(answer["fields"])
        raise AssertionError

    def start(self) -> None:
        """Start the worker unless it answers; wait until it listens."""
        if self.alive():
            return
        self.stop()
        command = [sys.executable, "-m", "clients.node.worker", str(self.folder)]
        self._process = ChildProcess(command, environment(self.folder / FLOWER_HOME), self.folder / WORKER_LOG)
        end = time.monotonic() + START_SECONDS
        while not self.alive():
            if self._process.ended is not None or time.monotonic() > end:
                self.stop()
                raise WorkerGone(f"the worker does not start; see {self.folder / WORKER_LOG}")
            time.sleep(0.1)

    def trim_log(self) -> None:
        """Put a long log aside."""
        if self._process is not None:
            self._process.trim_log()

    def alive(self) -> bool:
        """Whether a worker of ours listens."""
        if self._process is None or self._process.ended is not None:
            return False
        try:
            return "pong" in self._exchange({"type": PING, "fields": {}}, PING_SECONDS)
        except (OSError, ConnectionError):
            return False

    @property
    def pid(self) -> int | None:
        """Process id of the worker, where one was started and lives."""
        return self._process.pid if self._process is not None and self._process.ended is None else None

    def stop(self) -> None:
        """End the worker; a stage that it is in is lost, as by a power cut."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def _exchange(self, request: Mapping[str, Any], seconds: float | None = None) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as connection, socket_address(self.folder) as address:
            connection.settimeout(seconds)
            connection.connect(address)
            write_frame(connection, request)
            return read_frame(connection)
