"""The site in a real browser: pages show what they should, log no error, and ask no other host for anything."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update"),
    *("--disable-background-networking", "--disable-sync", "--enable-logging=stderr", "--v=0", "--dump-dom"),
)
OURS_ALONE = "default-src 'self' 'unsafe-inline' data: blob:"
"""Content security policy: the browser refuses what is another host's, and logs that as an error."""
PAGES = {
    "index.html": "For whom",
    "tutorials/researcher.html": "Describe the project",
    "reference/cli.html": "gradtf simulate",
    "reference/api/secagg.html": "run_secure_sum",
    "threat-model.html": "The promise",
}
pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium"),
]


PROBE = """<iframe src="index.html?q=fingerprint"></iframe><img src="slow.png" onerror="found()"><script>
function found() {
  const items = document.querySelector("iframe").contentDocument.querySelectorAll(".md-search-result__item");
  document.body.append(`${items.length} pages found`);
}
</script>"""
"""Shows how many results a search has by the time that a slow picture gives up: the browser waits for that alone."""
SLOW_S = 4.0


class Pages(SimpleHTTPRequestHandler):
    """Serves the site under a policy that permits nothing from elsewhere."""

    def do_GET(self) -> None:
        if self.path.startswith("/slow.png"):
            time.sleep(SLOW_S)
        super().do_GET()

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", OURS_ALONE)
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """A browser that ends in the middle of an answer is no news."""

    def handle_error(self, *_: object) -> None:
        """Say nothing."""


def visit(site: Path, page: str, profile: Path) -> tuple[str, list[str]]:
    """(the page's document once its scripts have run, errors that it logged)."""
    server = Server(("127.0.0.1", 0), functools.partial(Pages, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        place = f"http://127.0.0.1:{server.server_port}/{page}"
        command = [str(CHROMIUM), *FLAGS, "--timeout=6000", f"--user-data-dir={profile}", place]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A browser's new folder."""
    return tmp_path_factory.mktemp("chromium")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_loads_nothing_from_elsewhere_and_logs_no_error(page: str, site: Path, profile: Path) -> None:
    document, errors = visit(site, page, profile)
    assert PAGES[page] in document
    assert errors == []


def test_the_search_finds_a_word(site: Path, profile: Path) -> None:
    probe = site / "probe.html"
    probe.write_text(PROBE)
    document, _ = visit(site, "probe.html", profile)
    probe.unlink()
    assert re.search(r"[1-9]\d* pages found", document), document[-200:]


def test_a_foreign_script_and_an_error_are_seen(tmp_path: Path, profile: Path) -> None:
    (tmp_path / "index.html").write_text('<script src="http://127.0.0.2/x.js"></script><script>nothing();</script>')
    _, errors = visit(tmp_path, "index.html", profile)
    assert any("127.0.0.2/x.js" in line and "Content Security Policy" in line for line in errors)
    assert any("nothing is not defined" in line for line in errors)
