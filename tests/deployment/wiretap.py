"""A relay that ends TLS on both sides with the server's own certificate and writes down every byte in between."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from pathlib import Path

CHUNK = 65536


class Wiretap:
    """Relays loopback ``port`` to ``target``; ``up`` and ``down`` hold what organizations sent and got.

    Args:
        ca, certificate, key: the server's files, as only its operator has them.
    """

    def __init__(self, target: int, ca: Path, certificate: Path, key: Path) -> None:
        self._target = target
        self._near = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._near.load_cert_chain(certificate, key)
        self._far = ssl.create_default_context(cafile=str(ca))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.up, self.down = bytearray(), bytearray()
        self._writing = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """No more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        try:
            near = self._near.wrap_socket(plain, server_side=True)
            far = self._far.wrap_socket(
                socket.create_connection(("127.0.0.1", self._target), 5.0), server_hostname="127.0.0.1"
            )
        except OSError:  # the server is not up yet
            plain.close()
            return
        far.settimeout(None)
        for one, other, record in ((near, far, self.up), (far, near, self.down)):
            threading.Thread(target=self._relay, args=(one, other, record), daemon=True).start()

    def _relay(self, one: ssl.SSLSocket, other: ssl.SSLSocket, record: bytearray) -> None:
        with contextlib.suppress(OSError, ValueError):
            while data := one.recv(CHUNK):
                with self._writing:
                    record += data
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
