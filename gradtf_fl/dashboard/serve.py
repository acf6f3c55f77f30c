"""Serves a dashboard on loopback until SIGINT or SIGTERM."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from gradtf_fl.dashboard.guard import OPEN
from gradtf_fl.dashboard.session import Session
from gradtf_fl.dashboard.sources import Sources
from gradtf_fl.deployment import LOOPBACK
from gradtf_fl.errors import ConfigError

if TYPE_CHECKING:
    import uvicorn

GRACE_S = 3
"""Seconds that open answers have when it ends."""


class DashboardServer:
    """A dashboard whose port is bound; `run` serves it.

    Attributes:
        url: the link, with the token that opens it once.
    """

    def __init__(self, sources: Sources, port: int = 0) -> None:
        """Check what is to be shown, and bind the port (0: a free one).

        Raises:
            ConfigError: a folder or file is not what it was named for, or the port can't be used.
        """
        sources.check()
        try:
            self._socket = socket.create_server((LOOPBACK, port))
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise ConfigError(f"--port {port}: can't be used ({why}); leave it out for a free one") from error
        self.port: int = self._socket.getsockname()[1]
        session = Session(self.port)
        self.url = f"http://{LOOPBACK}:{self.port}{OPEN}?token={session.token}"
        self._server = self._made(sources, session)

    def run(self) -> None:
        """Serve; returns after SIGINT or SIGTERM, which then go on to whoever handles them here."""
        with self._socket:
            self._server.run([self._socket])

    def stop(self) -> None:
        """End `run`, from another thread."""
        self._server.should_exit = True

    def _made(self, sources: Sources, session: Session) -> uvicorn.Server:
        import uvicorn

        from gradtf_fl.dashboard.app import make_app

        app = make_app(sources, session, lambda: self._server.should_exit)
        return uvicorn.Server(
            uvicorn.Config(
                app,
                http="h11",
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
