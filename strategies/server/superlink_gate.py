"""``python -m strategies.server.superlink_gate OPTIONS``: ``flower-superlink``, its control open to this machine only.

Flower serves its Fleet API (SuperNodes, authenticated), its Control API (start runs: whoever may call it runs code
here) and its Runtime API on one port, and asks nobody who calls Control for credentials. So everything but the Fleet
API is refused to other machines. Whoever has an account on this machine can still reach Control over loopback.

Flower reads a whole body before it asks who sent it. Here a body says its length first, a caller without the signature
of a registered node key sends a small one, and nobody sends one of any size.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from functools import partial
from typing import Any

from gradtf_fl.deployment import trusting_nobody
from strategies.flower_private import flower_superlink, from_registered_node, put_first

OPEN = ("/v1/fleet/",)
FORWARDING = (b"x-forwarded", b"forwarded", b"x-real-ip", b"x-client-ip", b"true-client-ip", b"cf-connecting", b"via")
STRANGERS_BYTES = 65_536  # of a body without the signature of a registered node: its messages without a vector are less
MOST_BYTES = 1_000_000_000
NO_HEADERS: Mapping[bytes, bytes] = {}
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class LoopbackGate:
    """ASGI middleware: 403 for every path but the Fleet API's unless the caller is on loopback; 411 and 413 for bodies.

    Args:
        most: bytes that a body may have.
        known: whether a scope's headers are signed by a registered node.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        most: int = MOST_BYTES,
        known: Callable[[Scope], bool] = from_registered_node,
    ) -> None:
        self._app, self._most, self._known = app, most, known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one connection."""
        refused = await self._refused(scope) if scope["type"] == "http" else None
        if refused is None:
            return await self._app(scope, receive, send)
        status, why = refused
        body = json.dumps({"detail": why}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),  # what is left of the body is not read
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _refused(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason, before a byte of the body is read."""
        path = str(scope["path"])
        headers = {bytes(name).lower(): bytes(value) for name, value in scope.get("headers", ())}
        if not permitted(path, scope.get("client"), headers):
            return 403, "only from the server's own machine"
        if b"transfer-encoding" in headers:
            return 411, "a body says its length"
        length = int(text) if (text := headers.get(b"content-length", b"0")).isdigit() else self._most + 1
        if length > self._most:
            return 413, f"at most {self._most} bytes"
        if path.startswith(OPEN) and length > STRANGERS_BYTES and not await asyncio.to_thread(self._known, scope):
            return 413, f"at most {STRANGERS_BYTES} bytes without the signature of a registered node"
        return None


def permitted(path: str, client: tuple[str, int] | None, headers: Mapping[bytes, bytes] = NO_HEADERS) -> bool:
    """Whether a caller at ``client`` (address, port) may ask for ``path``.

    A caller that was forwarded is not on this machine, wherever the one who forwarded it is.
    """
    if path.startswith(OPEN) and ".." not in path and "//" not in path:
        return True
    if client is None or any(name.startswith(FORWARDING) for name in headers):
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
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--most-bytes", type=int, default=MOST_BYTES)
    ours, theirs = options.parse_known_args()
    sys.argv[1:] = theirs
    for name in set(os.environ) - set(trusting_nobody(os.environ)):  # FORWARDED_ALLOW_IPS and its like
        del os.environ[name]
    put_first(partial(LoopbackGate, most=ours.most_bytes))
    flower_superlink()


if __name__ == "__main__":
    main()
