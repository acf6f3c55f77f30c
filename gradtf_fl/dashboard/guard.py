"""Around the whole dashboard: who is answered at all, and the headers of every answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gradtf_fl.dashboard.session import Session
from gradtf_fl.deployment import LOOPBACK_HOST

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
OPEN = "/open"
"""Path of the link, which needs no cookie."""
CLOSED = (
    "401: this page opens with the link that `gradtf dashboard` printed, in the browser that opened it first.\n"
    "The link works once. Start the command again for a new one.\n"
)
WRONG_HOST = "403: the dashboard answers under 127.0.0.1 and localhost only.\n"
FOREIGN = "403: this form was sent by another site, or by a page of an earlier dashboard; open the page again.\n"


class Guard:
    """ASGI around ``app``.

    A request whose Host header is no loopback name is refused: a web page that rebinds its own name to 127.0.0.1 still
    sends that name. So is one without the session's cookie, and a POST that another site sends.
    """

    def __init__(self, app: ASGIApp, session: Session) -> None:
        self._app, self._session = app, session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                named = {name.lower() for name, _ in message.get("headers", ())}
                added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *(pair for pair in added if pair[0] not in named)]
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send_guarded)
            return
        from starlette.responses import PlainTextResponse

        status, text = refusal
        await PlainTextResponse(text, status)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = scope["headers"]
        hosts = list(_values(headers, b"host"))
        if len(hosts) != 1 or not LOOPBACK_HOST.fullmatch(hosts[0].strip()):
            return 403, WRONG_HOST
        if scope["path"] == OPEN and scope["method"] == "GET":
            return None
        if not self._session.admits("; ".join(_values(headers, b"cookie"))):
            return 401, CLOSED
        sites = set(_values(headers, b"sec-fetch-site"))
        origins = set(_values(headers, b"origin"))
        own = {"null", f"http://{hosts[0].strip()}"}  # null: what a page without a referrer sends
        if scope["method"] not in ("GET", "HEAD") and (sites - {"same-origin"} or origins - own):
            return 403, FOREIGN
        return None


def _values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> Iterable[str]:
    return (value.decode("latin-1") for key, value in headers if key.lower() == name)
