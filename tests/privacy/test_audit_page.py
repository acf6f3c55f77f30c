"""The audit page in a real browser: it draws, fits a phone, prints, and obeys nothing that a ledger says."""

from __future__ import annotations

import base64
import html
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradtf_fl.privacy import DpEvent, Ledger, SkellamEvent
from gradtf_fl.reports.audit import LedgerReport, read_for_report, report_all
from gradtf_fl.reports.audit_formats import to_html

from .conftest import EVENT

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((path for path in map(shutil.which, BROWSERS) if path), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed")

HOSTILE = "<script>alert(1)</script>"
LONG = "hospital-without-any-limit-to-its-name-or-to-its-budget"
TITLES = ("clinic / 2024", "clinic / 2025", HOSTILE, LONG, "bank", "over", "newcomer")
SKELLAM = SkellamEvent(variance=4e8, l2=2e4, l1=6e5, releases=1, noisers=4)
FRAME = """<!doctype html><title>measure</title>
<iframe id="page" style="width: {width}px; height: 900px; border: 0" srcdoc="{page}"></iframe>
<script>
const box = (element) => {{ const r = element.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; }};
addEventListener("load", () => {{
  const page = document.getElementById("page").contentDocument;
  const found = {{
    width: page.defaultView.innerWidth,
    scrolled: page.documentElement.scrollWidth,
    text: page.body.innerText,
    charts: [...page.querySelectorAll("svg")].map((svg) => ({{
      frame: box(svg),
      labels: [...svg.querySelectorAll("text")].map((label) => [label.textContent, box(label)]),
      marks: [...svg.querySelectorAll("circle, .limit")].map(box)}})),
  }};
  const out = document.createElement("pre");
  out.textContent = "measured:" + btoa(unescape(encodeURIComponent(JSON.stringify(found)))) + ":";
  document.body.append(out);
}});
</script>"""
"""Shows the page, as it is, in a frame as wide as a phone (no window is so narrow) and measures it from outside."""


class Box(NamedTuple):
    """An element's rectangle in CSS pixels, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        return max(self.left, other.left) < min(self.right, other.right) and max(self.top, other.top) < min(
            self.bottom, other.bottom
        )


def browse(*arguments: object) -> subprocess.CompletedProcess[str]:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars"]
    options += ["--window-size=1400,1000", *map(str, arguments)]
    done = subprocess.run([str(BROWSER), *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done


def measure(page: Path, width: int) -> dict[str, Any]:
    """What a browser ``width`` CSS pixels wide makes of ``page``."""
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.format(width=width, page=html.escape(page.read_text(encoding="utf8"))), encoding="utf8")
    match = re.search("<pre>measured:([^:]+):", browse("--dump-dom", frame.as_uri()).stdout)
    assert match is not None
    found: dict[str, Any] = json.loads(base64.b64decode(match[1]))
    assert found["width"] == width
    return found


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[LedgerReport]:
    """Two datasets; a broken chain under a hostile name; no budget; client-level noise; over budget; no round yet."""
    folder, key = tmp_path_factory.mktemp("ledgers"), Ed25519PrivateKey.generate()

    def ledger(name: str, budget: float | dict[str, float], number: int) -> Ledger:
        path = folder / str(number) / "ledger.sqlite"
        return Ledger.open(path, identity_key=key, organization=name, delta=1e-5, budget=budget)

    with ledger("clinic", {"2024": 2.0, "2025": 3.0}, 0) as clinic:
        for dataset in ("2024", "2024", "2025"):
            clinic.settle(clinic.reserve("run", 1, 0, EVENT, dataset=dataset), EVENT)
    with ledger(HOSTILE, 2.0, 1) as hostile:
        hostile.reserve(HOSTILE, 1, 0, EVENT, HOSTILE, noise=HOSTILE)
    hostile.path.with_name("ledger.head").write_text("{}")
    with ledger(LONG, math.inf, 2) as unlimited:
        unlimited.reserve("run", 1, 0, DpEvent(1.0, 1 / 16, 50))
    with ledger("bank", 4.0, 3) as bank:
        for round in range(1, 11):
            bank.reserve("16405987313402935190", round, 0, DpEvent(4.0, 1 / 16, 40), client_level=SKELLAM)
    with ledger("over", 9.0, 4) as over:
        for round in (1, 2, 3):
            over.reserve("run", round, 0, EVENT)
    ledger("over", 2.0, 4).close()  # its limit was lowered
    ledger("newcomer", 1.0, 5).close()
    return report_all([read_for_report(folder / str(number) / "ledger.sqlite") for number in range(6)])


@pytest.fixture(scope="module")
def page(reports: list[LedgerReport], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "audit.html"
    path.write_text(to_html(reports), encoding="utf8")
    return path


def test_the_page_names_every_account_and_obeys_no_ledger(page: Path) -> None:
    text = page.read_text(encoding="utf8")
    articles = re.findall(r"<article.*?</article>", text, re.DOTALL)
    assert len(articles) == 7
    for name, article in zip(TITLES, articles, strict=True):
        assert f"<h2>{html.escape(name)}</h2>" in article
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 6  # overview, title, chart, noise, charges, run
    clinic, _, hostile, unlimited, bank, over, newcomer = articles
    assert "<dd>0 more like the last one</dd>" in clinic
    assert "BROKEN</span>: the head file is damaged" in hostile
    assert "no finite budget" in unlimited
    assert "(no budget)" in unlimited
    assert "Honest noisers assumed: 4" in bank
    assert [('class="limit"' in article) for article in articles] == [True, True, True, False, True, True, True]
    assert "<dd>0.000</dd>" in over  # nothing remains
    assert "(no round yet)" in newcomer
    for word in ("unit", "adjacency", "delta", "sampler", "accountant", "noise generator", "budget", "remaining"):
        assert all(f"<dt>{word}</dt>" in article for article in articles)


def test_the_overview_leads_to_every_account(page: Path, reports: list[LedgerReport]) -> None:
    text = page.read_text(encoding="utf8")
    overview = text[text.index("Overview") : text.index("<article")]
    rows = re.findall(r"<tr><td>.*?</tr>", overview)
    targets = re.findall('<article id="([^"]+)"', text)
    assert [re.findall('href="#([^"]+)"', row) for row in rows] == [[target] for target in targets]
    assert [re.sub("<[^>]*>", "|", row).strip("|").split("||")[-1].strip("|") for row in rows] == [
        "ok",
        "ok",
        "BROKEN",
        "ok",
        "ok",
        "ok",
        "ok",
    ]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", rows[4]) == ["1.241", "4.000", "2.759", "73", "19.802"]
    assert "Overview" not in to_html(reports[4:5])


@needs_browser
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_it_whole(page: Path, width: int) -> None:
    """At the width of a phone and of a desk: every chart, every name, nothing wider than the window."""
    found = measure(page, width)
    assert found["scrolled"] <= width
    assert [name for name in TITLES if name not in found["text"]] == []
    assert len(found["charts"]) == len(TITLES)
    for chart in found["charts"]:
        left, top, right, bottom = chart["frame"]
        assert right - left > 250
        assert bottom - top > 150
        boxes = [Box(*box) for _, box in chart["labels"]]
        assert all(left <= b.left and b.right <= right and top <= b.top and b.bottom <= bottom for b in boxes)
        marks = [Box(*box) for box in chart["marks"]]
        overlapping = [(a, b) for i, a in enumerate(boxes) for b in (*boxes[i + 1 :], *marks) if a.meets(b)]
        assert overlapping == [], chart["labels"]


@needs_browser
def test_a_browser_has_nothing_to_complain_of_and_prints_it(page: Path, tmp_path: Path) -> None:
    done = browse("--dump-dom", page.as_uri())
    assert "What epsilon does not cover" in done.stdout
    assert "CONSOLE" not in done.stderr
    paper = tmp_path / "audit.pdf"
    browse(f"--print-to-pdf={paper}", page.as_uri())
    assert paper.read_bytes().startswith(b"%PDF")


@needs_browser
def test_the_console_is_seen(tmp_path: Path) -> None:
    """What the test above relies on: a blocked request, and an error of a script, are in the browser's log."""
    page = tmp_path / "bad.html"
    page.write_text("<!doctype html><title>t</title><script>throw new Error('seen')</script>")
    assert "seen" in browse("--dump-dom", page.as_uri()).stderr
