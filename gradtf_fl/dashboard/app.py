"""The dashboard as a web application: its pages, their live updates, and the one thing that it changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from gradtf_fl.dashboard.adapters_page import choice, follow_newest, roll_back
from gradtf_fl.dashboard.guard import CLOSED, OPEN, Guard
from gradtf_fl.dashboard.pages import Page, pages_of
from gradtf_fl.dashboard.rendering import Renderer
from gradtf_fl.dashboard.session import Session
from gradtf_fl.dashboard.sources import Sources
from gradtf_fl.errors import ConfigError, GradtfError, VerificationFailed
from gradtf_fl.shown import shown

REFRESH_S = 1.0
"""Seconds between two looks at the files, for each open page."""
MOST_FORM_BYTES = 4096
STATIC = {
    "dashboard.css": "text/css; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


def make_app(sources: Sources, session: Session, ending: Callable[[], bool] = lambda: False) -> ASGIApp:
    """The application.

    Args:
        sources: what it shows.
        session: who may see it.
        ending: whether the server is shutting down, so that open streams end.
    """
    dashboard = _Dashboard(sources, session, ending)
    routes = [
        Route("/", dashboard.first),
        Route(OPEN, dashboard.open),
        Route("/static/{name}", dashboard.static),
        Route("/events/{page}", dashboard.events),
        *([] if sources.organization is None else dashboard.choosing()),
        Route("/{page}", dashboard.page),
    ]
    handlers = {404: dashboard.not_found, GradtfError: dashboard.unusable}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), session)


class _Dashboard:
    """Handlers of requests that the guard let through."""

    def __init__(self, sources: Sources, session: Session, ending: Callable[[], bool]) -> None:
        self._sources, self._session, self._ending = sources, session, ending
        self._renderer = Renderer(pages_of(sources))
        self._pages = {page.name: page for page in self._renderer.pages}
        self._static = {name: (Path(__file__).parent / "static" / name).read_bytes() for name in STATIC}

    def choosing(self) -> list[Route]:
        """Routes that change which adapter is in use."""
        return [
            Route("/adapters/confirm", self.confirm),
            Route("/adapters/choose", self.choose, methods=["POST"]),
        ]

    async def open(self, request: Request) -> Response:
        """Take the link's token, once."""
        cookie = self._session.exchange(request.query_params.get("token", ""))
        if cookie is None:
            return PlainTextResponse(CLOSED, 401)
        return RedirectResponse("/", 303, {"Set-Cookie": cookie})

    async def first(self, request: Request) -> Response:
        """The first page of the navigation."""
        return RedirectResponse(f"/{self._renderer.pages[0].name}", 303)

    async def static(self, request: Request) -> Response:
        """A file of the pages."""
        name = request.path_params["name"]
        if name not in self._static:
            return await self.not_found(request)
        return Response(self._static[name], media_type=STATIC[name])

    async def page(self, request: Request) -> Response:
        """One page."""
        page = self._pages.get(request.path_params["page"])
        if page is None:
            return await self.not_found(request)
        return HTMLResponse(await run_in_threadpool(self._renderer.page, page))

    async def events(self, request: Request) -> Response:
        """Updates of one page for as long as it is open (server-sent events)."""
        page = self._pages.get(request.path_params["page"])
        if page is None:
            return await self.not_found(request)
        return StreamingResponse(self._updates(page), media_type="text/event-stream")

    async def confirm(self, request: Request) -> Response:
        """What a change of the adapter in use would do, and the button that does it."""
        number = request.query_params.get("round", "")
        chosen = None if number == "newest" else await run_in_threadpool(choice, self._organization, _round(number))
        return self._html("confirm.html", here="adapters", number=number, chosen=chosen, form=self._session.form)

    async def choose(self, request: Request) -> Response:
        """Do it: ``round`` is a round's number, or ``newest``."""
        fields = await _form(request)
        if not self._session.sent_form(fields.get("form", "")) or fields.get("confirm") != "yes":
            return self._message(403, "Not done", ["The form was not one of this dashboard. Open the page again."])
        number = fields.get("round", "")
        if number == "newest":
            await run_in_threadpool(follow_newest, self._organization)
        else:
            await run_in_threadpool(roll_back, self._organization, _round(number))
        return RedirectResponse("/adapters", 303)

    async def not_found(self, request: Request, error: Exception | None = None) -> Response:
        """No such page."""
        return self._message(404, "Not found", ["There is no such page."])

    async def unusable(self, request: Request, error: Exception) -> Response:
        """A folder or an adapter that is not as it must be."""
        problems = error.problems if isinstance(error, ConfigError | VerificationFailed) else [str(error)]
        return self._message(409, "This can't be done", list(problems))

    @property
    def _organization(self) -> Path:
        assert self._sources.organization is not None
        return self._sources.organization

    def _message(self, status: int, title: str, lines: list[str]) -> Response:
        return self._html("message.html", status, title=title, lines=lines)

    def _html(self, template: str, status: int = 200, here: str = "", **context: Any) -> Response:
        return HTMLResponse(self._renderer.render(template, here, **context), status)

    async def _updates(self, page: Page) -> AsyncIterator[str]:
        sent: dict[str, str] = {}
        while not self._ending():
            try:
                rendered = await run_in_threadpool(self._renderer.parts, page)
            except GradtfError as error:
                yield _event("problem", {"text": shown(error)})
            else:
                for part in rendered.parts:
                    if sent.get(part.id) != part.digest:
                        sent[part.id] = part.digest
                        yield _event("part", {"id": part.id, "digest": part.digest, "html": part.html})
                yield _event("beat", {"spoken": rendered.spoken})
            await asyncio.sleep(REFRESH_S)


def _event(name: str, data: dict[str, str]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def _round(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise ConfigError(f"{text}: is no round's number")
    return int(text)


async def _form(request: Request) -> dict[str, str]:
    """Fields of an urlencoded form; none of one that is too long."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MOST_FORM_BYTES:
            return {}
    return {name: values[-1] for name, values in parse_qs(data.decode("utf-8", "replace")).items()}
