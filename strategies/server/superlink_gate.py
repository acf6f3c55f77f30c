"""``python -m strategies.server.superlink_gate OPTIONS``: ``flower-superlink``, its control open to this machine only.

Flower serves its Fleet API (SuperNodes, authenticated), its Control API (start runs: whoever may call it runs code
here) and its Runtime API on one port, and asks nobody who calls Control for credentials. So everything but the Fleet
API is refused to other machines. Whoever has an account on this machine can still reach Control over loopback.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from strategies.flower_private import flower_superlink, put_first

OPEN = ("/v1/fleet/",)
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class LoopbackGate:
    """ASGI middleware: 403 for every path but the Fleet API's unless the caller is on loopback."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one connection."""
        if scope["type"] != "http" or permitted(str(scope["path"]), scope.get("client")):
            return await self._app(scope, receive, send)
        body = json.dumps({"detail": "only from the server's own machine"}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def permitted(path: str, client: tuple[str, int] | None) -> bool:
    """Whether a caller at ``client`` (address, port) may ask for ``path``."""
    if path.startswith(OPEN) and ".." not in path and "//" not in path:
        return True
    if client is None:
        return False
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback


def main() -> None:
    """Start the SuperLink behind the gate; exits when Flower has no such hook any more."""
    put_first(LoopbackGate)
    flower_superlink()


if __name__ == "__main__":
    main()
