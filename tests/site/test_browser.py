"""The site in a real browser: pages show what they should, log no error, and ask no other host for anything."""

from __future__ import annotations

import functools
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

CHROMIUM = shutil.which("chromium")
HOST = "site.example"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update"),
    *("--disable-background-networking", "--disable-sync", "--enable-logging=stderr", "--virtual-time-budget=5000"),
    *("--proxy-bypass-list=<-loopback>", "--dump-dom"),
)
PAGES = {
    "index.html": "For whom",
    "tutorials/researcher.html": "gradtf init ward",
    "reference/cli.html": "gradtf simulate",
    "reference/api/secagg.html": "run_secure_sum",
    "threat-model.html": "The promise",
}
pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium"),
]


class Proxy(SimpleHTTPRequestHandler):
    """Serves the site as `HOST`, and notes every request that is for another host."""

    strangers: list[str]

    def translate_path(self, path: str) -> str:
        return super().translate_path(urlsplit(path).path)

    def do_GET(self) -> None:
        if urlsplit(self.path).hostname == HOST:
            super().do_GET()
        else:
            self.refuse()

    def do_CONNECT(self) -> None:
        self.refuse()

    def refuse(self) -> None:
        self.strangers.append(self.path)
        self.send_error(403)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def visit(site: Path, page: str, profile: Path) -> tuple[str, list[str], list[str]]:
    """(the page's document once it has run, errors that it logged, requests for other hosts)."""
    strangers: list[str] = []
    handler = type("Noting", (Proxy,), {"strangers": strangers})
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        proxy = f"--proxy-server=http://127.0.0.1:{server.server_port}"
        command = [str(CHROMIUM), *FLAGS, proxy, f"--user-data-dir={profile}", f"http://{HOST}/{page}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line], strangers


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A browser's new folder."""
    return tmp_path_factory.mktemp("chromium")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_asks_no_other_host_and_logs_no_error(page: str, site: Path, profile: Path) -> None:
    document, errors, strangers = visit(site, page, profile)
    assert PAGES[page] in document
    assert errors == []
    assert strangers == []


def test_the_search_finds_a_word(site: Path, profile: Path) -> None:
    document, errors, strangers = visit(site, "index.html?q=fingerprint", profile)
    assert "md-search-result__item" in document
    assert (errors, strangers) == ([], [])


def test_a_foreign_script_and_an_error_are_seen(tmp_path: Path, profile: Path) -> None:
    text = '<script src="http://other.example/x.js"></script><script>console.error("no"); nothing();</script>'
    (tmp_path / "index.html").write_text(text)
    _, errors, strangers = visit(tmp_path, "index.html", profile)
    assert strangers == ["http://other.example/x.js"]
    assert len(errors) >= 2
