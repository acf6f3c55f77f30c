"""Is it alive? A tiny HTTP endpoint for supervisors on the same machine: GET /health and /metrics on 127.0.0.1.

It tells nothing to anyone else: it listens on loopback only, reads no request body, and answers only requests whose
Host header is a loopback name, as a web page that rebinds its own name to 127.0.0.1 still sends that name.
"""

from __future__ import annotations

import json
import re
import socketserver
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from gradtf_fl.errors import ConfigError

LOOPBACK = "127.0.0.1"
LOOPBACK_HOST = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE)
OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
CODES = {"ok": 200, "degraded": 200, "failed": 503}
REQUEST_SECONDS = 5.0  # for a request to arrive, and for its answer to be taken

State = Callable[[], Mapping[str, Any]]
Metrics = Callable[[], bytes]


class HealthServer:
    """Serves ``state()`` from a daemon thread.

    ``state`` returns ``{"status": "ok" | "degraded" | "failed", ...}`` (JSON values). It runs in that thread, once a
    request. If it raises, or returns anything else, the answer is ``{"status": "failed"}``: no exception's text.

    ``metrics`` returns OpenMetrics text for GET /metrics, in the same way; there is none without it.

    Attributes:
        port: the TCP port, also where 0 was asked for.
    """

    def __init__(self, port: int, state: State, metrics: Metrics | None = None) -> None:
        """Bind the port.

        Raises:
            ConfigError: no TCP port number, or the port is taken.
        """
        if not 0 <= port <= 65535:
            raise ConfigError(f"health port {port}: not a TCP port number")
        try:
            self._server = _Server((LOOPBACK, port), _Handler)
        except OSError as error:
            raise ConfigError(f"health port {port}: cannot be used ({error.strerror})") from error
        self._server.state, self._server.metrics = state, metrics
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    @property
    def url(self) -> str:
        """Where to ask."""
        return f"http://{LOOPBACK}:{self.port}/health"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(REQUEST_SECONDS)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    state: State
    metrics: Metrics | None

    def server_bind(self) -> None:
        """Bind without the look-up of this machine's name that the base class does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = LOOPBACK, int(self.server_address[1])


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_SECONDS
    server: _Server
    error_content_type = "application/json"
    error_message_format = '{"error": %(code)d}\n'

    def do_GET(self) -> None:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not LOOPBACK_HOST.fullmatch(hosts[0].strip()):
            self._answer(403, {"error": 403})
        elif self.path == "/health":
            self._answer(*self._state())
        elif self.path == "/metrics" and self.server.metrics is not None:
            self._measure(self.server.metrics)
        else:
            self._answer(404, {"error": 404})

    def _measure(self, metrics: Metrics) -> None:
        try:
            text = metrics()
        except Exception:
            self._answer(503, {"error": 503})
        else:
            self._send(200, OPEN_METRICS, text)

    def _state(self) -> tuple[int, Mapping[str, Any]]:
        try:
            document = dict(self.server.state())
            json.dumps(document, allow_nan=False)
            return CODES[document["status"]], document
        except Exception:
            return CODES["failed"], {"status": "failed"}

    def _answer(self, code: int, document: Mapping[str, Any]) -> None:
        self._send(code, "application/json", json.dumps(document).encode() + b"\n")

    def _send(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "gradtf"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a supervisor asks every few seconds."""
