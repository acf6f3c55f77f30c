"""Who may see a dashboard: whoever has the link that its command printed, once, and then that browser.

The link's token is exchanged for a cookie at its first use. A second use is refused, so a link that was read over a
shoulder or from a log opens nothing. Cookies know no ports: the cookie's name holds this one's, so that two dashboards
stay apart; and another web server on this machine's loopback, if the same browser visits it, is sent the cookie too.
"""

from __future__ import annotations

import secrets
import threading

TOKEN_BYTES = 32


class Session:
    """The one session of a dashboard.

    Attributes:
        token: of the link, usable once.
        form: what every form sends along, so that no other site's form is taken for one of ours.
    """

    def __init__(self, port: int) -> None:
        self._name = f"gradtf_dashboard_{port}"
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        self.form = secrets.token_urlsafe(TOKEN_BYTES)
        self._cookie = secrets.token_urlsafe(TOKEN_BYTES)
        self._used = False
        self._lock = threading.Lock()

    def exchange(self, token: str) -> str | None:
        """The Set-Cookie header for the link's token; None where it is wrong or was used before."""
        if not _same(token, self.token):
            return None
        with self._lock:
            if self._used:
                return None
            self._used = True
        return f"{self._name}={self._cookie}; HttpOnly; SameSite=Strict; Path=/"

    def admits(self, header: str) -> bool:
        """Whether a Cookie header has this session's cookie, whatever else other programs on loopback put there."""
        pairs = (part.strip().partition("=") for part in header.split(";"))
        return any(_same(value, self._cookie) for name, _, value in pairs if name == self._name)

    def sent_form(self, value: str) -> bool:
        """Whether ``value`` is what a form of ours sends along."""
        return _same(value, self.form)


def _same(given: str, expected: str) -> bool:
    """In constant time."""
    return secrets.compare_digest(given.encode("utf-8", "surrogatepass"), expected.encode())
