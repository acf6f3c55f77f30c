"""A TLS server that does nothing but shake hands, with whatever certificate it is given."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from pathlib import Path
from typing import Self

HANDSHAKE_S = 5.0


class TlsListener:
    """Listens on loopback `port` from entry to exit."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), accepted:
                accepted.settimeout(HANDSHAKE_S)
                with self._context.wrap_socket(accepted, server_side=True):
                    pass
