"""A real TLS handshake over loopback: what Flower's clients and server do, with Python's ssl."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from pathlib import Path

STRICT = ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
TIMEOUT_S = 10.0


def handshake(ca: Path, cert: Path, key: Path, host: str) -> str:
    """Connect to a server with ``cert`` and ``key`` as ``host``, trusting ``ca`` alone.

    Returns:
        "" when TLS came about, else what OpenSSL says against it.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    client = ssl.create_default_context(cafile=str(ca))
    client.verify_flags |= STRICT  # the default of Python 3.13
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT_S)

        def serve() -> None:
            with contextlib.suppress(OSError):
                accepted, _ = listener.accept()
                accepted.settimeout(TIMEOUT_S)
                with server.wrap_socket(accepted, server_side=True) as connection:
                    connection.sendall(b"hello")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), TIMEOUT_S) as raw,
                client.wrap_socket(raw, server_hostname=host) as connection,
            ):
                assert connection.recv(5) == b"hello"
            return ""
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        finally:
            thread.join()
