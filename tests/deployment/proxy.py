"""A TCP relay between an organization and the server, whose wire can be cut: what is sent then is not delivered."""

from __future__ import annotations

import contextlib
import socket
import threading

CHUNK, LOOK_S = 65536, 0.2


class Proxy:
    """Relays loopback ``port`` to ``target``. While `cut`, nothing passes and new connections are not answered.

    When the wire is mended, connections from before are reset, as by a firewall that has forgotten them.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._open = threading.Event()
        self._open.set()
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Partition."""
        self._open.clear()

    def mend(self) -> None:
        """End of the partition, if there is one."""
        if self._open.is_set():
            return
        for pair in list(self._pairs):
            self._drop(pair)
        self._open.set()

    def close(self) -> None:
        """No more relaying."""
        self._closed = True
        self._open.set()
        for pair in list(self._pairs):
            self._drop(pair)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._closed:
                near, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        self._open.wait()
        try:
            far = socket.create_connection(("127.0.0.1", self._target), 5.0)
        except OSError:
            near.close()
            return
        pair = near, far
        try:
            near.settimeout(LOOK_S)
            far.settimeout(LOOK_S)
        except OSError:  # closed meanwhile
            return self._drop(pair)
        self._pairs.add(pair)
        for one, other in (pair, pair[::-1]):
            threading.Thread(target=self._relay, args=(one, other, pair), daemon=True).start()

    def _relay(self, one: socket.socket, other: socket.socket, pair: tuple[socket.socket, socket.socket]) -> None:
        while pair in self._pairs:
            if not self._open.wait(LOOK_S):
                continue
            try:
                data = one.recv(CHUNK)
                if not data:
                    break
                if not self._open.is_set():  # it was on the wire when that was cut
                    break
                other.settimeout(10.0)
                other.sendall(data)
                other.settimeout(LOOK_S)
            except TimeoutError:
                continue
            except OSError:
                break
        self._drop(pair)

    def _drop(self, pair: tuple[socket.socket, socket.socket]) -> None:
        self._pairs.discard(pair)
        for end in pair:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
