"""The health endpoint over real sockets on loopback."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http.client import HTTPConnection
from typing import Any

import pytest

from gradtf_fl.deployment.health_endpoint import REQUEST_SECONDS, HealthServer
from gradtf_fl.errors import ConfigError


def ask(port: int, path: str = "/health", method: str = "GET", **headers: str) -> tuple[int, dict[str, Any]]:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, json.loads(body)


def raw(port: int, request: bytes) -> bytes:
    """What comes back for these bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as wire:
        wire.sendall(request)
        answer = b""
        while part := wire.recv(65536):
            answer += part
    return answer


def test_it_tells_the_state() -> None:
    state = {"status": "ok", "round": 1}
    with HealthServer(0, lambda: state) as health:
        assert health.url == f"http://127.0.0.1:{health.port}/health"
        assert ask(health.port) == (200, {"status": "ok", "round": 1})
        state |= {"status": "degraded"}
        assert ask(health.port) == (200, {"status": "degraded", "round": 1})
        state |= {"status": "failed"}
        assert ask(health.port) == (503, {"status": "failed", "round": 1})


def _raises() -> Mapping[str, Any]:
    raise ValueError("a patient's row")


@pytest.mark.parametrize(
    "state", [_raises, dict, lambda: {"status": "fine"}, lambda: {"status": "ok", "x": object()}, lambda: None]
)
def test_a_broken_state_is_a_failure_without_its_text(state: Callable[[], Mapping[str, Any]]) -> None:
    with HealthServer(0, state) as health:
        assert ask(health.port) == (503, {"status": "failed"})


@pytest.mark.parametrize("path", ["/", "/health/", "/health?x=1", "/../health", "http://127.0.0.1/health"])
def test_there_is_nothing_else(path: str) -> None:
    with HealthServer(0, lambda: {"status": "ok"}) as health:
        assert ask(health.port, path) == (404, {"error": 404})


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.1:80", "LOCALHOST:9", "[::1]:80"])
def test_loopback_names_are_answered(host: str) -> None:
    with HealthServer(0, lambda: {"status": "ok"}) as health:
        assert ask(health.port, Host=host)[0] == 200


@pytest.mark.parametrize("host", ["evil.test", "127.0.0.1.evil.test", "localhost.evil.test", "10.0.0.1", "", "[::1"])
def test_other_names_are_refused(host: str) -> None:
    """A page at evil.test that makes evil.test resolve to 127.0.0.1 still sends its own name."""
    with HealthServer(0, lambda: {"status": "ok"}) as health:
        assert ask(health.port, Host=host) == (403, {"error": 403})


@pytest.mark.parametrize("hosts", [b"", b"Host: localhost\r\nHost: evil.test\r\n"])
def test_exactly_one_name_is_wanted(hosts: bytes) -> None:
    with HealthServer(0, lambda: {"status": "ok"}) as health:
        assert raw(health.port, b"GET /health HTTP/1.0\r\n" + hosts + b"\r\n").startswith(b"HTTP/1.0 403 ")


def test_no_body_is_waited_for() -> None:
    with HealthServer(0, lambda: {"status": "ok"}) as health:
        request = b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
        assert raw(health.port, request).startswith(b"HTTP/1.0 200 ")
        request = b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
        assert raw(health.port, request).startswith(b"HTTP/1.0 501 ")


def test_it_says_little_of_itself() -> None:
    with HealthServer(0, lambda: {"status": "ok"}) as health:
        answer = raw(health.port, b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
    assert b"Server: gradtf\r\n" in answer
    assert b"Python" not in answer
    assert b"no-store" in answer


def test_only_this_machine_reaches_it() -> None:
    with HealthServer(0, lambda: {"status": "ok"}) as health:
        assert health._server.server_address[0] == "127.0.0.1"
        with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.2", health.port), timeout=5):
            pass


def test_a_slow_client_holds_up_nobody() -> None:
    health = HealthServer(0, lambda: {"status": "ok"})
    with health, socket.create_connection(("127.0.0.1", health.port)) as slow:
        slow.sendall(b"GET /hea")
        began = time.monotonic()
        assert ask(health.port)[0] == 200
        assert time.monotonic() - began < REQUEST_SECONDS / 2


def test_a_taken_port_is_a_config_error_and_a_left_one_is_free() -> None:
    with HealthServer(0, lambda: {"status": "ok"}) as health:
        port = health.port
        with pytest.raises(ConfigError, match=f"health port {port}"):
            HealthServer(port, dict)
    with HealthServer(port, lambda: {"status": "ok"}):
        assert ask(port)[0] == 200
    assert not any(thread.name == "health" for thread in threading.enumerate())


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_is_a_port(port: int) -> None:
    with pytest.raises(ConfigError, match="not a TCP port"):
        HealthServer(port, dict)
