"""Who may reach what on the SuperLink's one port."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from gradtf_fl.deployment.processes import environment
from strategies.flower_private import put_first
from strategies.server import superlink_gate
from strategies.server.superlink_gate import LoopbackGate, permitted

ELSEWHERE = ("203.0.113.9", 4711)


async def never(*_: Any) -> None:
    """An app, or a body, that nobody should come to."""
    raise AssertionError("the gate is open")


def ask(gate: Any, **scope: Any) -> list[dict[str, Any]]:
    """What the gate answers to one request whose body can't be read."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(gate({"type": "http", **scope}, never, send))
    return sent


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/docs",
        "/openapi.json",
        "/v1/fleet/../control/start-run",
        "/v1/fleet//../control/start-run",
        "/v1/fleet",
        "/V1/FLEET/pull-messages",
        "",
    ],
)
def test_other_machines_reach_the_fleet_api_only(path: str) -> None:
    assert not permitted(path, ELSEWHERE)
    assert not permitted(path, None)
    assert not permitted(path, ("testclient", 1))
    for here in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"):
        assert permitted(path, (here, 1))
    assert not permitted(path, ("::ffff:203.0.113.9", 1))


def test_organizations_reach_the_fleet_api() -> None:
    assert permitted("/v1/fleet/pull-messages", ELSEWHERE)


def test_the_gate_answers_403_and_the_app_sees_nothing() -> None:
    seen: list[str] = []
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["path"])

    async def send(message: Any) -> None:
        sent.append(message)

    gate = LoopbackGate(app)
    for path in ("/v1/control/start-run", "/v1/fleet/get-run"):
        asyncio.run(gate({"type": "http", "path": path, "client": ELSEWHERE}, None, send))  # type: ignore[arg-type]
    assert seen == ["/v1/fleet/get-run"]
    assert sent[0]["status"] == 403


@pytest.mark.parametrize(
    "name",
    ["X-Forwarded-For", "X-Forwarded-Host", "Forwarded", "X-Real-IP", "Via", "True-Client-IP", "CF-Connecting-IP"],
)
def test_a_forwarded_caller_is_never_here(name: str) -> None:
    """With FORWARDED_ALLOW_IPS=* uvicorn takes whatever X-Forwarded-For says for the caller's address."""
    header = name.lower().encode(), b"127.0.0.1"
    gate = ProxyHeadersMiddleware(LoopbackGate(never), trusted_hosts="*")  # type: ignore[arg-type]
    for client in (ELSEWHERE, ("127.0.0.1", 1)):
        sent = ask(gate, path="/v1/control/start-run", client=client, headers=[header])
        assert sent[0]["status"] == 403


def test_the_superlink_inherits_nobody_to_trust(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("FORWARDED_ALLOW_IPS", "UVICORN_FORWARDED_ALLOW_IPS", "UVICORN_PROXY_HEADERS", "WEB_CONCURRENCY"):
        monkeypatch.setenv(name, "*")
    assert not {name for name, value in environment(tmp_path).items() if value == "*"}
    seen: list[str | None] = []
    monkeypatch.setattr(superlink_gate, "put_first", lambda _: None)
    monkeypatch.setattr(superlink_gate, "flower_superlink", lambda: seen.append(os.environ.get("FORWARDED_ALLOW_IPS")))
    monkeypatch.setattr(sys, "argv", ["gate", "--most-bytes", "7", "--host", "127.0.0.1"])
    superlink_gate.main()  # started by hand, too
    assert seen == [None]
    assert sys.argv == ["gate", "--host", "127.0.0.1"]


@pytest.mark.parametrize(
    ("headers", "known", "status"),
    [
        ([(b"content-length", b"200000000")], False, 413),
        ([(b"content-length", b"65537")], False, 413),
        ([(b"content-length", b"1000001")], True, 413),
        ([(b"content-length", b"-1")], True, 413),
        ([(b"content-length", "²".encode("latin-1"))], True, 413),
        ([(b"transfer-encoding", b"chunked")], True, 411),
        ([(b"content-length", b"65536")], False, 200),
        ([(b"content-length", b"1000000")], True, 200),
        ([], False, 200),
    ],
    ids=["200MB", "stranger", "member", "negative", "superscript", "chunked", "small", "vector", "none"],
)
def test_no_body_is_read_before_its_sender_is_known(
    headers: list[tuple[bytes, bytes]], known: bool, status: int
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    gate = LoopbackGate(app, most=1_000_000, known=lambda scope: known)
    assert ask(gate, path="/v1/fleet/push-object", client=ELSEWHERE, headers=headers)[0]["status"] == status


def test_only_a_registered_nodes_signature_opens_the_gate_for_a_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real SuperLink's app: its own state of nodes, its own check of the signature."""
    from starlette.testclient import TestClient

    from tests.flower_private import create_node, node_headers, superlink

    monkeypatch.setattr(superlink.extensions, "get_middleware", superlink.extensions.get_middleware)
    put_first(LoopbackGate)
    app = superlink.create_app()
    ours, stranger = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    body = b"\xff" * 70_000
    with TestClient(app, client=ELSEWHERE) as client:
        create_node(app, ours.public_key())

        def status(key: ec.EllipticCurvePrivateKey | None, **changes: str) -> int:
            signed = {} if key is None else node_headers(key) | changes
            return client.post("/v1/fleet/push-object", content=body, headers=signed).status_code

        assert status(None) == 413
        assert status(stranger) == 413
        assert status(ours, **{"flwr-timestamp": "2020-01-01T00:00:00+00:00"}) == 413
        assert status(ours) not in (411, 413)  # Flower says that these bytes are no message


def test_flower_puts_the_gate_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the real SuperLink's app a caller from elsewhere gets 403 by Control and Runtime, not by Fleet."""
    from starlette.testclient import TestClient

    from tests.flower_private import superlink

    monkeypatch.setattr(superlink.extensions, "get_middleware", superlink.extensions.get_middleware)
    put_first(LoopbackGate)
    app = superlink.create_app()
    with TestClient(app, client=ELSEWHERE) as client:
        assert client.post("/v1/control/list-runs").status_code == 403
        assert client.post("/v1/runtime/acquire-task").status_code == 403
        assert client.post("/v1/fleet/pull-messages").status_code != 403
    with TestClient(app, client=("127.0.0.1", 1)) as client:
        assert client.post("/v1/control/list-runs").status_code != 403
