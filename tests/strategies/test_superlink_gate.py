"""Who may reach what on the SuperLink's one port."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from strategies.flower_private import put_first
from strategies.server.superlink_gate import LoopbackGate, permitted

ELSEWHERE = ("203.0.113.9", 4711)


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
